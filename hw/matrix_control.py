"""What the matrix units do in which cycle: rounds to take, rows to multiply, sums to drain."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.accumulator import accumulator_rows, step_layout
from hw.interfaces import BUFFER_ADDRESS_BITS, descriptor_layout
from hw.round import ROUND_KIND
from hw.spec.config import Config
from hw.spec.isa import MxMode, Unit
from hw.spec.timing import ACC_SLOTS, FEW_ROWS, MX_ACC_LATENCY
from hw.spec.weights import WINDOW

"""Addresses are sums of fields modulo 2**32 (`hw.spec.legal`); walks stop at the first beyond its buffer."""
ROW_BITS = 32


class SlotWalk:
    """First accumulator row of one output step after the other: ACC_SLOTS or two places, as many rows as they have.

    ``few``: of many places; ``slots``: their number; ``base``: of the next step, which ``advance`` gives away.
    """

    def __init__(self, m, config: Config, desc, start, advance, name: str):
        rows = config.acc_rows
        self.few, self.slots, self.base = (
            Signal(name=f"{name}_few"),
            Signal(range(ACC_SLOTS + 1)),
            Signal(accumulator_rows(config), name=f"{name}_base"),
        )
        place = Signal(range(ACC_SLOTS), name=f"{name}_place")
        m.d.comb += [self.few.eq(desc.n_rows <= rows // FEW_ROWS), self.slots.eq(Mux(self.few, ACC_SLOTS, 2))]
        with m.If(start):
            m.d.sync += [place.eq(0), self.base.eq(0)]
        with m.Elif(advance):
            with m.If(place == self.slots - 1):
                m.d.sync += [place.eq(0), self.base.eq(0)]
            with m.Else():
                m.d.sync += [place.eq(place + 1), self.base.eq(self.base + Mux(self.few, 2 * rows // ACC_SLOTS, rows))]


class StepControl(wiring.Component):
    """Takes a round from every unit at once and runs its rows and passes.

    A dense round's steps are its rows, and for each its passes. A sparse round's are the pairs of rows, for each the
    passes, and for each both rows of the pair: ``token`` 0 and 1. The row behind an odd ``n_rows`` is a step (of
    ``busy_step``), but neither valid nor read.

    Latency: started in s, the first take is in s + 1 at the earliest; a round's steps are in the cycles after its
    take, ``n_rows * passes`` or ``2 * ceil(n_rows / 2) * passes`` of them, and the next take in the last of them at
    the earliest. Throughput: a step a cycle.

    Back-pressure: waits for ``full`` and, with the first round of an output step, for a place in the accumulators
    (``step_drained``). Reset: idle.

    Parameters: ``config``.

    Members: ``start``, ``desc``: an MX instruction; ``full``, ``rounds``, ``take``: every unit's next round;
    ``step``, ``step_valid``, ``act``, ``split``: work and the first operand block it needs; ``step_done``: the last
    cycle of an output step; ``step_drained``: its place is free; ``stop``: take nothing more; ``range_error``: ``act``
    is beyond the buffer in this cycle; ``header_error``: the round taken one cycle ago does not fit the instruction
    or its step's format, or the units' rounds each other: it has no steps; ``weight_stall``, ``drain_stall``: the unit
    waits in this cycle for ``full`` or for a place.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "desc": In(descriptor_layout(Unit.MX)),
                "stop": In(1),
                "full": In(1),
                "rounds": In(data.ArrayLayout(ROUND_KIND, config.units)),
                "take": Out(1),
                "step": Out(step_layout(config)),
                "step_valid": Out(1),
                "act": Out(range(config.ob_blocks)),
                "split": Out(1),
                "step_done": Out(1),
                "step_drained": In(1),
                "range_error": Out(1),
                "header_error": Out(1),
                "weight_stall": Out(1),
                "drain_stall": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        step = self.step
        row, last_row, place = Signal(ROW_BITS), Signal(ROW_BITS), Signal(accumulator_rows(self.config))
        busy, last_pass, pair_last, written, round_last = (
            Signal(name=name) for name in ("busy_step", "last_pass", "pair_last", "written", "round_last")
        )
        m.d.sync += last_row.eq(self.desc.n_rows - 1)
        m.d.comb += [
            self.split.eq(self.desc.mode == MxMode.SPLIT_K),
            last_pass.eq(step.pass_ == self.config.passes - 1),
            pair_last.eq(row[1:] == last_row[1:]),
            round_last.eq(last_pass & pair_last & Mux(step.sparse, step.token, row[0] == last_row[0])),
            written.eq(~(step.token & pair_last & ~last_row[0])),
            step.row.eq(place + row),
            step.token.eq(step.sparse & row[0]),
            self.step_valid.eq(busy & written),
        ]
        first, last, base, fits = self._take(m, busy, round_last, place)
        address = self._walk(m, base, busy, row, last_pass)

        ends = Signal()
        with m.If(busy & round_last):
            m.d.sync += busy.eq(0)
        with m.If(self.take):
            m.d.sync += [
                busy.eq(fits),
                self.header_error.eq(~fits),
                step.first.eq(first),
                ends.eq(last),
                step.sparse.eq(self.rounds[0].sparse),
            ]
        m.d.comb += [
            self.act.eq(address),
            self.range_error.eq(self.step_valid & (address >= self.config.ob_blocks)),
            self.step_done.eq(busy & round_last & ends),
        ]
        return m

    def _walk(self, m, base, busy, row, last_pass):
        """The operand address, and row and pass, from step to step of a round."""
        step = self.step
        address, pair, following = (Signal(BUFFER_ADDRESS_BITS, name=name) for name in ("address", "pair", "following"))
        m.d.comb += following.eq(address + self.desc.act_stride)
        with m.If(busy):
            with m.If(~step.sparse | step.token):
                m.d.sync += step.pass_.eq(Mux(last_pass, 0, step.pass_ + 1))
            with m.If(last_pass | (step.sparse & ~step.token)):
                m.d.sync += [row.eq(row + 1), address.eq(following)]
            with m.Elif(step.token):
                m.d.sync += [row.eq(row - 1), address.eq(pair)]
            with m.If(last_pass & step.token):
                m.d.sync += pair.eq(following)
        with m.If(self.take):
            m.d.sync += [row.eq(0), step.pass_.eq(0), address.eq(base), pair.eq(base)]
        return address

    def _take(self, m, busy, round_last, place):
        """When a round is taken, its place in its output step, its first act block, and whether it is right."""
        desc, kind = self.desc, self.rounds[0]
        active, want, free = Signal(), Signal(), Signal()
        in_use = Signal(range(ACC_SLOTS + 1))
        k, steps_left, outer_left = Signal(32), Signal(32), Signal(32)
        act, following, raw_base, window_base = (
            Signal(BUFFER_ADDRESS_BITS, name=name) for name in ("act_base", "next_act", "raw_base", "window_base")
        )
        first, last, fits, raw_step = Signal(), Signal(), Signal(), Signal()
        window = kind.window * WINDOW
        slots = SlotWalk(m, self.config, desc, self.start, self.take & first, "step")
        m.d.comb += [
            last.eq(Mux(kind.raw, k == desc.kb - 1, kind.last)),
            free.eq(~first | (in_use != slots.slots)),
            want.eq(active & ~self.stop & (~busy | round_last)),
            self.take.eq(want & self.full & free),
            self.weight_stall.eq(want & ~self.full),
            self.drain_stall.eq(want & self.full & ~free),
            window_base.eq(act + window),
            following.eq(act + desc.act_out),
            fits.eq(
                Cat(kind == each for each in self.rounds).all()
                & (first | (kind.raw == raw_step))
                & (kind.raw | (~self.split & (window < desc.kb)))
            ),
        ]
        m.d.sync += in_use.eq(in_use + (self.take & first) - self.step_drained)
        with m.If(self.take):
            m.d.sync += [k.eq(k + 1), raw_base.eq(raw_base + Mux(self.split, self.config.units, 1)), first.eq(last)]
            with m.If(first):
                m.d.sync += [place.eq(slots.base), raw_step.eq(kind.raw)]
            with m.If(last):
                m.d.sync += [k.eq(0), raw_base.eq(act), steps_left.eq(steps_left - 1)]
                with m.If(steps_left == 1):
                    m.d.sync += [act.eq(following), raw_base.eq(following), steps_left.eq(desc.ob)]
                    m.d.sync += [outer_left.eq(outer_left - 1), active.eq(outer_left != 1)]
        with m.If(self.start):
            m.d.sync += [active.eq(1), first.eq(1), k.eq(0), raw_base.eq(desc.act), act.eq(desc.act)]
            m.d.sync += [steps_left.eq(desc.ob), outer_left.eq(desc.n_outer)]
        return first, last, Mux(kind.raw, raw_base, window_base), fits


