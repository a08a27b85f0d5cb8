"""The only definition of the machine's arithmetic.

Integers and fixed point throughout. Every function takes Python ints or NumPy int64 arrays alike (only
arithmetic operators and `clip` are used), so the golden model and the functional simulator execute
exactly these lines, and the RTL is tested against them.

Conventions
-----------
* *Wide* values are int32 fixed point with `FRAC` fraction bits (Q15.16) unless a step says otherwise.
* A *scale* is a 32-bit word: magnitude mantissa [15:0], signed exponent [23:16], sign [24]; its value is
  +-mantissa * 2**-exponent.
* One rounding rule: half up, i.e. floor(x / 2**s + 1/2). Every result saturates at its width.
"""

import math

FRAC = 16
MANTISSA_BITS = 16
MAX_SHIFT = 48
"""Shifting a 48-bit product right by this much always yields 0."""
MAX_PRODUCT_SHIFT = 64
"""Shifting the product of two int32 right by this much always yields 0."""
ACT_MAX = 127
PROB_MAX = 32639
"""Largest unnormalised probability: 256 * 127 + 127."""
INT32_MIN, INT32_MAX = -(1 << 31), (1 << 31) - 1
ROPE_FRAC = 14
GATE_SEGMENT_LOG2 = 13
"""A gate-table segment spans 2**13 of Q16: 1/8."""
GATE_LIMIT = 16 << FRAC
LOG2_E = math.log2(math.e)


def clip(x, lo, hi):
    """min(max(x, lo), hi) for ints and arrays."""
    return x.clip(lo, hi) if hasattr(x, "clip") else max(lo, min(hi, x))


def sat32(x):
    return clip(x, INT32_MIN, INT32_MAX)


def rshift_round(x, shift):
    """floor(x / 2**shift + 1/2), 0 <= shift <= 64: all but the last bit first, so that int64 holds every step."""
    some = shift > 0
    return ((x >> (shift - some)) + some) >> some


# --- scales -------------------------------------------------------------------------------------------


def pack_scale(mantissa, exponent, sign=0):
    """The 32-bit scale word for sign, mantissa 0..65535 and exponent -128..127."""
    return mantissa | ((exponent & 0xFF) << 16) | (sign << 24)


def scale_exponent(word):
    return (((word >> 16) & 0xFF) ^ 0x80) - 0x80


def scale_mantissa(word):
    """Signed mantissa, -65535..65535."""
    return (word & 0xFFFF) * (1 - 2 * ((word >> 24) & 1))


def scale_value(word: int) -> float:
    return scale_mantissa(word) * 2.0 ** -scale_exponent(word)


def encode_scale(value: float) -> int:
    """Nearest scale word of a real number (compile time only)."""
    if value == 0:
        return pack_scale(0, 0)
    fraction, exponent = math.frexp(abs(value))  # fraction in [0.5, 1)
    mantissa = round(fraction * (1 << MANTISSA_BITS))
    if mantissa == 1 << MANTISSA_BITS:
        mantissa, exponent = mantissa >> 1, exponent + 1
    shift = MANTISSA_BITS - exponent
    if shift > 127:
        return pack_scale(0, 0)
    if shift < -128:
        raise ValueError(f"scale {value} is above the format's largest, 2**144")
    return pack_scale(mantissa, shift, int(value < 0))


def mul_scale(x, word, adjust=0):
    """x * scale * 2**-adjust, rounded, saturated to int32. Shifts are clamped to 0..MAX_SHIFT.

    x: int32; word: scale word(s); adjust: int. Returns int32.
    """
    shift = clip(scale_exponent(word) + adjust, 0, MAX_SHIFT)
    return sat32(rshift_round(x * scale_mantissa(word), shift))


def bit_length(x):
    """Number of bits of x >= 0 (0 for 0), below 2**52."""
    if isinstance(x, int):
        return x.bit_length()
    import sys

    numpy = sys.modules["numpy"]
    return numpy.frexp(x.astype(numpy.float64))[1].astype(numpy.int64)


def to_scale(x):
    """Scale word of an integer 0 <= x < 2**48: the top 16 bits, the rest cut off."""
    up = bit_length(x) - MANTISSA_BITS
    mantissa = (x >> clip(up, 0, 63)) << clip(-up, 0, 63)
    return pack_scale(mantissa, (-up) * (x != 0))


