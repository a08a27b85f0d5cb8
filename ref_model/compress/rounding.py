"""Rounding a matrix to a block format: integer group scales, one float factor a row, levels.

W[r, j] ~ c[r] * s[r, group(j)] * level: level * s is the INT8 weight. The search is over the integer s and a few c; its
measure is the squared error, weighted by an input channel's mean square where that is known.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hw.spec.config import BLOCK
from hw.spec.weights import MAX_SCALE, WINDOW

from .format import BlockFormat, group_blocks

LARGEST_LEVEL = {8: 127.0, 4: 7.5, 3: 7.0, 2: 3.0}
"""Magnitude that the largest weight of a group is put on before the search (4 bits: between -8 and 7)."""
CLIPS = (1.0, 0.93, 0.86, 0.79, 0.72, 0.65, 0.58, 0.5)
ROW_CLIPS = {8: (1.0,), 4: (1.0, 0.9, 0.8), 3: (1.0, 0.85, 0.7), 2: (0.9, 0.7, 0.55)}
QUICK_CLIP = {8: 1.0, 4: 0.92, 3: 0.8, 2: 0.6}
"""Used without a search, for matrices of more than QUICK_WEIGHTS weights."""
QUICK_WEIGHTS = 8 << 20
TINY = 1e-30


@dataclass(frozen=True)
class Group:
    """Inputs that share a row's scale. columns: int64[n], ascending."""

    bits: int
    nonzeros: int
    columns: np.ndarray


@dataclass(frozen=True)
class RowClass:
    """Output rows whose blocks have the same precisions and non-zeros. rows: int64[n]; groups: of their inputs."""

    rows: np.ndarray
    groups: list[Group]