class DrainControl(wiring.Component):
    """Reads finished output steps out of the accumulators, row by row.

    Latency: a step done in t is drained from t + MX_ACC_LATENCY on (``drain`` itself is registered, a cycle later), or
    right after its predecessor. Throughput: a word of ``lanes`` a cycle (SPLIT_N), a granule a cycle (SPLIT_K).

    Back-pressure: none. Reset: idle.

    Parameters: ``config``.

    Members: ``start``, ``desc``: an MX instruction; ``step_done``: see :class:`StepControl`; ``drain``,
    ``drain_valid``: the row to read, a cycle late; ``group``, ``dst``: word of the row and its granule in the
    accumulator buffer, with ``drain``; ``step_drained``: the last drain cycle of a step, ``all_drained``: and of the
    instruction (in time); ``range_error``: ``dst`` is beyond the buffer (with ``drain``).
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "desc": In(descriptor_layout(Unit.MX)),
                "step_done": In(1),
                "drain": Out(accumulator_rows(config)),
                "drain_valid": Out(1),
                "group": Out(range(config.drain_cycles_a_row)),
                "dst": Out(range(config.ab_granules)),
                "step_drained": Out(1),
                "all_drained": Out(1),
                "range_error": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config, desc = self.config, self.desc
        split_k = desc.mode == MxMode.SPLIT_K
        line, ready = Signal(MX_ACC_LATENCY - 1), Signal(range(ACC_SLOTS + 1))
        m.d.sync += [line.eq(Cat(self.step_done, line)), ready.eq(ready + line[-1] - self.step_drained)]

        row, group, steps_left, outer_left = Signal(32), Signal.like(self.group), Signal(32), Signal(32)
        address, row_base, step_base, dst, next_step = (
            Signal(BUFFER_ADDRESS_BITS, name=name)
            for name in ("address", "row_base", "step_base", "dst_base", "next_step")
        )
        active, row_last, outer_last = Signal(), Signal(), Signal()
        slots = SlotWalk(m, config, desc, self.start, self.step_drained, "drain")
        m.d.comb += [
            active.eq(ready != 0),
            row_last.eq(split_k | (group == config.drain_cycles_a_row - 1)),
            self.step_drained.eq(active & row_last & (row == desc.n_rows - 1)),
            outer_last.eq(self.step_drained & (steps_left == 1)),
            self.all_drained.eq(outer_last & (outer_left == 1)),
            next_step.eq(Mux(outer_last, dst + desc.dst_out, step_base + Mux(split_k, 1, config.units))),
        ]
        with m.If(active):
            m.d.sync += [group.eq(group + 1), address.eq(address + config.granules_per_word)]
            with m.If(row_last):
                m.d.sync += [
                    group.eq(0),
                    row.eq(row + 1),
                    address.eq(row_base + desc.dst_stride),
                    row_base.eq(row_base + desc.dst_stride),
                ]
        with m.If(self.step_drained):
            m.d.sync += [
                row.eq(0),
                steps_left.eq(steps_left - 1),
                address.eq(next_step),
                row_base.eq(next_step),
                step_base.eq(next_step),
            ]
        with m.If(outer_last):
            m.d.sync += [steps_left.eq(desc.ob), outer_left.eq(outer_left - 1), dst.eq(next_step)]
        with m.If(self.start):
            m.d.sync += [
                row.eq(0),
                group.eq(0),
                steps_left.eq(desc.ob),
                outer_left.eq(desc.n_outer),
                dst.eq(desc.dst),
                address.eq(desc.dst),
                row_base.eq(desc.dst),
                step_base.eq(desc.dst),
            ]
        m.d.sync += [
            self.drain_valid.eq(active),
            self.drain.eq(slots.base + row),
            self.group.eq(group),
            self.dst.eq(address),
            self.range_error.eq(active & (address >= config.ab_granules)),
        ]
        return m
