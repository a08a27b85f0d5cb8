"""Pruning to N of 16: which weights of a block's row stay, and how many in which block.

Scores: magnitude |W|, or Wanda's |W| * ||X|| (Sun et al. 2023, A Simple and Effective Pruning Approach for LLMs).
"""

import numpy as np

from hw.spec.config import BLOCK
from hw.spec.weights import NONZEROS, WINDOW, ceil_div


def scores(weight: np.ndarray, energy: np.ndarray | None = None) -> np.ndarray:
    """float[out, in]: magnitudes, times the root mean square of each input where energy[in] (mean squares) is known."""
    return np.abs(weight) if energy is None else np.abs(weight) * np.sqrt(energy)


def keep_mask(score: np.ndarray, nonzeros: np.ndarray) -> np.ndarray | None:
    """bool[out, in]: the best `nonzeros` (uint8[out_blocks, in_blocks]) of every row of a block; None if all stay."""
    if (nonzeros == BLOCK).all():
        return None
    n_out, n_in = score.shape
    width = nonzeros.shape[1] * BLOCK
    padded = np.full((n_out, width), -1.0, np.float32)
    padded[:, :n_in] = score
    blocks = padded.reshape(n_out, -1, BLOCK)
    order = np.argsort(-blocks, axis=-1, kind="stable")
    kept = np.zeros(blocks.shape, bool)
    limits = np.repeat(nonzeros, BLOCK, axis=0)[:n_out, :, None]
    np.put_along_axis(kept, order, np.broadcast_to(np.arange(BLOCK) < limits, blocks.shape), axis=-1)
    return kept.reshape(n_out, width)[:, :n_in]


def _gains(score: np.ndarray, levels: list[int]) -> np.ndarray:
    """float64[out_blocks, in_blocks, len(levels)]: squared score kept with that many non-zeros a row."""
    n_out, n_in = score.shape
    rows, columns = ceil_div(n_out, BLOCK), ceil_div(n_in, BLOCK)
    padded = np.zeros((rows * BLOCK, columns * BLOCK))
    padded[:n_out, :n_in] = score.astype(np.float64) ** 2
    ordered = -np.sort(-padded.reshape(rows, BLOCK, columns, BLOCK), axis=-1)
    cumulative = np.concatenate([np.zeros((rows, BLOCK, columns, 1)), ordered.cumsum(-1)], axis=-1)
    return cumulative[..., levels].sum(axis=1)


def balanced_nonzeros(score: np.ndarray, average: float, units: int) -> np.ndarray:
    """Non-zeros uint8[out_blocks, in_blocks] of float scores[out, in], `average` of 16 or just below over the matrix.

    Output block b belongs to unit b mod units. In every window, the blocks of a step get the same multiset of non-zeros
    (the same work for every unit), each block in its own order: its best blocks get most.
    """
    levels = [0, *sorted(NONZEROS)]
    gains = _gains(score, levels)
    rows, columns, _ = gains.shape
    steps, windows = ceil_div(rows, units), ceil_div(columns, WINDOW)
    ranked, rank = _rank(gains[..., levels.index(BLOCK // 2)])
    # Gain of rank k of a window in a step: the sum over the step's blocks that hold this rank.
    table = np.zeros((steps, windows, WINDOW, len(levels)))
    size = np.zeros((steps, windows, WINDOW))
    for row in range(rows):
        for window in range(windows):
            part = ranked[row, window]
            present = np.flatnonzero(part < columns)
            table[row // units, window, present] += gains[row, part[present]]
            size[row // units, window, present] += 1
    chosen = _fill(table, size, np.array(levels), average)
    out = np.zeros((rows, columns), np.uint8)
    for column in range(columns):
        out[:, column] = chosen[np.arange(rows) // units, column // WINDOW, rank[:, column]]
    return out


def _rank(gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(blocks int[rows, windows, 8] by falling gain (missing ones: columns), place int[rows, columns] in it)."""
    rows, columns = gain.shape
    windows = ceil_div(columns, WINDOW)
    padded = np.full((rows, windows * WINDOW), -1.0)
    padded[:, :columns] = gain
    order = np.argsort(-padded.reshape(rows, windows, WINDOW), axis=-1, kind="stable")
    rank = np.argsort(order, axis=-1, kind="stable").reshape(rows, -1)[:, :columns]
    return np.minimum(order + np.arange(windows)[:, None] * WINDOW, columns), rank


def _fill(table: np.ndarray, size: np.ndarray, levels: np.ndarray, average: float) -> np.ndarray:
    """Non-zeros for every entry of size[...] blocks: largest total table[..., level] within the average (bisection on
    the price of a non-zero; gains are concave in the non-zeros because scores are sorted)."""
    low, high = 0.0, float(table.max()) + 1.0
    budget = average * size.sum()
    cost = levels * size[..., None]
    for _ in range(60):
        price = (low + high) / 2
        pick = (table - price * cost).argmax(axis=-1)
        if np.take_along_axis(cost, pick[..., None], -1).sum() > budget:
            low = price
        else:
            high = price
    return levels[(table - high * cost).argmax(axis=-1)].astype(np.uint8)
