"""Executable meaning of one vector-unit pass on plain integers or NumPy arrays.

A pass walks outer x mid rows of n_words words. Word i of row (o, m) reads, where the pass uses them,
A[a + o*a_out + m*a_mid + i], P[...], V[...] (word addresses), computes every lane and writes D. Lane l of
word i is valid while i*lanes + l < len0 + o*len_step; invalid lanes write 0 and do not reduce. Row operands
r0, r1 are entries {raw, fin} of the row-scalar file at r + o*r_out + m*r_mid; w addresses the entry a
reduction writes ({raw, fin} at the end of each (outer, mid) row, or of each outer row with level 1, then
at w + o*w_out). d counts words in VB and SB, 16-byte blocks in OB (a word fills lanes/16 blocks; the step
from word to word is lanes/16 blocks and d must be a multiple of it).
"""

from . import numerics as nm
from .isa import Add, Dst, Fin, Func, Mul1, Mul2, Mul3, Reduce, Row, Src, Tap


def row_value(kind, raw, fin):
    """The row operand read from an entry."""
    return {Row.RAW: lambda: raw, Row.SCALE: lambda: nm.to_scale(nm.clip(raw, 0, nm.INT32_MAX)), Row.FIN: lambda: fin}[
        kind
    ]()


def lane(ctl: dict, a, p, v, swap, r0, r1, imm0):
    """(out, tapped) of one lane (or arrays of lanes).

    ctl: unpacked ctl0 and ctl1. a, p, v: int32 lane operands (p as int32; scale and RoPE words alike).
    swap: the source operand of the lane's neighbour (lane ^ 1). r0, r1: values from `row_value`.
    """
    x = {Src.A: a, Src.V: v, Src.P: p, Src.R0: r0}[ctl["src"]]
    if ctl["mul1"] == Mul1.P:
        x = nm.mul_scale(x, p, ctl["adj1"])
    elif ctl["mul1"] == Mul1.IMM:
        x = nm.mul_scale(x, imm0, ctl["adj1"])
    elif ctl["mul1"] == Mul1.ROPE:
        x = nm.rope(x, swap, p)
    if ctl["mul2"] == Mul2.R0:
        x = nm.mul_scale(x, r0, ctl["adj2"])
    if ctl["add"] == Add.V:
        x = nm.sat32(x + v)
    elif ctl["add"] == Add.P:
        x = nm.sat32(x + p)
    elif ctl["add"] == Add.SUB_R1:
        x = nm.sat32(x - r1)
    if ctl["func"] in GATES:
        x = nm.gate(x, GATES[ctl["func"]])
    elif ctl["func"] == Func.SIGMOID:
        x = nm.gate_factor(x, nm.SILU_TABLE)
    elif ctl["func"] == Func.EXP2:
        x = nm.exp2_prob(x)
    after_func = x
    if ctl["mul3"] == Mul3.V:
        x = nm.multiply_shift(x, v, ctl["sh3"])
    elif ctl["mul3"] == Mul3.R1:
        x = nm.mul_scale(x, r1, ctl["adj2"])
    tapped = after_func if ctl["tap"] == Tap.FUNC else x
    if ctl["dst"] in (Dst.OBH, Dst.OBL):
        x = nm.split_planes(nm.clip(x, 0, nm.PROB_MAX))[ctl["dst"] == Dst.OBL]
    elif ctl["clip8"] or ctl["dst"] == Dst.OB:
        x = nm.to_int8(x)
    return x, tapped


GATES = {Func.SILU: nm.SILU_TABLE, Func.GELU: nm.GELU_TABLE, Func.QGELU: nm.QGELU_TABLE}


def contribution(kind, x, r0_raw):
    """What one valid lane adds to (or offers) the reduction."""
    if kind == Reduce.ABSMAX:
        return nm.clip(abs(x), 0, nm.INT32_MAX)
    if kind == Reduce.SUMSQ:
        small = nm.clip(x >> nm.square_shift(nm.clip(r0_raw, 0, nm.INT32_MAX)), -(1 << 15), (1 << 15) - 1)
        return small * small
    return x


def identity(kind) -> int:
    """Start value of a reduction."""
    return nm.INT32_MIN if kind == Reduce.MAX else 0


def finish(ctl: dict, total, r0_raw, imm1: int):
    """(raw, fin) of an entry from the 48-bit reduction total (saturated to 48 bits signed)."""
    fin, raw = ctl["fin"], nm.sat32(total)
    positive = nm.clip(raw, 0, nm.INT32_MAX)
    if fin == Fin.RECIP:
        return raw, nm.recip_scale(positive)
    if fin == Fin.QRECIP:
        return raw, nm.qrecip_scale(positive)
    if fin == Fin.RSQRT:
        shift = nm.square_shift(nm.clip(r0_raw, 0, nm.INT32_MAX))
        return raw, nm.rsqrt_scale(nm.clip(total, 0, (1 << 47) - 1), shift, imm1)
    if fin == Fin.MEAN:
        shift = nm.clip(nm.scale_exponent(imm1), 0, nm.MAX_SHIFT)
        return nm.sat32(nm.rshift_round(total * nm.scale_mantissa(imm1), shift)), raw * 0
    return raw, raw * 0
