"""Selection of visual tokens by the class token's attention, in integers (operator 12 of docs/machine.md)."""

import numpy as np

from hw.spec import numerics as nm
from ref_model.selection import grid_side, items

from .operators import Array, importance, probabilities


def class_attention(q: Array, q_raw: Array, k: Array, k_raw: Array) -> Array:
    """What the class token (row 0) gives every patch, summed over the heads: int64[n - 1] Q24.

    q, k: int8[n, heads, hd]; q_raw, k_raw: int64[n, heads, 1]. The mean over the heads ranks the same.
    """
    total, limit = np.zeros(len(k), np.int64), np.full((1, 1), len(k))
    for h in range(k.shape[1]):
        keys = k[:, h], nm.to_scale(k_raw[:, h, 0])
        total = nm.sat32(total + importance(probabilities(q[:1, h], q_raw[:1, h], keys, limit, None))[0])
    return total[1:]


def strongest(values: Array, count: int) -> list[int]:
    """Places of the `count` largest values, ascending; of equal ones the first."""
    return sorted(np.argsort(-values, kind="stable")[:count].tolist())


def survivors(saliency: Array, keep: int | None, strategy: str) -> list[int]:
    """Patches that survive: the strongest ones, or all of the strongest rows of the grid (strategy row)."""
    count, span = items(keep, strategy, len(saliency))
    if not count:
        return list(range(len(saliency)))
    if span == 1:
        return strongest(saliency, count)
    rows = strongest(saliency.reshape(-1, grid_side(len(saliency))).sum(axis=1), count)
    return [row * span + column for row in rows for column in range(span)]
