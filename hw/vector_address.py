"""Walks a pass: addresses of every operand, valid lanes, row boundaries, and the checks of a descriptor."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.interfaces import BUFFER_ADDRESS_BITS, ERROR_BITS, descriptor_layout
from hw.pipeline import copies
from hw.spec.config import Config
from hw.spec.isa import CTL0, Dst, Error, Unit
from hw.spec.legal import USES
from hw.vector_arith import registered
from hw.vector_lane import CONTROL

OPERANDS = ("a", "p", "v", "d", "r0", "r1", "w")
ROW_OPERANDS = ("r0", "r1", "w")
"""Addresses and lengths are sums of fields modulo 2**32 (`hw.spec.legal`)."""


WALK = data.StructLayout({"start": 1, "active": 1, "row_end": 1, "mid_end": 1})
"""What the counters say of a cycle; operands follow in the next one."""


class VectorAddress(wiring.Component):
    """Walks outer x mid x words, one word a cycle, and checks descriptor and addresses.

    Numeric contract: the addresses of `hw.spec.vector`, modulo 2**32. Illegal enumerations, zero counts and operand
    blocks that are not at the start of a word are ILLEGAL_DESCRIPTOR. A buffer that the pass uses is BUFFER_RANGE when
    a word of it is beyond the end. w is checked with every word.

    Latency: with `start` in t, word j's addresses are out in t + 2 + j, `ok` one cycle later: no error up to and
    including this word. `error` is high from t + 1 on for an illegal descriptor, else two cycles behind the addresses.
    Throughput: one word a cycle. `stop` is high a cycle before the last word's addresses, of an illegal pass in t.

    Back-pressure: none. Reset: idle, no error. `error` stays until the next start.

    Parameters: config. Members: `first`, `last`: of the reduced row; `n_lanes`: valid lanes, 0..lanes.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "desc": In(descriptor_layout(Unit.VU)),
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
        walk = self._counters(m)
        walks = [data.View(WALK, copy) for copy in copies(m, walk, len(OPERANDS) + 2, "walk", resets=True)]
        for name, own in zip(OPERANDS, walks, strict=False):
            self._operand(m, name, own)
        self._lanes(m, walks[-2])
        self._errors(m, walks[-1].active)
        return m

    def _counters(self, m):
        """The walk."""
        self.left = {name: Signal(32, name=f"{name}_left", reset_less=True) for name in ("n_words", "n_mid", "n_outer")}
        word, mid, outer = self.left.values()
        self.illegal = self._illegal()
        walk, first_mid = Signal(WALK), Signal()
        m.d.comb += [
            walk.start.eq(self.start),
            walk.row_end.eq(word == 1),
            walk.mid_end.eq(walk.row_end & (mid == 1)),
            self.stop.eq(Mux(walk.active, walk.mid_end & (outer == 1), self.start & self.illegal)),
        ]
        active = Signal()
        m.d.comb += walk.active.eq(active)
        with m.If(active):
            m.d.sync += word.eq(Mux(walk.row_end, self.desc.n_words, word - 1))
            with m.If(walk.row_end):
                m.d.sync += [mid.eq(Mux(walk.mid_end, self.desc.n_mid, mid - 1)), first_mid.eq(walk.mid_end)]
            with m.If(walk.mid_end):
                m.d.sync += outer.eq(outer - 1)
            with m.If(self.stop):
                m.d.sync += active.eq(0)
        with m.If(self.start):
            m.d.sync += [
                *(left.eq(self.desc[name]) for name, left in self.left.items()),
                active.eq(~self.illegal),
                first_mid.eq(1),
            ]
        row_start = Signal()
        with m.If(self.start | active):
            m.d.sync += row_start.eq(self.start | walk.row_end)
        m.d.sync += [
            self.first.eq(row_start & (first_mid | ~self.ctl.level)),
            self.last.eq(Mux(self.ctl.level, walk.mid_end, walk.row_end)),
        ]
        return walk

    def _operand(self, m, name, walk):
        """One adder: the base of what goes on plus its step."""
        current, mid, outer = (
            Signal(BUFFER_ADDRESS_BITS, name=f"{name}_{what}", reset_less=True) for what in ("now", "mid", "out")
        )
        m.d.comb += self[name].eq(current)
        step = C(1, 32)
        if name in ROW_OPERANDS:
            step = C(0, 32)
        elif name == "d":
            to_operand_buffer = self.ctl.dst >= Dst.OB
            step = Mux(to_operand_buffer, self.config.granules_per_word, 1)
        base = Mux(walk.mid_end, outer, Mux(walk.row_end, mid, current))
        mid_step = self.desc[f"{name}_mid"]
        if name == "w":
            mid_step = Mux(self.ctl.level, 0, mid_step)
        step = Mux(walk.mid_end, self.desc[f"{name}_out"], Mux(walk.row_end, mid_step, step))
        following = (base + step)[:BUFFER_ADDRESS_BITS]
        with m.If(walk.active):
            m.d.sync += current.eq(following)
            with m.If(walk.row_end):
                m.d.sync += mid.eq(following)
            with m.If(walk.mid_end):
                m.d.sync += outer.eq(following)
        with m.If(walk.start):
            m.d.sync += [signal.eq(self.desc[name]) for signal in (current, mid, outer)]

    def __getitem__(self, name):
        return getattr(self, f"{name}_addr")

    def _lanes(self, m, walk):
        lanes = self.config.lanes
        limit, left = (Signal(BUFFER_ADDRESS_BITS, name=name, reset_less=True) for name in ("limit", "left"))
        following = (limit + self.desc.len_step)[:BUFFER_ADDRESS_BITS]
        many = left >= lanes
        m.d.comb += self.n_lanes.eq(Mux(many, lanes, left))
        with m.If(walk.active):
            m.d.sync += left.eq(Mux(walk.mid_end, following, Mux(walk.row_end, limit, Mux(many, left - lanes, 0))))
            with m.If(walk.mid_end):
                m.d.sync += limit.eq(following)
        with m.If(walk.start):
            m.d.sync += [limit.eq(self.desc.len0), left.eq(self.desc.len0)]

    def _illegal(self):
        zero = Cat(self.desc[name] == 0 for name in self.left)
        beyond = Cat(
            self.ctl[name] >= len(kind) for name, bits, kind in CTL0 if kind is not int and len(kind) < 1 << bits
        )
        part_bits = self.config.granules_per_word.bit_length() - 1
        parts = Cat(self.desc[name][:part_bits] for name in ("d", "d_out", "d_mid"))
        return zero.any() | beyond.any() | (self.ctl.dst >= Dst.OB) & parts.any()

    def _errors(self, m, active):
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
        checked = Signal()  # reset: a pass that has failed may still walk when the next program starts
        m.d.sync += checked.eq(active)
        m.d.comb += self.ok.eq(checked & ~out_of_range & ~self.error)
        with m.If(checked & out_of_range & ~self.error):
            m.d.sync += [self.error.eq(1), self.error_code.eq(Error.BUFFER_RANGE)]
        with m.If(self.start):
            m.d.sync += [
                self.error.eq(self.illegal),
                self.error_code.eq(Mux(self.illegal, Error.ILLEGAL_DESCRIPTOR, 0)),
            ]
