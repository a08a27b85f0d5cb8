"""Walks a pass: addresses of every operand, valid lanes, row boundaries, and the checks of a descriptor."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.interfaces import BUFFER_ADDRESS_BITS, ERROR_BITS, descriptor_layout
from hw.spec.config import Config
from hw.spec.isa import CTL0, Dst, Error, Unit
from hw.spec.legal import USES
from hw.vector_arith import registered
from hw.vector_lane import CONTROL

OPERANDS = ("a", "p", "v", "d", "r0", "r1", "w")
ROW_OPERANDS = ("r0", "r1", "w")
"""Addresses and lengths are sums of fields modulo 2**32 (`hw.spec.legal`)."""


class VectorAddress(wiring.Component):
    """Walks outer x mid x words, one word a cycle, and checks descriptor and addresses.

    Numeric contract: the addresses of `hw.spec.vector`, modulo 2**32. Illegal enumerations, zero counts and operand
    blocks that are not at the start of a word are ILLEGAL_DESCRIPTOR. A buffer that the pass uses is BUFFER_RANGE when
    a word of it is beyond the end. w is checked with every word.

    Latency: word j's addresses are out in cycle s + 1 + j, `ok` one cycle later: no error up to and including this
    word.
    Throughput: one word a cycle. `stop` is high with the last word of all; a pass that leaves a buffer with word k
    stops at word k + 2 if it has one, an illegal one in s.

    Back-pressure: none. Reset: idle, no error. `error` stays until the next start.

    Parameters: config. Members: `active`: addresses are of a word; `first`, `last`: of the reduced row;
    `n_lanes`: valid lanes, 0..lanes.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "desc": In(descriptor_layout(Unit.VU)),
                "active": Out(1),
                "ok": Out(1),
                "stop": Out(1),
                "first": Out(1),
                "last": Out(1),
                "n_lanes": Out(range(config.lanes + 1)),
                **{f"{name}_addr": Out(BUFFER_ADDRESS_BITS) for name in OPERANDS},
                "error": Out(1),
                "error_code": Out(ERROR_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        self.ctl = data.View(CONTROL, self.desc.ctl0[: CONTROL.size])
        self._counters(m)
        for name in OPERANDS:
            self._operand(m, name)
        self._lanes(m)
        self._errors(m)
        return m

    def _counters(self, m):
        self.left = {name: Signal(32, name=f"{name}_left") for name in ("n_words", "n_mid", "n_outer")}
        word, mid, outer = self.left.values()
        self.illegal = self._illegal()
        self.row_end, self.mid_end, end = Signal(), Signal(), Signal()
        first_mid = Signal()
        m.d.comb += [
            self.row_end.eq(word == 1),
            self.mid_end.eq(self.row_end & (mid == 1)),
            end.eq(self.mid_end & (outer == 1)),
            self.stop.eq(Mux(self.active, end | self.error, self.start & self.illegal)),
        ]
        with m.If(self.active):
            m.d.sync += word.eq(Mux(self.row_end, self.desc.n_words, word - 1))
            with m.If(self.row_end):
                m.d.sync += [mid.eq(Mux(self.mid_end, self.desc.n_mid, mid - 1)), first_mid.eq(self.mid_end)]
            with m.If(self.mid_end):
                m.d.sync += outer.eq(outer - 1)
            with m.If(self.stop):
                m.d.sync += self.active.eq(0)
        with m.If(self.start):
            m.d.sync += [
                *(left.eq(self.desc[name]) for name, left in self.left.items()),
                self.active.eq(~self.illegal),
                first_mid.eq(1),
            ]
        row_start = Signal()
        with m.If(self.start | self.active):
            m.d.sync += row_start.eq(self.start | self.row_end)
        m.d.comb += [
            self.first.eq(row_start & (first_mid | ~self.ctl.level)),
            self.last.eq(Mux(self.ctl.level, self.mid_end, self.row_end)),
        ]

    def _operand(self, m, name):
        """One adder: the base of what goes on plus its step."""
        current = self[name]
        mid, outer = Signal(BUFFER_ADDRESS_BITS, name=f"{name}_mid"), Signal(BUFFER_ADDRESS_BITS, name=f"{name}_out")
        step = C(1, 32)
        if name in ROW_OPERANDS:
            step = C(0, 32)
        elif name == "d":
            to_operand_buffer = self.ctl.dst >= Dst.OB
            step = Mux(to_operand_buffer, self.config.granules_per_word, 1)
        base = Mux(self.mid_end, outer, Mux(self.row_end, mid, current))
        mid_step = self.desc[f"{name}_mid"]
        if name == "w":
            mid_step = Mux(self.ctl.level, 0, mid_step)
        step = Mux(self.mid_end, self.desc[f"{name}_out"], Mux(self.row_end, mid_step, step))
        following = (base + step)[:BUFFER_ADDRESS_BITS]
        with m.If(self.active):
            m.d.sync += current.eq(following)
            with m.If(self.row_end):
                m.d.sync += mid.eq(following)
            with m.If(self.mid_end):
                m.d.sync += outer.eq(following)
        with m.If(self.start):
            m.d.sync += [signal.eq(self.desc[name]) for signal in (current, mid, outer)]

    def __getitem__(self, name):
        return getattr(self, f"{name}_addr")

    def _lanes(self, m):
        lanes = self.config.lanes
        limit, left = Signal(BUFFER_ADDRESS_BITS), Signal(BUFFER_ADDRESS_BITS)
        following = (limit + self.desc.len_step)[:BUFFER_ADDRESS_BITS]
        many = left >= lanes
        m.d.comb += self.n_lanes.eq(Mux(many, lanes, left))
        with m.If(self.active):
            m.d.sync += left.eq(Mux(self.mid_end, following, Mux(self.row_end, limit, Mux(many, left - lanes, 0))))
            with m.If(self.mid_end):
                m.d.sync += limit.eq(following)
        with m.If(self.start):
            m.d.sync += [limit.eq(self.desc.len0), left.eq(self.desc.len0)]

    def _illegal(self):
        zero = Cat(self.desc[name] == 0 for name in self.left)
        beyond = Cat(
            self.ctl[name] >= len(kind) for name, bits, kind in CTL0 if kind is not int and len(kind) < 1 << bits
        )
        part_bits = self.config.granules_per_word.bit_length() - 1
        parts = Cat(self.desc[name][:part_bits] for name in ("d", "d_out", "d_mid"))
        return zero.any() | beyond.any() | (self.ctl.dst >= Dst.OB) & parts.any()

    def _errors(self, m):
        """Comparisons in the word's cycle, their result with `ok`."""
        ctl, config = self.ctl, self.config
        depths = {"a": config.ab_granules, "p": config.pb_granules, "v": config.vb_granules}
        used = {name: Cat(ctl[field] == value for field, value in uses).any() for name, uses in USES.items()}
        granules = config.granules_per_word
        beyond = [used[name] & (self[name] >= depth // granules) for name, depth in depths.items()]
        beyond += [used[name] & (self[name] >= config.rs_entries) for name in ROW_OPERANDS]
        d = self.d_addr
        beyond += [
            (ctl.dst == Dst.VB) & (d >= config.vb_granules // granules),
            (ctl.dst == Dst.SB) & (d >= config.sb_granules // granules),
            (ctl.dst >= Dst.OB) & (d >= config.ob_blocks),
        ]
        out_of_range = registered(m, Cat(beyond), "beyond").any()
        checked = registered(m, self.active, "checked")
        m.d.comb += self.ok.eq(checked & ~out_of_range & ~self.error)
        with m.If(checked & out_of_range & ~self.error):
            m.d.sync += [self.error.eq(1), self.error_code.eq(Error.BUFFER_RANGE)]
        with m.If(self.start):
            m.d.sync += [
                self.error.eq(self.illegal),
                self.error_code.eq(Mux(self.illegal, Error.ILLEGAL_DESCRIPTOR, 0)),
            ]
