"""What the host brings, in integers: rows, rotary tables, masks, keys and values of earlier runs."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hw.spec import numerics as nm
from hw.spec.errors import UserError
from hw.spec.rows import quantise_rows, rope_words

from . import steps as s
from .integers import Integers
from .steps import Array, Held
from .translate import fixed_rows
from .views import count

MASKED = -(1 << 30)
"""Added to scores (Q16, units of log2) of keys that a query may not see: their probabilities become 0."""
TABLE_LIMIT = 2 - 2.0**-nm.ROPE_FRAC
"""The largest cosine or sine, times factors, that a table word can hold."""


def feed(integers: Integers, value: Callable[[str], Array], lengths: Mapping[str, int]) -> dict[str, Any]:
    """Values of all steps that come from the host. value: a node of the graph -> its numbers, float or bool."""
    found: dict[str, Any] = {}
    for name, step in integers.steps.items():
        match step:
            case s.Input():
                found[name] = _rows(step, step.literal if step.literal is not None else value(step.node), lengths)
            case s.Kept():
                found[name] = step.layout.arrange(
                    fixed_rows(value(step.node).reshape(-1, step.layout.width), step.mult)
                )
            case s.Table():
                found[name] = _table(step, *(value(node) for node in step.nodes))
            case s.Mask():
                found[name] = _mask(step, value(step.node), lengths)
            case s.Past():
                found[name] = _past(step, value(step.node))
    return found


def _rows(step: s.Input, values: Array, lengths: Mapping[str, int]) -> Array:
    values = np.asarray(values, np.float64)
    if step.share:
        values = np.full(step.layout.width, values.shape[-1] / values.size)
    if step.shape is not None:
        values = np.broadcast_to(values, [count(size, lengths) for size in step.shape])
    if step.order is not None:
        values = values.transpose(step.order)
    if step.index is not None:
        rows = values.reshape(-1, step.layout.size)
        values = np.concatenate([rows, np.zeros((1, step.layout.size))])[step.index]
    rows = values.reshape(count(step.rows, lengths), step.layout.width)
    return step.layout.arrange(fixed_rows(rows, step.mult))


def _table(step: s.Table, cos: Array, sin: Array) -> Array:
    """int64[rows, 1, size] words: x[i] cos[i] - x[i + half] sin[i], and so on; channels behind `width` stay."""
    cos, sin = (np.asarray(part, np.float64).reshape(-1, part.shape[-1]) for part in (cos, sin))
    largest = max(float(np.abs(cos).max(initial=0)), float(np.abs(sin).max(initial=0)))
    if largest > TABLE_LIMIT:
        raise UserError(
            f"rotary table {step.nodes[0]}: a factor of {largest:.3f}, the machine's tables hold up to "
            f"{TABLE_LIMIT:.3f}"
        )
    size, width = step.layout.size, step.width
    c, sn = np.ones((len(cos), size)), np.zeros((len(cos), size))
    if step.style == "interleaved":
        cos, sin = np.repeat(cos, 2, axis=1), np.repeat(sin, 2, axis=1)
    signs = np.repeat([-1, 1], width // 2) if step.style == "half" else np.tile([-1, 1], width // 2)
    c[:, :width], sn[:, :width] = cos[:, :width], sin[:, :width] * signs
    return step.layout.arrange(rope_words(c, sn))


def _mask(step: s.Mask, mask: Array, lengths: Mapping[str, int]) -> Array:
    """int64[rows, heads or 1, keys]: 0 for keys that may be seen, `MASKED` for others; numbers that are added as they
    are."""
    shape = step.layout.groups, count(step.rows, lengths), count(step.keys_length, lengths)
    if mask.dtype == bool:
        added = np.where(mask, 0, MASKED)
    else:
        added = fixed_rows(np.clip(mask.astype(np.float64) * nm.LOG2_E, -(1 << 14), 1 << 14), 1.0)
    return np.broadcast_to(added, shape).transpose(1, 0, 2).astype(np.int64)


def _past(step: s.Past, past: Array) -> Held:
    """float[heads, n, d] -> keys or values as the machine would have written them."""
    layout = step.layout
    wide = fixed_rows(np.asarray(past, np.float64).reshape(layout.groups, -1, layout.size), step.mult).transpose(
        1, 0, 2
    )
    if layout.order is not None:
        wide = wide[..., list(layout.order)]
    if not len(wide):
        return Held(np.zeros(wide.shape, np.int8), np.zeros(wide.shape[:2], np.int64))
    rows, raw = quantise_rows(wide)
    return Held(rows, (nm.to_scale(raw) if step.key else raw)[..., 0])
