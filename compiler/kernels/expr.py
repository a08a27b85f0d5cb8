"""Passes of the vector unit as expressions: what a lane computes, written as its formula.

The softmax of rows of scores, its probabilities times the scales of the values, as two planes of bytes::

    score = vec(scores).scaled(k_scale, KEY_ADJUST).scaled(queries.scale, QUERY_ADJUST)
    run(b, shape, length, score.max(top))
    power = (score - top.raw).exp2()
    weight = power.times(v_scale, VALUE_SHIFT)
    run(b, shape, length, weight.high(), to=high, reduce=power.sum(total, Fin.RECIP))
    run(b, shape, length, weight.low(), to=low)

A pass has each slot of `Slot` once, in that order, and one operand of a kind: one place in AB, PB and VB each, row
scalars r0 (source, MUL2) and r1 (ADD, MUL3), one adjust for MUL2 and MUL3. An expression that needs more is two passes;
it is refused where it is written, with what is taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from hw.spec.errors import InternalError
from hw.spec.isa import CTL1, Add, Dst, Fin, Func, Mul1, Mul2, Mul3, Reduce, Src, Tap, pack_bits

from .builder import At, Builder, Reg, Rows, Scalar, Value

PORTS = {"AB": "a", "PB": "p", "VB": "v"}
"""The operand of a pass that reads a buffer."""


class Slot(IntEnum):
    """The steps of a lane, in their order."""

    SOURCE = 0
    MUL1 = 1
    MUL2 = 2
    ADD = 3
    FUNC = 4
    MUL3 = 5
    CLIP = 6


def _joined(fields: Mapping[str, Any], more: Mapping[str, Any], user: str) -> dict[str, Any]:
    """Both sets of fields; InternalError where they differ about one."""
    for name, value in more.items():
        if name in fields and fields[name] != value:
            raise InternalError(f"field {name} of a vector pass is taken by {fields[name]}, {user} needs {value}")
    return {**fields, **more}


def _port(place: At, *allowed: str) -> str:
    """The operand that reads the place's buffer, which must be one of those allowed."""
    buffer = place.region.buffer
    if buffer not in allowed:
        raise InternalError(f"a vector pass reads {' or '.join(allowed)} here, {place.region.name} lies in {buffer}")
    return PORTS[buffer]


