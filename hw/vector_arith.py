"""Pieces of the vector unit's arithmetic: bit length, saturation, scales, the rounding shifter."""

from amaranth.hdl import *
from amaranth.lib import data

from hw.spec.numerics import INT32_MAX, INT32_MIN, MAX_SHIFT

ROUND_SHIFT_LATENCY = 3
SHIFT_BITS = 7
SCALE = data.StructLayout({"mantissa": signed(17), "shift": SHIFT_BITS})
"""A scale word made ready for a multiplier: signed mantissa and right shift, 0..64."""


def registered(m, value, name):
    """The value one cycle later."""
    value = Value.cast(value)
    register = Signal(value.shape(), name=name, reset_less=True)
    m.d.sync += register.eq(value)
    return register


def delayed(m, value, cycles, name):
    """The value some cycles later."""
    for cycle in range(cycles):
        value = registered(m, value, f"{name}_d{cycle + 1}")
    return value


def bit_length(value):
    """Number of bits of an unsigned value, 0 for 0; logarithmic depth."""
    if len(value) == 1:
        return value
    half = 1 << (len(value) - 1).bit_length() - 1
    low, high = value[:half], value[half:]
    return Mux(high.any(), half + bit_length(high), bit_length(low))


def non_negative(value):
    """clip(value, 0, largest) of a signed value."""
    return Mux(value[-1], 0, value[:-1])


def saturate(value, bits):
    """A signed value saturated to that many bits."""
    if len(value) <= bits:
        return value.as_signed()
    top = value[bits - 1 :]
    limit = Cat(~value[-1].replicate(bits - 1), value[-1])
    return Mux(top.all() | ~top.any(), value[:bits], limit).as_signed()


def scale_operands(word, adjust):
    """(mantissa, shift) of a scale word: signed mantissa, clip(exponent + adjust, 0, MAX_SHIFT)."""
    mantissa = Mux(word[24], -word[:16], word[:16])[:17].as_signed()
    shift = word[16:24].as_signed() + adjust
    return mantissa, Mux(shift < 0, 0, Mux(shift > MAX_SHIFT, MAX_SHIFT, shift[:6]))


def round_shift(m, product, shift, name):
    """sat32(rshift_round(product, shift)), ROUND_SHIFT_LATENCY cycles later.

    Half up is floor(floor(2x / 2**shift) / 2 + 1/2), so one fraction bit survives the two shifting stages. Overflow is
    found beside the increment, not behind it.
    """
    coarse = registered(m, Cat(C(0, 1), product).as_signed() >> Cat(C(0, 3), shift[3:]), f"{name}_coarse")
    fine = registered(m, coarse >> registered(m, shift[:3], f"{name}_fine_shift"), f"{name}_fine")
    top = fine[32:]
    rounded = Signal(signed(33), name=f"{name}_rounded")
    m.d.comb += rounded.eq(fine[1:33].as_signed() + fine[0])
    overflow = ~(top.all() | ~top.any()) | (rounded[32] ^ rounded[31])
    result = Signal(signed(32), name=name, reset_less=True)
    m.d.sync += result.eq(Mux(overflow, Mux(fine[-1], INT32_MIN, INT32_MAX), rounded[:32].as_signed()))
    return result
