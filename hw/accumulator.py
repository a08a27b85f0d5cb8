"""The two accumulator banks of a matrix unit, in block memory."""

from amaranth.hdl import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from hw.chain import SUMS
from hw.dsp_group import delay
from hw.spec.config import BLOCK, Config

ACC_BITS = 32
ROW = data.ArrayLayout(signed(ACC_BITS), BLOCK)
MIN_REUSE_CYCLES = 4
"""The same outputs come again after this many cycles at the earliest: a block takes four beats."""


def step_layout(config: Config):
    """One cycle's work of a matrix unit. ``bank`` is that of the output step, ``first`` overwrites."""
    return data.StructLayout({"row": range(config.acc_rows), "pass_": range(config.passes), "first": 1, "bank": 1})


def drain_layout(config: Config):
    return data.StructLayout({"row": range(config.acc_rows), "bank": 1})


def delay_valid(m, value, n_cycles, name):
    """As `delay`, for a valid bit: with reset."""
    line = Signal(n_cycles, name=name)
    m.d.sync += line.eq(Cat(value, line))
    return line[-1]


class AccumulatorBanks(wiring.Component):
    """acc[bank, row, 2 * (pass * chains + c) + i] = (0 if first else itself) + sums[c].sum_i, int32, wrapping.

    Latency: a step on ``i`` in cycle x meets ``sums`` in x + 1 and is written in x + ``latency``: ``drain`` in
    x + ``latency`` + 1 sees it. A ``drain`` in y is on ``o`` in y + 2. Throughput: a step and a drain a cycle.

    There is no forwarding: the same row and pass must not come again within ``MIN_REUSE_CYCLES`` cycles, and a bank is
    not accumulated and drained at once. Back-pressure: none. Reset: pending writes are dropped, contents stay.

    Parameters: ``config``.

    Members: ``i``, ``i_valid``: steps; ``sums``: the chains' sums; ``drain``, ``drain_valid``: rows to read;
    ``o``: int32[16], the row.
    """

    latency = 3

    def __init__(self, config: Config):
        self.config = config
        super().__init__({
            "i": In(step_layout(config)), "i_valid": In(1), "sums": In(data.ArrayLayout(SUMS, config.chains)),
            "drain": In(drain_layout(config)), "drain_valid": In(1), "o": Out(ROW),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        part = 2 * config.chains * ACC_BITS
        step2 = data.View(step_layout(config), delay(m, self.i.as_value(), 2, "step"))
        step3 = data.View(step_layout(config), delay(m, step2.as_value(), 1, "step_w"))
        write_valid = delay_valid(m, self.i_valid, self.latency, "write_valid")
        drain_bank = delay(m, self.drain.bank, 2, "drain_bank")

        rows = []
        total = Signal(part, reset_less=True)
        for bank in range(2):
            m.submodules[f"bank_{bank}"] = rows_of = memory.Memory(
                shape=unsigned(BLOCK * ACC_BITS), depth=config.acc_rows, init=[])
            write, read = rows_of.write_port(granularity=part), rows_of.read_port()
            draining = self.drain_valid & (self.drain.bank == bank)
            m.d.comb += [
                read.en.eq(draining | (self.i_valid & (self.i.bank == bank))),
                read.addr.eq(Mux(draining, self.drain.row, self.i.row)),
                write.addr.eq(step3.row), write.data.eq(total.replicate(config.passes)),
                write.en.eq(Mux(write_valid & (step3.bank == bank), 1 << step3.pass_, 0)),
            ]
            rows.append(delay(m, read.data, 1, f"row_{bank}"))

        m.d.comb += self.o.eq(Mux(drain_bank, rows[1], rows[0]))
        old = Signal(part)
        m.d.comb += old.eq(Mux(step2.bank, rows[1], rows[0]).word_select(step2.pass_, part))
        for number in range(2 * config.chains):
            new = delay(m, self.sums[number // 2][f"sum{number % 2}"], 1, f"sum_{number}")
            here = slice(number * ACC_BITS, (number + 1) * ACC_BITS)
            m.d.sync += total[here].eq(Mux(step2.first, 0, old[here].as_signed()) + new)
        return m
