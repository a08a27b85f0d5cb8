"""GPTQ in block formats (Frantar et al. 2022), with SparseGPT's update of the weights that stay (Frantar 2023).

Columns are rounded one after the other; the error of each is fed into those that follow, along the inverse Hessian of
the layer's squared output error, H = X^T X. Group scales are chosen from the updated weights when the order reaches the
group; rows' factors from the original ones, and refitted to the output error. Passes of coordinate descent follow
(QuantEase, Behdin et al. 2023): every level in turn becomes the best one for all others as they are.
"""

import numpy as np
import torch
from torch import Tensor

from .format import BlockFormat
from .rounding import TINY, Group, Result, best_scales, nearest_level, row_classes, row_factors

DAMPING = 0.01
"""Share of the mean diagonal added to the Hessian."""
PASSES = 2
"""Of coordinate descent."""


def damped(hessian: Tensor, damping: float = DAMPING) -> Tensor:
    """H + damping * mean(diag) * I; inputs that are always zero get a diagonal of that size."""
    mean = hessian.diagonal().mean().clamp(min=TINY)
    return hessian + torch.eye(len(hessian), dtype=hessian.dtype) * (mean * damping)


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse, float32: row j is column j's error feedback."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian.double()))
    return torch.linalg.cholesky(inverse, upper=True).float()


def column_order(groups: list[Group], energy: Tensor) -> tuple[list[int], np.ndarray]:
    """(order of the groups, inputs in the order of rounding): strong groups first, inside a group strong inputs first.

    Inputs in no group (their blocks have no non-zeros) come first: their error is fed into all others.
    """
    strength = [float(energy[g.columns].sum()) for g in groups]
    sequence = sorted(range(len(groups)), key=lambda i: -strength[i])
    inside = [groups[i].columns[np.argsort(-energy[groups[i].columns].numpy(), kind="stable")] for i in sequence]
    used = np.concatenate(inside) if inside else np.zeros(0, np.int64)
    missing = np.setdiff1d(np.arange(len(energy)), used)
    return sequence, np.concatenate([missing, used]).astype(np.int64)


def gptq(
    weight: np.ndarray, hessian: Tensor, bits: np.ndarray, nonzeros: np.ndarray, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, BlockFormat]:
    """Quantise float[out, in] with hessian float[in, in] of its inputs: (int8[out, in], c float64[out], format).

    bits, nonzeros: uint8[out_blocks, in_blocks]; mask: bool[out, in], weights that stay, None: all.
    """
    result = Result(weight.shape, bits, nonzeros)
    hessian = damped(hessian)
    for part in row_classes(bits, nonzeros, *weight.shape):
        w = torch.from_numpy(np.ascontiguousarray(weight[part.rows].T, np.float32))
        kept = None if mask is None else torch.from_numpy(np.ascontiguousarray(mask[part.rows].T))
        result.put(part, *_quantise_class(w, hessian, part.groups, kept))
    return result.packed()