def column_groups(bits: np.ndarray, nonzeros: np.ndarray, n_in: int) -> list[Group]:
    """Groups of one output block, bits and nonzeros uint8[in_blocks]; blocks without non-zeros are in none."""
    members: dict[tuple[int, int, int, int], list[int]] = {}
    for block, (b, n) in enumerate(zip(bits.tolist(), nonzeros.tolist(), strict=True)):
        if n:
            members.setdefault((block // WINDOW, b, n, block % WINDOW // group_blocks(b, n)), []).append(block)
    groups = []
    for (_, b, n, _), blocks in members.items():
        columns = (np.array(blocks)[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
        groups.append(Group(b, n, columns[columns < n_in]))
    return groups


def row_classes(bits: np.ndarray, nonzeros: np.ndarray, n_out: int, n_in: int) -> Iterator[RowClass]:
    """Every output row of a matrix, in classes that can be worked on together."""
    patterns, which = np.unique(np.concatenate([bits, nonzeros], axis=1), axis=0, return_inverse=True)
    for index, pattern in enumerate(patterns):
        blocks = np.flatnonzero(which.reshape(-1) == index)
        rows = (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
        yield RowClass(rows[rows < n_out], column_groups(pattern[: bits.shape[1]], pattern[bits.shape[1] :], n_in))


def nearest_level(x: Tensor, bits: int) -> Tensor:
    """Nearest level of every value."""
    if bits == 8:
        return x.round().clamp_(-127, 127)
    if bits == 4:
        return x.round().clamp_(-8, 7)
    top = (1 << bits) - 1
    return (x / 2).floor_().mul_(2).add_(1).clamp_(-top, top)


def rounded(w: Tensor, step: Tensor, bits: int) -> Tensor:
    """w[..., rows] rounded to levels times step[rows] (0 gives zeros)."""
    inverse = torch.where(step == 0, torch.zeros_like(step), 1 / torch.where(step == 0, torch.ones_like(step), step))
    return nearest_level(w * inverse, bits) * step


def _candidates(w: Tensor, c: Tensor, bits: int, clips: tuple[float, ...]) -> Iterator[Tensor]:
    """Integer scales[rows] worth trying for a group w[n, rows]."""
    peak = w.abs().amax(0) / LARGEST_LEVEL[bits] / c
    top = MAX_SCALE[bits]
    signs = (1, -1) if bits == 4 else (1,)
    for clip in clips:
        for sign in signs:
            yield (peak * clip).round().clamp_(0, top) * sign


def best_scales(
    w: Tensor,
    c: Tensor,
    bits: int,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    clips: tuple[float, ...] = CLIPS,
) -> tuple[Tensor, Tensor]:
    """(integer scales float[rows], their errors[rows]) of a group w[n, rows] with row factors c[rows].

    weights: [n, 1] or [n, rows] of the squared error; mask: bool[n, rows], weights that stay (others are 0 in w).
    """
    best = torch.ones_like(c)
    least = torch.full_like(c, torch.inf)
    options = [best] if bits == 8 else _candidates(w, c, bits, clips)
    for scale in options:
        error = rounded(w, scale * c, bits)
        error = error.sub_(w).square_() if mask is None else error.sub_(w).square_().mul_(mask)
        total = (error if weights is None else error * weights).sum(0)
        better = total < least
        best, least = torch.where(better, scale, best), torch.where(better, total, least)
    return best, least


def _row_factors(w: Tensor, groups: list[Group], clip: dict[int, float]) -> Tensor:
    """Smallest c[rows] with which every group of w[in, rows] reaches `clip` of its largest weight."""
    c = torch.full((w.shape[1],), TINY)
    for group in groups:
        reach = LARGEST_LEVEL[group.bits] * MAX_SCALE.get(group.bits, 1)
        c = torch.maximum(c, w[group.columns].abs().amax(0) * (clip[group.bits] / reach))
    return c


def row_factors(w: Tensor, groups: list[Group], weights: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """The c[rows] of w[in, rows] with the smallest error among a few."""
    trials = max((len(ROW_CLIPS[group.bits]) for group in groups), default=1)
    best, least = torch.full((w.shape[1],), TINY), torch.full((w.shape[1],), torch.inf)
    for trial in range(trials):
        c = _row_factors(w, groups, {bits: clips[min(trial, len(clips) - 1)] for bits, clips in ROW_CLIPS.items()})
        total = torch.zeros_like(c)
        for group in groups:
            part = group.columns
            total += best_scales(
                w[part],
                c,
                group.bits,
                None if weights is None else weights[part],
                None if mask is None else mask[part],
                CLIPS[::2],
            )[1]
        better = total < least
        best, least = torch.where(better, c, best), torch.where(better, total, least)
    return best


class Result:
    """A matrix being quantised: int8[out, in], factors c float64[out], and its format."""

    def __init__(self, shape: tuple[int, ...], bits: np.ndarray, nonzeros: np.ndarray) -> None:
        self.weight = np.zeros(shape, np.int8)
        self.c = np.full(shape[0], TINY)
        self.format = BlockFormat(bits, nonzeros, np.zeros((len(bits) * BLOCK, bits.shape[1]), np.int8))

    def put(self, part: RowClass, integers: Tensor, c: Tensor, scales: list[Tensor]) -> None:
        """Rows of a class: integers[in, rows], c[rows], scales[rows] of each group."""
        self.weight[part.rows] = integers.T.numpy().astype(np.int8)
        self.c[part.rows] = c.numpy()
        for group, scale in zip(part.groups, scales, strict=True):
            if group.bits < 8:
                blocks = np.unique(group.columns // BLOCK)
                self.format.scales[np.ix_(part.rows, blocks)] = scale.numpy().astype(np.int8)[:, None]

    def packed(self) -> tuple[np.ndarray, np.ndarray, BlockFormat]:
        return self.weight, self.c, self.format


def round_matrix(
    weight: np.ndarray,
    bits: np.ndarray,
    nonzeros: np.ndarray,
    mask: np.ndarray | None = None,
    energy: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, BlockFormat]:
    """Round float[out, in] to nearest: (int8[out, in], c float64[out], format), W ~ int8 * c.

    mask: bool[out, in], the weights kept (exactly `nonzeros` in every row of a block), None: all; energy: float[in],
    mean square of each input, the weight of its error.
    """
    result = Result(weight.shape, bits, nonzeros)
    weights = None if energy is None else torch.from_numpy(np.ascontiguousarray(energy, np.float32))[:, None]
    for part in row_classes(bits, nonzeros, *weight.shape):
        kept = None if mask is None else torch.from_numpy(np.ascontiguousarray(mask[part.rows].T))
        w = torch.from_numpy(np.ascontiguousarray(weight[part.rows].T, np.float32))
        w = w if kept is None else w * kept
        result.put(part, *_round_class(w, part.groups, weights, kept, weight.size > QUICK_WEIGHTS))
    return result.packed()


def _round_class(
    w: Tensor, groups: list[Group], weights: Tensor | None, mask: Tensor | None, quick: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(integers[in, rows], c[rows], scales of each group) of w[in, rows]."""
    c = _row_factors(w, groups, QUICK_CLIP) if quick else row_factors(w, groups, weights, mask)
    integers, scales = torch.zeros_like(w), []
    for group in groups:
        part = group.columns
        kept = None if mask is None else mask[part]
        if quick and group.bits < 8:
            peak = w[part].abs().amax(0) * QUICK_CLIP[group.bits] / LARGEST_LEVEL[group.bits]
            scale = (peak / c).round_().clamp_(0, MAX_SCALE[group.bits])
        else:
            scale = best_scales(w[part], c, group.bits, None if weights is None else weights[part], kept)[0]
        chosen = rounded(w[part] / c, scale, group.bits)
        integers[part] = chosen if kept is None else chosen * kept
        scales.append(scale)
    return integers, c, scales
