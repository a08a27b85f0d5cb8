"""One DSP48E2 slice as a packed multiply-accumulate: the vendor's primitive, or the same in plain Amaranth."""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

# OPMODE = {W, Z, Y, X}: X and Y both select the multiplier, Z selects zero or the cascade input.
OPMODE_PRODUCT = 0b00_000_01_01
OPMODE_PRODUCT_PLUS_PCIN = 0b00_001_01_01
INMODE_A_PLUS_D = 0b00100
REGISTER_ENABLES = ("A1", "A2", "AD", "B1", "B2", "D", "M", "P", "CTRL")
REGISTER_RESETS = ("A", "B", "D", "M", "P", "CTRL")
UNUSED_BITS = ("CEC", "RSTC", "CEINMODE", "RSTINMODE", "CEALUMODE", "RSTALUMODE", "CECARRYIN", "RSTALLCARRYIN",
               "CARRYIN")


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
        super().__init__({
            "a": In(signed(27)), "d": In(signed(27)), "b": In(signed(18)), "cascade": In(1),
            "en": In(1, init=1), "clear": In(1),
            "pcin": In(signed(48)), "p": Out(signed(48)), "pcout": Out(signed(48)),
        })

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
        unused = {f"i_{name}": Const(0, 1) for name in UNUSED_BITS}
        m.submodules.slice = Instance(
            "DSP48E2",
            p_AREG=1, p_ACASCREG=1, p_BREG=self.stages, p_BCASCREG=self.stages, p_DREG=1, p_ADREG=self.stages - 1,
            p_MREG=1, p_PREG=1, p_CREG=1, p_OPMODEREG=1,
            p_INMODEREG=0, p_ALUMODEREG=0, p_CARRYINREG=0, p_CARRYINSELREG=0,
            p_AMULTSEL="AD", p_BMULTSEL="B", p_PREADDINSEL="A", p_A_INPUT="DIRECT", p_B_INPUT="DIRECT",
            p_USE_MULT="MULTIPLY", p_USE_SIMD="ONE48",
            i_CLK=ClockSignal(), i_A=a_port, i_B=self.b, i_C=Const(-1, 48), i_D=self.d, i_PCIN=self.pcin,
            i_OPMODE=Mux(self.cascade, Const(OPMODE_PRODUCT_PLUS_PCIN, 9), Const(OPMODE_PRODUCT, 9)),
            i_INMODE=Const(INMODE_A_PLUS_D, 5), i_ALUMODE=Const(0, 4), i_CARRYINSEL=Const(0, 3),
            o_P=self.p, o_PCOUT=self.pcout, **enables, **resets, **unused)
        return m

    def _behaviour(self):
        m = Module()

        def register(shape, source, name):
            q = Signal(shape, name=name, reset_less=True)
            with m.If(self.clear):
                m.d.sync += q.eq(0)
            with m.Elif(self.en):
                m.d.sync += q.eq(source)
            return q

        ad = Signal(signed(27))
        m.d.comb += ad.eq(register(signed(27), self.a, "a_reg") + register(signed(27), self.d, "d_reg"))
        b = register(signed(18), self.b, "b1")
        if self.stages == 2:
            ad, b = register(signed(27), ad, "ad_reg"), register(signed(18), b, "b2")
        product = register(signed(45), ad * b, "product")
        # A cleared OPMODE selects neither the multiplier nor the cascade, hence two bits.
        add_product = register(1, 1, "add_product")
        add_pcin = register(1, self.cascade, "add_pcin")
        total = Mux(add_product, product, 0) + Mux(add_pcin, self.pcin, 0)
        m.d.comb += [self.p.eq(register(signed(48), total, "p_reg")), self.pcout.eq(self.p)]
        return m
