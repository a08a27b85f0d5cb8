"""A DSP48E2 slice in the two ways it is used here: the vendor's primitive, or the same in plain Amaranth."""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

# OPMODE = {W, Z, Y, X}: X and Y both select the multiplier, Z selects zero, the cascade input, P or C.
OPMODE_PRODUCT = 0b00_000_01_01
OPMODE_PRODUCT_PLUS_PCIN = 0b00_001_01_01
OPMODE_PRODUCT_PLUS_P = 0b00_010_01_01
OPMODE_PRODUCT_PLUS_C = 0b00_011_01_01
INMODE_A = 0b00000
INMODE_A_PLUS_D = 0b00100
REGISTER_ENABLES = ("A1", "A2", "AD", "B1", "B2", "D", "M", "P", "CTRL")
REGISTER_RESETS = ("A", "B", "D", "M", "P", "CTRL")
UNUSED_BITS = ("CEINMODE", "RSTINMODE", "CEALUMODE", "RSTALUMODE", "CECARRYIN", "RSTALLCARRYIN", "CARRYIN")
UNREGISTERED = {f"p_{name}REG": 0 for name in ("INMODE", "ALUMODE", "CARRYIN", "CARRYINSEL")}
DIRECT = {
    "p_A_INPUT": "DIRECT",
    "p_B_INPUT": "DIRECT",
    "p_USE_MULT": "MULTIPLY",
    "p_USE_SIMD": "ONE48",
    "p_BMULTSEL": "B",
    "p_PREADDINSEL": "A",
}


def register(m, shape, source, name, *, en=1, clear=0):
    """A register of a slice: ``clear`` wins over ``en``, the clock domain's reset does not reach it."""
    q = Signal(shape, name=name, reset_less=True)
    with m.If(clear):
        m.d.sync += q.eq(0)
    with m.Elif(en):
        m.d.sync += q.eq(source)
    return q


def instance(**ports):
    """The vendor's slice; what its uses have in common is filled in."""
    unused = {f"i_{name}": Const(0, 1) for name in UNUSED_BITS}
    fixed = {"i_ALUMODE": Const(0, 4), "i_CARRYINSEL": Const(0, 3)}
    return Instance("DSP48E2", i_CLK=ClockSignal(), **UNREGISTERED, **DIRECT, **unused, **fixed, **ports)


class DSP48E2(wiring.Component):
    """``p = (a + d) * b``, plus ``pcin`` where ``cascade`` is set.

    Numeric contract: everything is signed; ``a + d`` wraps at 27 bits, ``p`` at 48 bits.

    Latency: ``latency`` cycles from ``a``, ``d``, ``b`` to ``p``: 3 with ``stages=1`` (registers A, M, P), 4 with
    ``stages=2`` (AD added and B doubled, inside the slice). ``pcin`` is added one cycle before ``p``, so
    a one-stage slice feeding a two-stage slice sums operands which arrive together. ``cascade`` has a register of its
    own and must trail the operands it belongs to by ``cascade_delay`` cycles. Throughput: one product a cycle.

    Back-pressure: ``en`` low freezes every register.

    Reset: ``clear`` zeroes every register, whatever ``en`` says. The clock domain's reset does not reach the slice.

    Parameters: ``stages``: 1 or 2 registers before the multiplier. ``primitive``: instantiate the vendor's DSP48E2
    (for synthesis, and for Verilog simulation with ``hw/verilog/dsp48e2.v``) rather than the behavioural model.

    Members: ``a``, ``d``, ``b``: operands; ``cascade``: add ``pcin``; ``p``: the result to the fabric; ``pcout``: the
    same on the dedicated cascade wire, which may drive nothing but the next slice's ``pcin``.
    """

    def __init__(self, *, stages=2, primitive=False):
        if stages not in (1, 2):
            raise ValueError(f"stages={stages}: a DSP48E2 here has 1 or 2 registers before its multiplier")
        self.stages = stages
        self.primitive = primitive
        super().__init__(
            {
                "a": In(signed(27)),
                "d": In(signed(27)),
                "b": In(signed(18)),
                "cascade": In(1),
                "en": In(1, init=1),
                "clear": In(1),
                "pcin": In(signed(48)),
                "p": Out(signed(48)),
                "pcout": Out(signed(48)),
            }
        )

    @property
    def latency(self):
        return self.stages + 2

    @property
    def cascade_delay(self):
        return self.latency - 2

    def elaborate(self, platform):
        return self._primitive() if self.primitive else self._behaviour()

    def _primitive(self):
        m = Module()
        a_port = Signal(signed(30))
        m.d.comb += a_port.eq(self.a)
        enables = {f"i_CE{name}": self.en for name in REGISTER_ENABLES}
        resets = {f"i_RST{name}": self.clear for name in REGISTER_RESETS}
        # C is unused: the vendor's guide asks for ones, registered and never enabled, to save power.
        m.submodules.slice = instance(
            p_AREG=1,
            p_ACASCREG=1,
            p_BREG=self.stages,
            p_BCASCREG=self.stages,
            p_DREG=1,
            p_ADREG=self.stages - 1,
            p_MREG=1,
            p_PREG=1,
            p_CREG=1,
            p_OPMODEREG=1,
            p_AMULTSEL="AD",
            i_A=a_port,
            i_B=self.b,
            i_C=Const(-1, 48),
            i_CEC=Const(0, 1),
            i_RSTC=Const(0, 1),
            i_D=self.d,
            i_PCIN=self.pcin,
            i_OPMODE=Mux(self.cascade, OPMODE_PRODUCT_PLUS_PCIN, Const(OPMODE_PRODUCT, 9)),
            i_INMODE=Const(INMODE_A_PLUS_D, 5),
            o_P=self.p,
            o_PCOUT=self.pcout,
            **enables,
            **resets,
        )
        return m

    def _behaviour(self):
        m = Module()

        def held(shape, source, name):
            return register(m, shape, source, name, en=self.en, clear=self.clear)

        ad = Signal(signed(27))
        m.d.comb += ad.eq(held(signed(27), self.a, "a_reg") + held(signed(27), self.d, "d_reg"))
        b = held(signed(18), self.b, "b1")
        if self.stages == 2:
            ad, b = held(signed(27), ad, "ad_reg"), held(signed(18), b, "b2")
        product = held(signed(45), ad * b, "product")
        # A cleared OPMODE selects neither the multiplier nor the cascade, hence two bits.
        add_product = held(1, 1, "add_product")
        add_pcin = held(1, self.cascade, "add_pcin")
        total = Mux(add_product, product, 0) + Mux(add_pcin, self.pcin, 0)
        m.d.comb += [self.p.eq(held(signed(48), total, "p_reg")), self.pcout.eq(self.p)]
        return m


