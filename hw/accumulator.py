"""The accumulators of a matrix unit: block memory, and a DSP a word that scales sums and adds them."""

from itertools import pairwise

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.buffer_memory import BufferMemory
from hw.chain import SUMS
from hw.dsp48e2 import MultiplyAccumulate
from hw.dsp_group import delay
from hw.pipeline import copies
from hw.spec.config import BLOCK, Config
from hw.spec.resources import accumulators
from hw.spec.weights import SCALE_BITS

ACC_BITS = 32
ROW = data.ArrayLayout(signed(ACC_BITS), BLOCK)
FORWARDS = 3
"""Totals that are not in the memory when a step's operands are read; the newest of all is still to come, see LAST."""
WORDS_A_COPY = 4
"""Words whose old totals one register of the choice serves."""


def step_layout(config: Config):
    """One cycle's work of a matrix unit. ``row`` is that of the accumulators, ``first`` overwrites; ``token``: which
    row of its pair a sparse round's ``row`` is (0 in dense rounds); ``half``: the table that a sparse step reads."""
    return data.StructLayout(
        {
            "row": accumulator_rows(config),
            "pass_": range(config.passes),
            "first": 1,
            "sparse": 1,
            "token": 1,
            "half": 1,
        }
    )


def accumulator_rows(config: Config):
    """Room for two output steps of ``acc_rows`` rows, or for more of fewer."""
    return range(2 * config.acc_rows)


def delay_valid(m, value, n_cycles, name):
    """As `delay`, for a valid bit: with reset."""
    line = Signal(n_cycles, name=name)
    m.d.sync += line.eq(Cat(value, line))
    return line[-1]


class Accumulators(wiring.Component):
    """acc[row, 2 * chains * pass + w] = (0 if first else itself) + sums[w] * scales[w], int32, wrapping.

    A DSP a word multiplies and adds. The total of the step before is its own last result; the three before that are
    forwarded, and older ones are in the memory.

    Latency: a step on ``i`` in cycle x meets ``sums`` and ``scales`` in x + 1 and is written in x + ``latency``:
    ``drain`` in x + ``latency`` + 1 sees it. A ``drain`` in y is on ``o`` in y + 2. Throughput: a step and a drain a
    cycle.

    The same row and pass may come again after any number of cycles. Sums and drains have a read port each.
    Back-pressure: none. Reset: pending writes are dropped, contents stay.

    Parameters: ``config``; ``primitive``: see :class:`hw.dsp48e2.DSP48E2`.

    Members: ``i``, ``i_valid``: steps; ``sums``, ``scales``: 2 * chains words to multiply and add; ``drain``,
    ``drain_valid``: rows to read; ``o``: int32[16], the row.
    """

    latency = 1 + MultiplyAccumulate.latency

    def __init__(self, config: Config, *, primitive=False):
        self.config = config
        self.primitive = primitive
        self.words = 2 * config.chains
        super().__init__(
            {
                "i": In(step_layout(config)),
                "i_valid": In(1),
                "sums": In(data.ArrayLayout(SUMS["sum0"].shape, self.words)),
                "scales": In(data.ArrayLayout(signed(SCALE_BITS), self.words)),
                "drain": In(accumulator_rows(config)),
                "drain_valid": In(1),
                "o": Out(ROW),
            }
        )

    def elaborate(self, platform):
        m = Module()
        part = self.words * ACC_BITS
        # Steps as their old totals are read and chosen, and those before them: steps[1]'s total is under way.
        ahead = data.View(step_layout(self.config), delay(m, self.i.as_value(), 1, "step_ahead"))
        steps = [data.View(step_layout(self.config), delay(m, ahead.as_value(), 1, "step"))]
        valids = [delay_valid(m, self.i_valid, 2, "valid")]
        for number in range(FORWARDS):
            steps.append(data.View(step_layout(self.config), delay(m, steps[-1].as_value(), 1, f"step_{number}")))
            valids.append(delay_valid(m, valids[-1], 1, f"valid_{number}"))
        # A cycle ahead of steps[0], whose choice has many loads: steps[0] is then the one behind.
        same = [
            valid & (Cat(step.row, step.pass_) == Cat(ahead.row, ahead.pass_))
            for step, valid in zip(steps, valids, strict=True)
        ]
        totals = [Signal(part, name=f"total_{number}", reset_less=True) for number in range(FORWARDS)]
        m.d.sync += [after.eq(before) for before, after in pairwise(totals)]
        rows = self._memory(m, steps[2], valids[2], totals[0])

        # The newest wins. A place first, so that a bit of the choice is one LUT.
        place = Const(0)
        for number in range(FORWARDS, 0, -1):
            place = Mux(same[number], number, place)
        places = copies(m, place, -(-self.words // WORDS_A_COPY), "place")
        read = rows.word_select(steps[0].pass_, part)
        addend = Signal(2, reset_less=True)
        m.d.sync += addend.eq(
            Mux(ahead.first, MultiplyAccumulate.ZERO, Mux(same[0], MultiplyAccumulate.LAST, MultiplyAccumulate.C))
        )
        for number in range(self.words):
            m.submodules[f"mac_{number}"] = mac = MultiplyAccumulate(primitive=self.primitive)
            here = slice(number * ACC_BITS, (number + 1) * ACC_BITS)
            m.d.comb += [
                mac.a.eq(self.sums[number]),
                mac.b.eq(self.scales[number]),
                mac.c.eq(Array(old[here] for old in (read, *totals))[places[number // WORDS_A_COPY]].as_signed()),
                mac.addend.eq(addend),
                totals[0][here].eq(mac.p),
            ]
        return m

    def _memory(self, m, step, valid, total):
        """``total`` is written, drained rows go out, and the row that the step of two cycles ago reads is returned."""
        config = self.config
        o = []
        for name, en, row in (("sums", self.i_valid, self.i.row), ("drains", self.drain_valid, self.drain)):
            m.submodules[name] = rows = BufferMemory(accumulators(config))  # a copy for each that reads
            m.d.comb += [
                rows.read_en.eq(en),
                rows.read_addr.eq(row),
                rows.write_addr.eq(step.row),
                rows.write_data.eq(total.replicate(config.passes)),
                rows.write_en.eq(Mux(valid, 1 << step.pass_, 0)),
            ]
            o.append(delay(m, rows.read_data, 1, f"{name}_row"))
        m.d.comb += self.o.eq(o[1])
        return o[0]
