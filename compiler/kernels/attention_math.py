"""The arithmetic of attention (operators 6 to 8 of docs/machine.md): scores, softmax, planes, values.

Whoever calls it says where everything lies and which rows a pass takes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from hw.spec.attention import (
    HIGH_PLANE,
    KEY_ADJUST,
    LOW_PLANE,
    OUT_ADJUST,
    QUERY_ADJUST,
    VALUE_ADJUST,
    VALUE_REFERENCE,
    VALUE_SHIFT,
)
from hw.spec.isa import Fin

from .builder import At, Builder, Rows, Value
from .expr import Expr, run, vec

SHARE_FRAC = 24
"""Shares of attention are Q24, summed over the heads."""

Shape = tuple[Value, Value, Value]


@dataclass(frozen=True)
class Scores:
    """Rows of scores: their accumulators, the scales of keys, entries of queries, maxima and sums of probabilities."""

    sums: At
    k_scale: At
    query: Rows
    top: Rows
    total: Rows

    @property
    def score(self) -> Expr:
        """log2 of a probability times an unknown factor."""
        return vec(self.sums).scaled(self.k_scale, KEY_ADJUST).scaled(self.query.scale, QUERY_ADJUST)

    @property
    def power(self) -> Expr:
        """A probability times the row's total."""
        return (self.score - self.top.raw).exp2()


def value_scales(b: Builder, shape: Shape, length: Value, scales: At, to: At) -> None:
    """The scales of values, ready to multiply probabilities."""
    run(b, shape, length, vec(scales).scaled(VALUE_REFERENCE, VALUE_ADJUST), to=to)


def softmax(
    b: Builder, shape: Shape, length: Value, rows: Scores, v_scale: At, planes: Iterable[At], step: int = 0
) -> None:
    """Probabilities times the scales of values in two planes of bytes, with the totals.

    planes: places of the high and of the low bytes; the second is asked for when the first is written.
    """
    places, weight = iter(planes), rows.power.times(v_scale, VALUE_SHIFT)
    run(b, shape, length, rows.score.max(rows.top), step=step)
    run(b, shape, length, weight.high(), to=next(places), reduce=rows.power.sum(rows.total, Fin.RECIP), step=step)
    run(b, shape, length, weight.low(), to=next(places), step=step)


def low_sums(b: Builder, shape: Shape, length: Value, low: At, to: At) -> None:
    """Sums of values by the low plane, at their weight in `combine`."""
    run(b, shape, length, vec(low).scaled(LOW_PLANE), to=to)


def combine(
    b: Builder, shape: Shape, length: Value, high: At, low: At, total: Rows, to: At, entries: Rows | None = None
) -> None:
    """Sums of values by both planes, divided by the totals; entries: take the maxima of all heads of a token."""
    out = (vec(high).scaled(HIGH_PLANE) + low).scaled(total.fin, OUT_ADJUST)
    run(b, shape, length, out, to=to, reduce=out.absmax(entries, level=1) if entries else None)


def add_shares(b: Builder, shape: Shape, length: Value, rows: Scores, share: At, before: At, to: At) -> None:
    """Shares of attention plus those before; share: where they lie between the two passes."""
    run(b, shape, length, rows.power, to=share)
    run(b, shape, length, vec(share).scaled(rows.total.fin, -SHARE_FRAC) + before, to=to)
