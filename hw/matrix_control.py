"""What the matrix units do in which cycle: blocks to take, rows to multiply, sums to drain."""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.accumulator import drain_layout, step_layout
from hw.interfaces import descriptor_layout
from hw.spec.config import Config
from hw.spec.isa import MxMode, Unit
from hw.spec.timing import MX_ACC_LATENCY

ADDRESS_BITS = 33
"""An address in its buffer plus one 32-bit stride: walks stop at the first that is beyond."""
BANKS = 2


class StepControl(wiring.Component):
    """Takes a block from every unit at once and runs its rows and passes.

    Latency: started in s, the first take is in s + 1 at the earliest; a block's steps are in the ``n_rows * passes``
    cycles after its take, and the next take in the last of them at the earliest. Throughput: a step a cycle.

    Back-pressure: waits for ``full`` and, with the first block of an output step, for a bank (``step_drained``).
    Reset: idle.

    Parameters: ``config``.

    Members: ``start``, ``desc``: an MX instruction; ``full``, ``take``: the blocks; ``step``, ``step_valid``, ``act``,
    ``split``: work and the operand block it needs; ``step_done``: the last cycle of an output step; ``step_drained``:
    its bank is free; ``stop``: take nothing more; ``range_error``: ``act`` is beyond the buffer in this cycle;
    ``weight_stall``, ``drain_stall``: the unit waits in this cycle for ``full`` or for a bank.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "start": In(1), "desc": In(descriptor_layout(Unit.MX)), "stop": In(1), "full": In(1), "take": Out(1),
            "step": Out(step_layout(config)), "step_valid": Out(1), "act": Out(range(config.ob_blocks)),
            "split": Out(1),
            "step_done": Out(1), "step_drained": In(1), "range_error": Out(1),
            "weight_stall": Out(1), "drain_stall": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        desc, step = self.desc, self.step
        last_row, last_pass, block_last = Signal(32), Signal(), Signal()
        m.d.comb += [
            last_pass.eq(step.pass_ == self.config.passes - 1),
            block_last.eq(last_pass & (step.row == last_row)),
            self.split.eq(desc.mode == MxMode.SPLIT_K),
        ]
        m.d.sync += last_row.eq(desc.n_rows - 1)
        first, last, base = self._take(m, block_last)

        address = Signal(ADDRESS_BITS)
        step_ends = Signal()
        with m.If(self.step_valid):
            m.d.sync += step.pass_.eq(Mux(last_pass, 0, step.pass_ + 1))
            with m.If(last_pass):
                m.d.sync += [step.row.eq(step.row + 1), address.eq(address + desc.act_stride)]
            with m.If(block_last):
                m.d.sync += self.step_valid.eq(0)
        with m.If(self.take):
            m.d.sync += [
                self.step_valid.eq(1), step.row.eq(0), step.pass_.eq(0), step.first.eq(first), step_ends.eq(last),
                address.eq(base),
            ]
            with m.If(first):
                m.d.sync += step.bank.eq(~step.bank)
        m.d.comb += [
            self.act.eq(address), self.range_error.eq(self.step_valid & (address >= self.config.ob_blocks)),
            self.step_done.eq(self.step_valid & block_last & step_ends),
        ]
        with m.If(self.start):
            m.d.sync += step.bank.eq(1)
        return m

    def _take(self, m, block_last):
        """When a block is taken, its place in its output step, and its first act block."""
        desc = self.desc
        stride = Mux(self.split, self.config.units, 1)
        busy, want, bank_free = Signal(), Signal(), Signal()
        in_use = Signal(range(BANKS + 1))
        k, steps_left = Signal(32), Signal(32)
        base = Signal(ADDRESS_BITS)
        first, last = Signal(), Signal()
        m.d.comb += [
            first.eq(k == 0), last.eq(k == desc.kb - 1), bank_free.eq(~first | (in_use != BANKS)),
            want.eq(busy & ~self.stop & (~self.step_valid | block_last)),
            self.take.eq(want & self.full & bank_free),
            self.weight_stall.eq(want & ~self.full), self.drain_stall.eq(want & self.full & ~bank_free),
        ]
        m.d.sync += in_use.eq(in_use + (self.take & first) - self.step_drained)
        with m.If(self.take):
            m.d.sync += [k.eq(k + 1), base.eq(base + stride)]
            with m.If(last):
                m.d.sync += [k.eq(0), base.eq(desc.act), steps_left.eq(steps_left - 1)]
                with m.If(steps_left == 1):
                    m.d.sync += busy.eq(0)
        with m.If(self.start):
            m.d.sync += [busy.eq(1), k.eq(0), base.eq(desc.act), steps_left.eq(desc.ob)]
        return first, last, base


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
        super().__init__({
            "start": In(1), "desc": In(descriptor_layout(Unit.MX)), "step_done": In(1),
            "drain": Out(drain_layout(config)), "drain_valid": Out(1), "group": Out(range(config.drain_cycles_a_row)),
            "dst": Out(range(config.ab_granules)), "step_drained": Out(1), "all_drained": Out(1), "range_error": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config, desc = self.config, self.desc
        split_k = desc.mode == MxMode.SPLIT_K
        line, ready = Signal(MX_ACC_LATENCY - 1), Signal(range(BANKS + 1))
        m.d.sync += [line.eq(Cat(self.step_done, line)), ready.eq(ready + line[-1] - self.step_drained)]

        row, group, bank, steps_left = Signal(32), Signal.like(self.group), Signal(), Signal(32)
        address, row_base, step_base = (
            Signal(ADDRESS_BITS, name=name) for name in ("address", "row_base", "step_base")
        )
        active, row_last, next_step = Signal(), Signal(), Signal(ADDRESS_BITS)
        m.d.comb += [
            active.eq(ready != 0), row_last.eq(split_k | (group == config.drain_cycles_a_row - 1)),
            self.step_drained.eq(active & row_last & (row == desc.n_rows - 1)),
            self.all_drained.eq(self.step_drained & (steps_left == 1)),
            next_step.eq(step_base + Mux(split_k, 1, config.units)),
        ]
        with m.If(active):
            m.d.sync += [group.eq(group + 1), address.eq(address + config.granules_per_word)]
            with m.If(row_last):
                m.d.sync += [
                    group.eq(0), row.eq(row + 1),
                    address.eq(row_base + desc.dst_stride), row_base.eq(row_base + desc.dst_stride),
                ]
        with m.If(self.step_drained):
            m.d.sync += [
                row.eq(0), bank.eq(~bank), steps_left.eq(steps_left - 1),
                address.eq(next_step), row_base.eq(next_step), step_base.eq(next_step),
            ]
        with m.If(self.start):
            m.d.sync += [
                row.eq(0), group.eq(0), bank.eq(0), steps_left.eq(desc.ob),
                address.eq(desc.dst), row_base.eq(desc.dst), step_base.eq(desc.dst),
            ]
        m.d.sync += [
            self.drain_valid.eq(active), self.drain.row.eq(row), self.drain.bank.eq(bank), self.group.eq(group),
            self.dst.eq(address), self.range_error.eq(active & (address >= config.ab_granules)),
        ]
        return m