def _divided(x, numerator, numerator_log2):
    """Scale word of numerator / 2**numerator_log2 / x; the mantissa saturates. 0 for x = 0."""
    word = to_scale(x)
    mantissa = word & 0xFFFF
    nonzero = x != 0
    quotient = clip(numerator // (mantissa + (1 - nonzero)), 0, 0xFFFF) * nonzero
    return pack_scale(quotient, (numerator_log2 - scale_exponent(word)) * nonzero)


RECIP_NUMERATOR = 1 << 31
QRECIP_NUMERATOR = ACT_MAX << 24


def recip_scale(x):
    """Scale word of 1 / x, x >= 0."""
    return _divided(x, RECIP_NUMERATOR, 31)


def qrecip_scale(x):
    """Scale word of 127 / x, x >= 0: turns a row whose absolute maximum is x into -127..127."""
    return _divided(x, QRECIP_NUMERATOR, 24)


def isqrt(x):
    """floor(sqrt(x)) for 0 <= x < 2**52."""
    if isinstance(x, int):
        return math.isqrt(x)
    import sys

    numpy = sys.modules["numpy"]
    return numpy.sqrt(x.astype(numpy.float64)).astype(numpy.int64)


def square_shift(absmax):
    """Right shift that brings |x| <= absmax below 2**15, so that squares fit 30 bits."""
    return clip(bit_length(absmax) - 15, 0, 31)


def rsqrt_scale(sum_squares, shift, epsilon=0):
    """Scale word of 1 / sqrt(sum_squares * 2**(2*shift) + epsilon).

    sum_squares < 2**47: sum of (x >> shift)**2; shift from `square_shift`; epsilon: integer in units of
    squared raw values, below 2**32. The sum is brought to [2**30, 2**32) by an even shift, its integer
    square root divided into 2**31. 0 gives 0.
    """
    total = sum_squares + (epsilon >> clip(2 * shift, 0, 62))
    half = (bit_length(total) - 31) >> 1  # floor: total >> 2*half lies in [2**30, 2**32)
    v = (total >> clip(2 * half, 0, 62)) << clip(-2 * half, 0, 62)
    nonzero = total != 0
    root = isqrt(v) + (1 - nonzero)
    mantissa = clip(RECIP_NUMERATOR // root, 0, 0xFFFF) * nonzero
    return pack_scale(mantissa, (31 + half + shift) * nonzero)


# --- table functions ----------------------------------------------------------------------------------


def _gate_table(gate):
    return tuple(round(gate((i - 128) / 8) * (1 << FRAC)) for i in range(257))


def _sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


SILU_TABLE = _gate_table(_sigmoid)
GELU_TABLE = _gate_table(lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2))))
QGELU_TABLE = _gate_table(lambda x: _sigmoid(1.702 * x))
EXP2_FRAC = 4
"""Fraction bits the exponential keeps until its final rounding."""
EXP2_TABLE = tuple(round(PROB_MAX * 2**EXP2_FRAC * 2 ** (i / 256)) for i in range(257))


def take(table, index):
    """table[index] for an int or an int64 array of indices."""
    if isinstance(index, int):
        return table[index]
    import sys

    numpy = sys.modules["numpy"]
    return numpy.asarray(table, dtype=numpy.int64)[index]


def gate_factor(x, table):
    """The interpolated gate g(x) in 0..1, clamped outside -16..16. int32 Q16 -> Q16."""
    clamped = clip(x, -GATE_LIMIT, GATE_LIMIT - 1) + GATE_LIMIT
    index = clamped >> GATE_SEGMENT_LOG2
    low, high = take(table, index), take(table, index + 1)
    fraction = clamped & ((1 << GATE_SEGMENT_LOG2) - 1)
    return low + (((high - low) * fraction) >> GATE_SEGMENT_LOG2)


def gate(x, table):
    """x * g(x), g from `gate_factor`. int32 Q16 -> int32 Q16."""
    return sat32(rshift_round(x * gate_factor(x, table), FRAC))


def exp2_prob(x):
    """2**x scaled to 0..PROB_MAX for x <= 0 in Q16 (positive x is taken as 0)."""
    x = clip(x, INT32_MIN, 0)
    fraction = x & 0xFFFF
    index = fraction >> 8
    low, high = take(EXP2_TABLE, index), take(EXP2_TABLE, index + 1)
    mantissa = low + (((high - low) * (fraction & 0xFF)) >> 8)
    return rshift_round(mantissa, clip(EXP2_FRAC - (x >> 16), 0, 31))


def split_planes(p):
    """(h, l) int8 with p = 256 h + l, for 0 <= p <= PROB_MAX; l in -128..127."""
    low = ((p + 128) & 255) - 128
    return (p - low) >> 8, low


def rope(x, partner, table_word):
    """x * cos + partner * sin, the table word holding cos [15:0] and sin [31:16] in Q1.14.

    Even lanes carry sin negated, so lane 2j is the first and 2j+1 the second half of a rotation pair.
    """
    cos = ((table_word & 0xFFFF) ^ 0x8000) - 0x8000
    sin = (((table_word >> 16) & 0xFFFF) ^ 0x8000) - 0x8000
    return sat32(rshift_round(x * cos + partner * sin, ROPE_FRAC))


def rope_word(angle: float, odd: bool) -> int:
    """Table word of one lane; odd lanes add +sin, even ones -sin."""
    one = 1 << ROPE_FRAC
    sin = round(math.sin(angle) * one) * (1 if odd else -1)
    return (round(math.cos(angle) * one) & 0xFFFF) | ((sin & 0xFFFF) << 16)


def multiply_shift(x, y, shift):
    """x * y / 2**shift, rounded, saturated to int32 (x, y int32). Shifts are clamped to MAX_PRODUCT_SHIFT."""
    return sat32(rshift_round(x * y, clip(shift, 0, MAX_PRODUCT_SHIFT)))


def to_int8(x):
    return clip(x, -ACT_MAX, ACT_MAX)
