"""One lane of the vector unit."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.spec import numerics as nm
from hw.spec.isa import CTL0, Add, Dst, Func, Mul1, Mul3, Reduce, Src, Tap
from hw.vector_arith import ROUND_SHIFT_LATENCY, SCALE, delayed, registered, round_shift, saturate, scale_operands
from hw.vector_tables import TABLE_LATENCY, SegmentTable

CONTROL = data.StructLayout({name: bits for name, bits, _ in CTL0})

# Stages: a value "at k" is valid k cycles after the operands are on the lane's ports.
SWAP = 2
MUL1 = 3
"""Operand registers of mul1; each product takes two cycles, three where it is 32 x 32 bits."""
MUL2 = MUL1 + 2 + ROUND_SHIFT_LATENCY
ADD = MUL2 + 2 + ROUND_SHIFT_LATENCY
FUNC = ADD + 1
SLOPE = FUNC + 1 + TABLE_LATENCY
GATE = SLOPE + 3
MUL3 = GATE + 2 + ROUND_SHIFT_LATENCY
MASK = MUL3 + 3 + ROUND_SHIFT_LATENCY
OUT_LATENCY = MASK + 2
REDUCE_LATENCY = MASK + 3


class VectorLane(wiring.Component):
    """Source select, mul1, mul2, add, func, mul3, clip; and what the lane gives to the reduction.

    Numeric contract: `hw.spec.vector.lane` and `contribution`, bit for bit. An invalid lane gives out 0 and the
    reduction's identity. A multiplier that a pass does not use multiplies by one.

    Latency: OUT_LATENCY to `out`, REDUCE_LATENCY to `contribution`. Throughput: one element a cycle. Row operands come
    when their stage needs them: `scale2` at MUL2 - 1, `r1` at ADD - 1, `scale3` at MUL3 - 2, `valid` at MASK,
    `square_shift` at MASK - 1; `a`, `p`, `v`, `r0` at 0. `control`, `adjust1` and `imm` are constant during a pass.

    Back-pressure: none. Reset: none; values without meaning pass through.

    Members: `swap_out` and `swap_in`: source operand to and from lane ^ 1, at SWAP.
    """

    control: In(CONTROL)
    adjust1: In(signed(8))
    imm: In(SCALE)
    a: In(signed(32))
    p: In(signed(32))
    v: In(signed(32))
    r0: In(signed(32))
    swap_in: In(signed(32))
    swap_out: Out(signed(32))
    scale2: In(SCALE)
    r1: In(signed(32))
    scale3: In(SCALE)
    valid: In(1)
    square_shift: In(5)
    out: Out(signed(32))
    contribution: Out(signed(32))

    def elaborate(self, platform):
        m = Module()
        self.ctl = data.View(CONTROL, registered(m, self.control, "ctl"))
        self.adjust = registered(m, self.adjust1, "adjust")
        a, p, v, r0 = (registered(m, getattr(self, name), f"{name}_1") for name in ("a", "p", "v", "r0"))
        sources = {Src.A: a, Src.V: v, Src.P: p, Src.R0: r0}
        x = registered(m, _choose(m, self.ctl.src, sources, signed(32), "source"), "x_source")
        m.d.comb += self.swap_out.eq(x)
        x = self._mul1(m, x, p)
        x = self._mul2(m, x)
        x = self._add(m, x, delayed(m, p, ADD - 1, "p"), v_add := delayed(m, v, ADD - 1, "v"))
        x = self._func(m, x)
        tapped = x
        x = self._mul3(m, x, delayed(m, v_add, MUL3 - 1 - ADD, "v_mul3"))
        self._out(m, x)
        self._reduce(m, x, delayed(m, tapped, MASK - MUL3, "tapped"))
        return m

    def _mul1(self, m, x, p):
        """x at SWAP, p at 1."""
        mantissa, shift = (
            registered(m, value, name)
            for value, name in zip(scale_operands(p, self.adjust), ("p_mantissa", "p_shift"), strict=True)
        )
        p = registered(m, p, "p_2")
        y, z = Signal(signed(17), reset_less=True), Signal(signed(16), reset_less=True)
        amount = Signal(7, reset_less=True)
        with m.Switch(self.ctl.mul1):
            with m.Case(Mul1.P):
                m.d.sync += [y.eq(mantissa), z.eq(0), amount.eq(shift)]
            with m.Case(Mul1.IMM):
                m.d.sync += [y.eq(self.imm.mantissa), z.eq(0), amount.eq(self.imm.shift)]
            with m.Case(Mul1.ROPE):
                m.d.sync += [y.eq(p[:16].as_signed()), z.eq(p[16:].as_signed()), amount.eq(nm.ROPE_FRAC)]
            with m.Default():
                m.d.sync += [y.eq(1), z.eq(0), amount.eq(0)]
        direct = registered(m, registered(m, x, "x_mul1") * y, "product_x")
        partner = registered(m, registered(m, self.swap_in, "x_partner") * z, "product_partner")
        product = registered(m, direct + partner, "product1")
        return round_shift(m, product, delayed(m, amount, 2, "amount1"), "mul1")

    def _mul2(self, m, x):
        scale = data.View(SCALE, registered(m, self.scale2, "scale2_reg"))
        product = delayed(m, x * scale.mantissa, 2, "product2")
        return round_shift(m, product, delayed(m, scale.shift, 2, "amount2"), "mul2")

    def _add(self, m, x, p, v):
        r1 = registered(m, self.r1, "r1_reg")
        term = _choose(m, self.ctl.add, {Add.V: v, Add.P: p, Add.SUB_R1: -r1}, signed(33), "term")
        return registered(m, saturate(x + term, 32), "added")

    def _func(self, m, x):
        """x at FUNC."""
        exponential = self.ctl.func == Func.EXP2
        # What the table gives is the result, and no factor.
        alone = exponential | (self.ctl.func == Func.SIGMOID)
        bare = (self.ctl.func == Func.NONE) | (self.ctl.func == Func.SIGMOID)
        m.submodules.table = table = SegmentTable()
        clamped = _clip(x, -nm.GATE_LIMIT, nm.GATE_LIMIT - 1)
        position = (clamped + nm.GATE_LIMIT)[:21]
        power = Mux(x < 0, x, 0)[:32].as_signed()
        down = nm.EXP2_FRAC - (power >> 16)
        fraction, amount = Signal(nm.GATE_SEGMENT_LOG2, reset_less=True), Signal(7, reset_less=True)
        chosen, segment = Signal(2, reset_less=True), Signal(8, reset_less=True)
        m.d.comb += [table.table.eq(chosen), table.segment.eq(segment)]
        m.d.sync += [
            chosen.eq(self.ctl.func - 1),  # SIGMOID wraps to SILU's
            segment.eq(Mux(exponential, power[8:16], position[nm.GATE_SEGMENT_LOG2 :])),
            fraction.eq(Mux(exponential, power[:8] << nm.GATE_SEGMENT_LOG2 - 8, position[: nm.GATE_SEGMENT_LOG2])),
            amount.eq(Mux(exponential, Mux(down > 31, 31, down), Mux(bare, 0, nm.FRAC))),
        ]
        low = delayed(m, table.low, 2, "low")
        step = delayed(m, table.slope * delayed(m, fraction, TABLE_LATENCY, "fraction"), 2, "step")
        value = Signal(len(low) + 1)
        m.d.comb += value.eq(low + (step >> nm.GATE_SEGMENT_LOG2))
        x = delayed(m, x, GATE - FUNC - 1, "x_func")
        operand, gate = Signal(signed(32), reset_less=True), Signal(signed(18), reset_less=True)
        m.d.sync += [
            operand.eq(Mux(alone, value, x)),
            gate.eq(Mux(alone | bare, 1, value)),
        ]
        product = delayed(m, operand * gate, 2, "product_func")
        return round_shift(m, product, delayed(m, amount, GATE - FUNC - 1 + 2, "amount_func"), "func")

    def _mul3(self, m, x, v):
        early = data.View(SCALE, registered(m, self.scale3, "scale3_early"))
        scale = data.View(SCALE, registered(m, early, "scale3_reg"))
        y = Signal(signed(32), name="y_mul3", reset_less=True)
        m.d.sync += y.eq(Mux(self.ctl.mul3 == Mul3.V, v, early.mantissa))
        product = delayed(m, x * y, 3, "product3")
        return round_shift(m, product, delayed(m, scale.shift, 3, "amount3"), "mul3")

    def _out(self, m, x):
        """x at MASK."""
        dst = self.ctl.dst
        planes = (dst == Dst.OBH) | (dst == Dst.OBL)
        small = self.ctl.clip8 | (dst == Dst.OB)
        low = Mux(planes, 0, Mux(small, -nm.ACT_MAX, nm.INT32_MIN))
        high = Mux(planes, nm.PROB_MAX, Mux(small, nm.ACT_MAX, nm.INT32_MAX))
        clipped = registered(m, _clip(x, low, high), "clipped")
        valid = registered(m, self.valid, "valid_out")
        result = Signal(signed(32))
        with m.If(dst == Dst.OBH):
            m.d.comb += result.eq((clipped + 128) >> 8)
        with m.Elif(dst == Dst.OBL):
            m.d.comb += result.eq(clipped[:8].as_signed())
        with m.Else():
            m.d.comb += result.eq(clipped)
        m.d.comb += self.out.eq(registered(m, Mux(valid, result, 0)[:32].as_signed(), "result_out"))

    def _reduce(self, m, x, func):
        """Both at MASK."""
        kind = self.ctl.reduce
        tapped = Signal(signed(32))
        m.d.comb += tapped.eq(Mux(self.ctl.tap == Tap.FUNC, func, x))
        shift = registered(m, self.square_shift, "square_shift_reg")
        small = registered(m, saturate(tapped >> shift, 16), "small")
        square = registered(m, small * small, "square")
        magnitude = Mux(tapped[-1], saturate(-tapped, 32), tapped)[:32].as_signed()
        linear = delayed(m, Mux(kind == Reduce.ABSMAX, magnitude, tapped)[:32].as_signed(), 2, "linear")
        valid = delayed(m, self.valid, 2, "valid_reduce")
        identity = Mux(kind == Reduce.MAX, nm.INT32_MIN, 0)
        contribution = Mux(valid, Mux(kind == Reduce.SUMSQ, square, linear), identity)[:32].as_signed()
        m.d.comb += self.contribution.eq(registered(m, contribution, "contributed"))


def _clip(x, low, high):
    return Mux(x < low, low, Mux(x > high, high, x))


def _choose(m, selector, values, shape, name):
    """values[selector], 0 where there is none."""
    chosen = Signal(shape, name=name)
    with m.Switch(selector):
        for code, value in values.items():
            with m.Case(code):
                m.d.comb += chosen.eq(value)
    return chosen
