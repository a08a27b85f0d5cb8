"""The accumulators of a matrix unit, in block memory."""

from itertools import pairwise

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.buffer_memory import BufferMemory
from hw.chain import SUMS
from hw.dsp_group import delay
from hw.spec.config import BLOCK, Config
from hw.spec.resources import accumulators

ACC_BITS = 32
ROW = data.ArrayLayout(signed(ACC_BITS), BLOCK)
FORWARDS = 3
"""Steps that have read the memory and not yet written it, when one more of them meets its sums."""


def step_layout(config: Config):
    """One cycle's work of a matrix unit. ``row`` is that of the accumulators, ``first`` overwrites; ``token``: which
    row of its pair a sparse round's ``row`` is (0 in dense rounds)."""
    return data.StructLayout({
        "row": accumulator_rows(config), "pass_": range(config.passes), "first": 1, "sparse": 1, "token": 1,
    })


def accumulator_rows(config: Config):
    """Room for two output steps of ``acc_rows`` rows, or for more of fewer."""
    return range(2 * config.acc_rows)


def delay_valid(m, value, n_cycles, name):
    """As `delay`, for a valid bit: with reset."""
    line = Signal(n_cycles, name=name)
    m.d.sync += line.eq(Cat(value, line))
    return line[-1]


class Accumulators(wiring.Component):
    """acc[row, 2 * chains * pass + w] = (0 if first else itself) + sums[w], int32, wrapping.

    Latency: a step on ``i`` in cycle x meets ``sums`` in x + 1 and is written in x + ``latency``: ``drain`` in
    x + ``latency`` + 1 sees it. A ``drain`` in y is on ``o`` in y + 2. Throughput: a step and a drain a cycle.

    The same row and pass may come again after any number of cycles: totals that are not in the memory yet are
    forwarded. Sums and drains have a read port each. Back-pressure: none. Reset: pending writes are dropped, contents
    stay.

    Parameters: ``config``.

    Members: ``i``, ``i_valid``: steps; ``sums``: 2 * chains words to add; ``drain``, ``drain_valid``: rows to read;
    ``o``: int32[16], the row.
    """

    latency = 3

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "i": In(step_layout(config)), "i_valid": In(1),
            "sums": In(data.ArrayLayout(SUMS["sum0"].shape, 2 * config.chains)),
            "drain": In(accumulator_rows(config)), "drain_valid": In(1), "o": Out(ROW),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        part = 2 * config.chains * ACC_BITS
        steps = [data.View(step_layout(config), delay(m, self.i.as_value(), 2, "step"))]
        valids = [delay_valid(m, self.i_valid, 2, "valid")]
        for number in range(FORWARDS):
            steps.append(data.View(step_layout(config), delay(m, steps[-1].as_value(), 1, f"step_{number}")))
            valids.append(delay_valid(m, valids[-1], 1, f"valid_{number}"))
        totals = [Signal(part, name=f"total_{number}", reset_less=True) for number in range(FORWARDS)]
        rows = self._memory(m, steps[1], valids[1], totals[0])

        old = Signal(part)
        m.d.comb += old.eq(rows.word_select(steps[0].pass_, part))
        for number in reversed(range(FORWARDS)):
            same = [steps[number + 1][field] == steps[0][field] for field in ("row", "pass_")]
            with m.If(valids[number + 1] & Cat(same).all()):
                m.d.comb += old.eq(totals[number])
        for number in range(2 * config.chains):
            new = delay(m, self.sums[number], 1, f"sum_{number}")
            here = slice(number * ACC_BITS, (number + 1) * ACC_BITS)
            m.d.sync += totals[0][here].eq(Mux(steps[0].first, 0, old[here].as_signed()) + new)
        m.d.sync += [after.eq(before) for before, after in pairwise(totals)]
        return m

    def _memory(self, m, step, valid, total):
        """``total`` is written, drained rows go out, and the row that the step of two cycles ago reads is returned."""
        config = self.config
        o = []
        for name, en, row in (("sums", self.i_valid, self.i.row), ("drains", self.drain_valid, self.drain)):
            m.submodules[name] = rows = BufferMemory(accumulators(config))  # a copy for each that reads
            m.d.comb += [
                rows.read_en.eq(en), rows.read_addr.eq(row),
                rows.write_addr.eq(step.row), rows.write_data.eq(total.replicate(config.passes)),
                rows.write_en.eq(Mux(valid, 1 << step.pass_, 0)),
            ]
            o.append(delay(m, rows.read_data, 1, f"{name}_row"))
        m.d.comb += self.o.eq(o[1])
        return o[0]