class MultiplyAccumulate(wiring.Component):
    """``p = a * b``, plus ``c`` or the last ``p``: scales a sum and adds it to its total.

    Numeric contract: everything is signed; ``p`` wraps at 48 bits.

    Latency: ``latency`` = 3 cycles from ``a`` and ``b`` to ``p`` (registers A and B, M, P), 2 from ``c`` and
    ``addend``. Throughput: one a cycle. Back-pressure: none. Reset: none; every register is overwritten in every cycle.

    Parameters: ``primitive``: see :class:`DSP48E2`.

    Members: ``a``, ``b``, ``c``: operands; ``addend``: ``ZERO``, ``LAST`` (the ``p`` of the cycle before) or ``C``;
    ``p``.
    """

    latency = 3
    ZERO, LAST, C = range(3)

    def __init__(self, *, primitive=False):
        self.primitive = primitive
        super().__init__(
            {"a": In(signed(27)), "b": In(signed(18)), "c": In(signed(48)), "addend": In(2), "p": Out(signed(48))}
        )

    def elaborate(self, platform):
        return self._primitive() if self.primitive else self._behaviour()

    def _primitive(self):
        m = Module()
        a_port, opmode = Signal(signed(30)), Signal(9)
        modes = {self.ZERO: OPMODE_PRODUCT, self.LAST: OPMODE_PRODUCT_PLUS_P, self.C: OPMODE_PRODUCT_PLUS_C}
        m.d.comb += [a_port.eq(self.a), opmode.eq(Array(modes[n] for n in range(3))[self.addend])]
        enables = {f"i_CE{name}": Const(1, 1) for name in (*REGISTER_ENABLES, "C")}
        resets = {f"i_RST{name}": Const(0, 1) for name in (*REGISTER_RESETS, "C")}
        # D is unused: zeros, which its register keeps.
        m.submodules.slice = instance(
            p_AREG=1,
            p_ACASCREG=1,
            p_BREG=1,
            p_BCASCREG=1,
            p_DREG=1,
            p_ADREG=1,
            p_MREG=1,
            p_PREG=1,
            p_CREG=1,
            p_OPMODEREG=1,
            p_AMULTSEL="A",
            i_A=a_port,
            i_B=self.b,
            i_C=self.c,
            i_D=Const(0, 27),
            i_PCIN=Const(0, 48),
            i_OPMODE=opmode,
            i_INMODE=Const(INMODE_A, 5),
            o_P=self.p,
            **enables,
            **resets,
        )
        return m

    def _behaviour(self):
        m = Module()
        a, b = register(m, signed(27), self.a, "a_reg"), register(m, signed(18), self.b, "b_reg")
        product = register(m, signed(45), a * b, "product")
        c, addend = register(m, signed(48), self.c, "c_reg"), register(m, 2, self.addend, "addend_reg")
        p = Signal(signed(48), reset_less=True)
        m.d.sync += p.eq(product + Mux(addend == self.C, c, Mux(addend == self.LAST, p, 0)))
        m.d.comb += self.p.eq(p)
        return m