@dataclass(frozen=True)
class Expr:
    """What a lane holds behind `slot`, made of `before`; `fields` are the arguments of `Builder.vu_pass` for it."""

    slot: Slot
    fields: Mapping[str, Any]
    before: "Expr | None" = field(default=None, repr=False)

    def _then(self, slot: Slot, **fields: Any) -> "Expr":
        """The next expression, in a slot behind this one's."""
        if slot <= self.slot:
            raise InternalError(f"slot {self.slot.name} of a vector pass is taken, {slot.name} does not come behind it")
        return Expr(slot, _joined(self.fields, fields, f"slot {slot.name}"), self)

    def scaled(self, by: At | Scalar | Value, adjust: Value = 0) -> "Expr":
        """mul_scale by words in PB, by a constant scale word, or by a row scalar in the next of its two slots.

        A register as adjust of a row scalar holds it where ctl1 has it.
        """
        if isinstance(by, At):
            return self._then(Slot.MUL1, mul1=Mul1.P, adj1=adjust, **{_port(by, "PB"): by})
        if not isinstance(by, Scalar):
            return self._then(Slot.MUL1, mul1=Mul1.IMM, adj1=adjust, imm0=by)
        if self.slot < Slot.MUL2:
            return self._then(Slot.MUL2, mul2=Mul2.R0, adj2=adjust, r0=by.entries, row0=by.kind)
        return self._then(Slot.MUL3, mul3=Mul3.R1, adj2=adjust, r1=by.entries, row1=by.kind)

    def rotated(self, table: At) -> "Expr":
        """Pairs of lanes rotated by the words of a RoPE table in PB."""
        return self._then(Slot.MUL1, mul1=Mul1.ROPE, **{_port(table, "PB"): table})

    def __add__(self, other: At) -> "Expr":
        """Plus a vector in VB or PB, saturating."""
        port = _port(other, "VB", "PB")
        return self._then(Slot.ADD, add=Add.V if port == "v" else Add.P, **{port: other})

    def __sub__(self, other: Scalar) -> "Expr":
        """Minus a row scalar, saturating."""
        return self._then(Slot.ADD, add=Add.SUB_R1, r1=other.entries, row1=other.kind)

    def apply(self, func: Func) -> "Expr":
        """One of the functions that have tables."""
        return self._then(Slot.FUNC, func=func)

    def exp2(self) -> "Expr":
        """The probability 2**x of x <= 0."""
        return self.apply(Func.EXP2)

    def times(self, other: At, shift: int = 0) -> "Expr":
        """Times a vector in VB, / 2**shift."""
        return self._then(Slot.MUL3, mul3=Mul3.V, sh3=shift, **{_port(other, "VB"): other})

    def int8(self) -> "Expr":
        """Clipped to -127..127, wherever it goes; what goes to OB is clipped anyway."""
        return self._then(Slot.CLIP, clip8=1)

    def high(self) -> "Expr":
        """The high byte of a probability, for OB."""
        return self._then(Slot.CLIP, dst=Dst.OBH)

    def low(self) -> "Expr":
        """The low byte of a probability, for OB."""
        return self._then(Slot.CLIP, dst=Dst.OBL)

    def max(self, into: Rows, level: int = 0) -> "Reduction":
        """The largest value of a row; level 1: of all middle rows of an outer one."""
        return Reduction(self, {"reduce": Reduce.MAX, "w": into, "level": level})

    def absmax(self, into: Rows, level: int = 0) -> "Reduction":
        """The largest magnitude, with what quantises by it as fin; level as in `max`."""
        return Reduction(self, {"reduce": Reduce.ABSMAX, "fin": Fin.QRECIP, "w": into, "level": level})

    def sum(self, into: Rows, fin: Fin = Fin.NONE) -> "Reduction":
        """The sum of a row."""
        return Reduction(self, {"reduce": Reduce.SUM, "fin": fin, "w": into})

    def mean(self, into: Rows, word: int) -> "Reduction":
        """The sum of a row times a scale word."""
        return Reduction(self, {"reduce": Reduce.SUM, "fin": Fin.MEAN, "w": into, "imm1": word})

    def inverse_norm(self, into: Rows, absmax: Rows, epsilon: int) -> "Reduction":
        """1 / sqrt(sum of squares + epsilon) as fin; absmax: the row's largest magnitude, for the squares' shift."""
        return Reduction(self, {"reduce": Reduce.SUMSQ, "fin": Fin.RSQRT, "w": into, "r0": absmax, "imm1": epsilon})


@dataclass(frozen=True)
class Reduction:
    """What a pass collects along the rows of `of`; `fields` as those of `Expr`."""

    of: Expr
    fields: Mapping[str, Any]

    def tap(self, value: Expr) -> Tap:
        """Where a pass that writes `value` has this reduction's values."""
        last = value.before if value.slot == Slot.CLIP else value
        if self.of == last:
            return Tap.OUT
        if last is not None and last.slot == Slot.MUL3 and self.of == last.before:
            return Tap.FUNC
        raise InternalError("slot REDUCE of a vector pass takes what is written or what FUNC gave, not another value")


def vec(source: At | Scalar) -> Expr:
    """A vector in AB, VB or PB; or a row scalar in every lane."""
    if isinstance(source, Scalar):
        return Expr(Slot.SOURCE, {"src": Src.R0, "r0": source.entries, "row0": source.kind})
    port = _port(source, *PORTS)
    return Expr(Slot.SOURCE, {"src": Src[port.upper()], port: source})


def zero(entries: Rows) -> Expr:
    """Zero, whatever the entries hold."""
    return vec(entries.raw).scaled(0)


def run(
    b: Builder,
    shape: tuple[Value, Value, Value],
    length: Value,
    value: Expr | Reduction,
    *,
    to: At | None = None,
    reduce: Reduction | None = None,
    step: Value = 0,
) -> None:
    """One pass over shape = (outer, middle, words): `value` goes to `to`, what `reduce` collects to its entries.

    length: values of a row that count, `step` more in each outer row.
    """
    if isinstance(value, Reduction):
        reduce, value = value, value.of
    fields = value.fields
    if reduce is not None:
        fields = _joined(fields, {**reduce.fields, "tap": reduce.tap(value)}, "slot REDUCE")
    if isinstance(adjust := fields.get("adj2"), Reg):
        rest = {name: fields.get(name, 0) for name in ("adj1", "sh3")}
        fields = {name: each for name, each in fields.items() if name not in ("adj2", *rest)}
        fields["ctl1"] = adjust + pack_bits(CTL1, rest)
    b.vu_pass(shape, length, step=step, d=to, **fields)
