"""One matrix unit: a memory channel's reader, the weight block, its chains and their accumulators."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.accumulator import ROW, AccumulatorBanks, delay_valid, drain_layout, step_layout
from hw.assembler import BLOCK_LAYOUT, BlockAssembler
from hw.chain import DENSE_BREAKS, SparseChain, chain_latency
from hw.dsp_group import delay
from hw.interfaces import AXI4Read, descriptor_layout
from hw.spec.config import BLOCK, Config
from hw.spec.isa import Unit
from hw.weight_reader import WeightReader

ACTS_LATENCY = 4
"""Cycles from a step to its act block at the units: operand memory, its register, broadcast, selection."""
CASCADE_GROUPS = 4
"""Dense rows break at group 4 anyhow."""


class MatrixUnit(wiring.Component):
    """acc[bank, row, n] (+)= sum over k of acts[k] * block[n, k], and the weight path that fills ``block``.

    Numeric contract: int8 acts[-128, 127], int8 weights[-127, 127], exact; int32 sums wrap.

    Latency: a block taken in T serves the steps from T + 1 on, until the next is taken. A step in t has its act block
    in t + ``ACTS_LATENCY``; the first ``drain`` that sees its sum is that of t + ``step_latency``. ``drain`` in y is on
    ``row`` in y + 2.
    Throughput: a step a cycle; a block every four cycles.

    Back-pressure: takes happen with ``full`` only, and a block's steps follow its take without a gap in ``take``'s
    contract: at least max(4, steps) cycles apart. Reset: idle, FIFO and block empty; sums keep their values.

    Parameters: ``config``; ``primitive``: see :class:`hw.dsp48e2.DSP48E2`.

    Members: ``rd_start``, ``rd_desc``, ``stop``, ``active``, ``bus_idle``, ``axi``: see
    :class:`hw.weight_reader.WeightReader`; ``full``, ``take``: the block; ``step``, ``step_valid``, ``acts``: work;
    ``drain``, ``drain_valid``, ``row``: results; ``bus_error``, ``header_error``: sticky.
    """

    def __init__(self, config: Config, *, primitive=False):
        self.config = config
        self.primitive = primitive
        super().__init__({
            "rd_start": In(1), "rd_desc": In(descriptor_layout(Unit.RD)), "stop": In(1),
            "active": Out(1), "bus_idle": Out(1), "bus_error": Out(1), "header_error": Out(1),
            "full": Out(1), "take": In(1),
            "step": In(step_layout(config)), "step_valid": In(1), "acts": In(8 * BLOCK),
            "drain": In(drain_layout(config)), "drain_valid": In(1), "row": Out(ROW),
            "axi": Out(AXI4Read()),
        })

    @property
    def sums_at(self):
        """Cycles from a step to the chains' sums."""
        return ACTS_LATENCY + chain_latency(CASCADE_GROUPS) + 1

    @property
    def step_latency(self):
        return self.sums_at + AccumulatorBanks.latency

    def elaborate(self, platform):
        m = Module()
        m.submodules.reader = reader = WeightReader(self.config)
        m.submodules.assembler = assembler = BlockAssembler()
        m.submodules.accumulators = accumulators = AccumulatorBanks(self.config)
        wiring.connect(m, wiring.flipped(self.axi), reader.axi)
        m.d.comb += [
            reader.start.eq(self.rd_start), reader.desc.eq(self.rd_desc), reader.stop.eq(self.stop),
            self.active.eq(reader.active), self.bus_idle.eq(reader.bus_idle), self.bus_error.eq(reader.error),
            assembler.i.eq(reader.o), assembler.i_valid.eq(reader.o_valid), reader.pop.eq(assembler.pop),
            self.full.eq(assembler.full), assembler.take.eq(self.take), self.header_error.eq(assembler.error),
        ]
        weights = self._weights(m, assembler.block)
        step = data.View(step_layout(self.config), delay(m, self.step.as_value(), ACTS_LATENCY, "step"))
        step_valid = delay_valid(m, self.step_valid, ACTS_LATENCY, "step_valid")
        self._chains(m, weights, step, step_valid, accumulators)
        # The accumulators read one cycle ahead of the sums.
        rest = self.sums_at - 1 - ACTS_LATENCY
        m.d.comb += [
            accumulators.i.eq(delay(m, step.as_value(), rest, "step_sums")),
            accumulators.i_valid.eq(delay_valid(m, step_valid, rest, "step_sums_valid")),
            accumulators.drain.eq(self.drain), accumulators.drain_valid.eq(self.drain_valid),
            self.row.eq(accumulators.o),
        ]
        return m

    def _weights(self, m, block):
        """The taken block, held for its steps when they meet their act blocks.

        ``hold`` keeps it over the acts' latency: the next one cannot come earlier, four beats after.
        """
        hold = Signal(BLOCK_LAYOUT, reset_less=True)
        weights = Signal(BLOCK_LAYOUT, reset_less=True)
        with m.If(self.take):
            m.d.sync += hold.eq(block)
        with m.If(delay_valid(m, self.take, ACTS_LATENCY, "taken")):
            m.d.sync += weights.eq(hold)
        return weights

    def _chains(self, m, weights, step, step_valid, accumulators):
        config = self.config
        for number in range(config.chains):
            chain = SparseChain(cascade_groups=CASCADE_GROUPS, primitive=self.primitive)
            m.submodules[f"chain_{number}"] = chain
            rows = Signal(2 * 8 * BLOCK, name=f"rows_{number}")
            pairs = Cat(weights.as_value().word_select(q * config.chains + number, len(rows))
                        for q in range(config.passes))
            i = chain.i.payload
            m.d.comb += [
                rows.eq(pairs.word_select(step.pass_, len(rows))),
                chain.i.valid.eq(step_valid), i.acts[0].eq(self.acts), i.weights.eq(rows), i.breaks.eq(DENSE_BREAKS),
                accumulators.sums[number].eq(chain.o_sums.payload),
            ]
