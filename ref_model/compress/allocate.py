"""Which weights get 2, 3, 4 or 8 bits: least estimated loss within an average.

The unit of choice is a window of 128 inputs of up to 512 output channels, so every machine of up to 32 units has equal
work in each step. Its loss at a precision is the squared rounding error weighted by measured importance; the choice is
Lagrangian: a price for a bit, found by bisection, and the rest of the budget spent greedily.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hw.spec.config import BLOCK
from hw.spec.weights import BITS, WINDOW, ceil_div

from .prune import keep_mask, scores
from .rounding import round_matrix
from .statistics import Importance

OPTIONS = tuple(sorted(BITS))
ROWS = 512
"""Output channels decided on together."""
SAMPLED_ROWS = 64
"""Rows of a group that the error is measured on."""


@dataclass(frozen=True)
class Sensitivity:
    """losses: float64[row groups, windows, len(OPTIONS)]; blocks: int64[row groups, windows], 16 x 16 blocks each."""

    losses: np.ndarray
    blocks: np.ndarray


def block_counts(n_out: int, n_in: int) -> np.ndarray:
    """int64[row groups, windows]: blocks of every unit of choice."""

    def parts(blocks: int, step: int) -> np.ndarray:
        return np.minimum(step, blocks - np.arange(0, blocks, step))

    return parts(ceil_div(n_out, BLOCK), ROWS // BLOCK)[:, None] * parts(ceil_div(n_in, BLOCK), WINDOW)


def sensitivity(weight: np.ndarray, importance: Importance | None, nonzeros: int = BLOCK) -> Sensitivity:
    """Losses of float[out, in], measured on a sample of its rows; without importance relative to the weights."""
    n_out, n_in = weight.shape
    counts = block_counts(n_out, n_in)
    losses = np.zeros((*counts.shape, len(OPTIONS)))
    energy = np.ones(n_in, np.float32) if importance is None else importance.energy
    gradient = np.ones(n_out, np.float32) if importance is None else importance.gradient
    norm = float(np.square(weight, dtype=np.float32).mean()) + 1e-30 if importance is None else 1.0
    for group in range(len(counts)):
        rows = np.arange(group * ROWS, min(n_out, (group + 1) * ROWS))
        sample = rows[:: max(1, len(rows) // SAMPLED_ROWS)]
        part = np.ascontiguousarray(weight[sample], np.float32)
        shape = (ceil_div(len(part), BLOCK), ceil_div(n_in, BLOCK))
        kept = np.full(shape, nonzeros, np.uint8)
        mask = keep_mask(scores(part, energy), kept)
        target = part if mask is None else part * mask
        for option, bits in enumerate(OPTIONS):
            q, c, _ = round_matrix(part, np.full(shape, bits, np.uint8), kept, mask, energy)
            error = (target - q * c[:, None]) ** 2 * energy
            each = (error * gradient[sample, None]).sum(0) * (len(rows) / len(sample)) / norm
            losses[group, :, option] = np.add.reduceat(each, np.arange(0, n_in, WINDOW * BLOCK))
    return Sensitivity(losses, counts)


def even_sensitivity(n_out: int, n_in: int) -> Sensitivity:
    """What weights of one distribution would give: error falls by 4 a bit. For synthetic weights, unread."""
    counts = block_counts(n_out, n_in)
    return Sensitivity(counts[..., None] * 4.0 ** -np.array(OPTIONS, float), counts)


def allocate(table: Mapping[str, Sensitivity], average: float) -> dict[str, np.ndarray]:
    """Precisions of every unit of choice, uint8[row groups, windows] by name: mean over the blocks at most `average`.

    The largest precision below the average is the least one given: below it errors are too large to add up.
    ValueError if `average` is not between the smallest and the largest precision.
    """
    if not OPTIONS[0] <= average <= OPTIONS[-1]:
        raise ValueError(f"an average of {average:g} bits is outside {OPTIONS[0]}..{OPTIONS[-1]}")
    options = np.array(OPTIONS)[max(0, np.searchsorted(OPTIONS, average) - 1) :]
    losses = np.concatenate([s.losses.reshape(-1, len(OPTIONS))[:, -len(options) :] for s in table.values()])
    blocks = np.concatenate([s.blocks.reshape(-1) for s in table.values()])
    pick = _choose(losses, blocks, options, average * blocks.sum())
    chosen, at = {}, 0
    for name, s in table.items():
        chosen[name] = options.astype(np.uint8)[pick[at : at + s.blocks.size]].reshape(s.blocks.shape)
        at += s.blocks.size
    return chosen


def _choose(losses: np.ndarray, blocks: np.ndarray, options: np.ndarray, budget: float) -> np.ndarray:
    """Option of every unit, int64[n], with least total losses[n, options] and bits * blocks[n] within the budget."""
    cost = options * blocks[:, None].astype(np.float64)
    every = np.arange(len(blocks))
    low, high = 0.0, float(losses.max() / blocks.min()) + 1.0
    for _ in range(200):
        price = (low + high) / 2
        if cost[every, (losses + price * cost).argmin(1)].sum() > budget:
            low = price
        else:
            high = price
    pick = (losses + high * cost).argmin(1)
    return _spend(losses, cost, pick, budget - cost[every, pick].sum())


def _spend(losses: np.ndarray, cost: np.ndarray, pick: np.ndarray, left: float) -> np.ndarray:
    """Use what the price left over: next precisions, best gain a bit first, as far as they fit."""
    every = np.arange(len(pick))
    scatter = every * 0.6180339887 % 1  # equals are spread over the model
    for _ in range(len(OPTIONS) * 4):
        following = np.minimum(pick + 1, cost.shape[1] - 1)
        price = cost[every, following] - cost[every, pick]
        gain = losses[every, pick] - losses[every, following]
        able = np.flatnonzero((price > 0) & (price <= left))
        order = able[np.lexsort((scatter[able], -gain[able] / price[able]))]
        taken = order[np.cumsum(price[order]) <= left]
        if not len(taken):
            break
        left -= price[taken].sum()
        pick[taken] += 1
    return pick


def spread(chosen: np.ndarray, n_out: int, n_in: int) -> np.ndarray:
    """Precisions of units of choice to those of blocks, uint8[ceil(out / 16), ceil(in / 16)]."""
    whole = np.repeat(np.repeat(chosen, ROWS // BLOCK, axis=0), WINDOW, axis=1)
    return whole[: ceil_div(n_out, BLOCK), : ceil_div(n_in, BLOCK)]