def _quantise_class(
    original: Tensor, hessian: Tensor, groups: list[Group], mask: Tensor | None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(integers[in, rows], c[rows], scales of each group) of original[in, rows]."""
    energy = hessian.diagonal().float()
    sequence, order = column_order(groups, energy)
    factor = _inverse_factor(hessian[order][:, order])
    kept = None if mask is None else mask[order]
    w = original[order].clone()
    pruned = w if kept is None else w * kept
    place = np.argsort(order)
    c = row_factors(
        pruned, [Group(g.bits, g.nonzeros, np.sort(place[g.columns])) for g in groups], energy[order, None], kept
    )
    integers, scales = torch.zeros_like(w), [torch.zeros_like(c)] * len(groups)
    start = len(order) - sum(len(g.columns) for g in groups)
    _drop(w, factor, start)
    for index in sequence:
        group = groups[index]
        stop = start + len(group.columns)
        scales[index] = _round_group(w, integers, factor, (start, stop), c, group.bits, kept)
        start = stop
    integers, hessian = integers[place], hessian.float()
    c = _refit(original, integers, hessian, c)
    for _ in range(PASSES):
        _descend(original, integers, hessian, groups, scales, c, mask)
        c = _refit(original, integers, hessian, c)
    return integers, c, scales


def _inverse(step: Tensor) -> Tensor:
    """1 / step, 0 where it is 0."""
    return torch.where(step == 0, torch.zeros_like(step), 1 / torch.where(step == 0, torch.ones_like(step), step))


def _round_group(
    w: Tensor, integers: Tensor, factor: Tensor, span: tuple[int, int], c: Tensor, bits: int, kept: Tensor | None
) -> Tensor:
    """Round columns `span` of w[in, rows] in place, error fed into later ones; returns the group's scales[rows]."""
    start, stop = span
    part = slice(start, stop)
    diagonal = factor.diagonal()[part]
    mask = None if kept is None else kept[part]
    now = w[part] if mask is None else w[part] * mask
    scale = best_scales(now, c, bits, (1 / diagonal**2)[:, None], mask)[0]
    step = scale * c
    inverse = _inverse(step)
    errors = torch.empty_like(now)
    for j in range(start, stop):
        level = nearest_level(w[j] * inverse, bits)
        if kept is not None:
            level = level * kept[j]
        integers[j] = level * scale
        errors[j - start] = (w[j] - level * step) / factor[j, j]
        if j + 1 < stop:
            w[j + 1 : stop].addr_(factor[j, j + 1 : stop], errors[j - start], alpha=-1)
    w[stop:].addmm_(factor[part, stop:].T, errors, alpha=-1)
    return scale


def _drop(w: Tensor, factor: Tensor, count: int) -> None:
    """Feed the loss of the first `count` columns, which have no weights left, into all later ones."""
    for j in range(count):
        loss = w[j] / factor[j, j]
        w[j + 1 :].addr_(factor[j, j + 1 :], loss, alpha=-1)


def _descend(
    original: Tensor,
    integers: Tensor,
    hessian: Tensor,
    groups: list[Group],
    scales: list[Tensor],
    c: Tensor,
    mask: Tensor | None,
) -> None:
    """One pass of coordinate descent over integers[in, rows], in place: output error with fixed scales and factors."""
    slope = hessian @ (original - integers * c)
    for group, scale in zip(groups, scales, strict=True):
        part = group.columns
        local, corner, now = slope[part], hessian[part][:, part], integers[part]
        step = scale * c
        inverse = _inverse(step)
        kept, before = None if mask is None else mask[part], now.clone()
        for j in range(len(part)):
            level = nearest_level((now[j] * c + local[j] / corner[j, j]) * inverse, group.bits)
            if kept is not None:
                level = level * kept[j]
            chosen = level * scale
            local.addr_(corner[:, j], (chosen - now[j]) * c, alpha=-1)
            now[j] = chosen
        slope.addmm_(hessian[:, part], (now - before) * c, alpha=-1)
        integers[part] = now


def _refit(original: Tensor, integers: Tensor, hessian: Tensor, c: Tensor) -> Tensor:
    """Row factors c[rows] with the smallest output error for fixed integers[in, rows]."""
    product = hessian @ integers
    square = (integers * product).sum(0)
    fitted = (original * product).sum(0) / square.clamp(min=TINY)
    return torch.where((square > 0) & (fitted > 0), fitted, c)


def output_error(weight: np.ndarray, integers: np.ndarray, c: np.ndarray, hessian: Tensor) -> float:
    """Squared output error of int8 * c against float[out, in], relative to the output's square."""
    w = torch.from_numpy(np.ascontiguousarray(weight, np.float32)).double()
    error = w - torch.from_numpy(integers.astype(np.float64) * c[:, None])
    h = hessian.double()
    return float(((error @ h) * error).sum() / ((w @ h) * w).sum())
