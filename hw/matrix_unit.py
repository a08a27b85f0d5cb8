"""One matrix unit: a memory channel's reader, its rounds of weights, the chains and their accumulators."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.accumulator import ROW, Accumulators, accumulator_rows, delay_valid, step_layout
from hw.chain import DENSE_BREAKS, N_GROUPS, STEP, SUMS, SparseChain, chain_latency
from hw.dsp_group import MULTIPLIERS_PER_GROUP, N_LANES, delay
from hw.interfaces import AXI4Read, descriptor_layout
from hw.operand_buffer import BLOCK_BITS, WINDOW_LAYOUT
from hw.round import ROUND_KIND
from hw.spec.config import BLOCK, Config
from hw.spec.isa import Unit
from hw.spec.weights import UNREACHED, single_slot
from hw.weight_front import WeightFront
from hw.weight_reader import WeightReader

ACTS_LATENCY = 4
"""Cycles from a step to its window of act blocks at the units: operand memory, its register, rotation, broadcast."""
SELECT_LATENCY = 2
"""From there to the chains: every group's block, pairs of rows side by side."""
TURN_LATENCY = 1
"""From the chains' sums to the accumulators': those of a pair's two steps put together by row."""
CASCADE_GROUPS = 4
"""All rows break at group 4 anyhow."""

GROUP_ACTS = data.ArrayLayout(BLOCK_BITS, N_GROUPS)


class MatrixUnit(wiring.Component):
    """acc[row, n] (+)= scale[n] * sum over slots of acts[row][block of the slot][index of the slot] * weights[n, slot].

    A dense step is a row and a pass: chain c multiplies rows 2 * (pass * chains + c) and the next of the round. The
    two steps of a sparse pair of rows follow each other; in that of ``token`` t, chain c multiplies the t-th of its two
    rows for both, and the sums of (row, pass) are put together from both steps.

    Numeric contract: int8 acts[-128, 127], int8 weights[-127, 127], exact; int32 totals wrap.

    Latency: a round taken in T serves the steps from T + 1 on, until the next is taken. A step in t has its window in
    t + ``ACTS_LATENCY``; the first ``drain`` that sees its sums is that of t + ``step_latency``. ``drain`` in y is on
    ``row`` in y + 2. Throughput: a step a cycle; a beat a cycle.

    Back-pressure: takes happen with ``full`` only, in the last cycle of the round before at the earliest. Reset: idle,
    FIFO and weight buffer empty; sums keep their values.

    Parameters: ``config``; ``primitive``: see :class:`hw.dsp48e2.DSP48E2`.

    Members: ``rd_start``, ``rd_desc``, ``stop``, ``active``, ``bus_idle``, ``axi``: see
    :class:`hw.weight_reader.WeightReader`; ``full``, ``round``, ``take``: the next round; ``step``, ``step_valid``
    (not for a row that is not written), ``window``: work; ``drain``, ``drain_valid``, ``row``: results;
    ``bus_error``, ``header_error``: sticky; ``unpack_stall``: a beat waits for room among the rounds; ``kv``: a beat of
    keys or values comes.
    """

    def __init__(self, config: Config, *, primitive=False):
        self.config = config
        self.primitive = primitive
        super().__init__(
            {
                "rd_start": In(1),
                "rd_desc": In(descriptor_layout(Unit.RD)),
                "stop": In(1),
                "active": Out(1),
                "bus_idle": Out(1),
                "bus_error": Out(1),
                "header_error": Out(1),
                "unpack_stall": Out(1),
                "kv": Out(1),
                "full": Out(1),
                "round": Out(ROUND_KIND),
                "take": In(1),
                "step": In(step_layout(config)),
                "step_valid": In(1),
                "window": In(WINDOW_LAYOUT),
                "drain": In(accumulator_rows(config)),
                "drain_valid": In(1),
                "row": Out(ROW),
                "axi": Out(AXI4Read()),
            }
        )

    @property
    def sums_at(self):
        """Cycles from a step to the accumulators' sums."""
        return ACTS_LATENCY + SELECT_LATENCY + chain_latency(CASCADE_GROUPS) + 1 + TURN_LATENCY

    @property
    def step_latency(self):
        return self.sums_at + Accumulators.latency

    def elaborate(self, platform):
        m = Module()
        m.submodules.reader = reader = WeightReader(self.config)
        m.submodules.front = front = WeightFront()
        m.submodules.accumulators = accumulators = Accumulators(self.config, primitive=self.primitive)
        wiring.connect(m, wiring.flipped(self.axi), reader.axi)
        m.d.comb += [
            reader.start.eq(self.rd_start),
            reader.desc.eq(self.rd_desc),
            reader.stop.eq(self.stop),
            self.active.eq(reader.active),
            self.bus_idle.eq(reader.bus_idle),
            self.bus_error.eq(reader.error),
            self.kv.eq(reader.kv),
            front.i.eq(reader.o),
            front.i_valid.eq(reader.o_valid),
            reader.pop.eq(front.pop),
            self.full.eq(front.full),
            self.round.eq(front.round),
            front.take.eq(self.take),
            # Current from the cycle in which the round's first step has its window.
            front.read.eq(delay_valid(m, self.take, ACTS_LATENCY, "read")),
            self.header_error.eq(front.error),
            self.unpack_stall.eq(front.stall),
        ]
        # Steps as they are when their window arrives, when the chains get them, and when their sums are put together.
        step = [data.View(step_layout(self.config), delay(m, self.step.as_value(), ACTS_LATENCY, "step"))]
        for cycles in (1, 1, self.sums_at - 1 - ACTS_LATENCY - SELECT_LATENCY, 1):
            number = len(step)
            step.append(data.View(step_layout(self.config), delay(m, step[-1].as_value(), cycles, f"step_{number}")))
        acts = self._acts(m, front.o.blocks, step[1])
        sums = self._chains(m, acts, front.o, step[0], step[2])
        scales = delay(
            m,
            front.o.scales.as_value().word_select(step[0].pass_, len(accumulators.scales.as_value())),
            self.sums_at - ACTS_LATENCY,
            "scales",
        )
        self._turn(m, sums, step[4], accumulators.sums)
        m.d.comb += [
            # The accumulators read one cycle ahead of the sums.
            accumulators.i.eq(step[3]),
            accumulators.scales.eq(scales),
            accumulators.i_valid.eq(delay_valid(m, self.step_valid, self.sums_at - 1, "step_valid")),
            accumulators.drain.eq(self.drain),
            accumulators.drain_valid.eq(self.drain_valid),
            self.row.eq(accumulators.o),
        ]
        return m

    def _acts(self, m, blocks, step):
        """Both tokens' block of each group: dense (the row's own, any), sparse (first row of the pair, second row).

        ``step`` is that of the registered blocks: the chains get them a cycle later, together with what came next.
        """
        chosen = Signal(GROUP_ACTS)
        own, first, second = (Signal(GROUP_ACTS, name=name, reset_less=True) for name in ("own", "first", "second"))
        for group in range(N_GROUPS):
            m.d.comb += chosen[group].eq(self.window.as_value().word_select(blocks[group], BLOCK_BITS))
        m.d.sync += own.eq(chosen)
        with m.If(~step.token):
            m.d.sync += [first.eq(own), second.eq(chosen)]
        acts = Signal(STEP["acts"].shape)
        for group in range(N_GROUPS):
            m.d.comb += acts[group].as_value().eq(Cat(first[group], second[group]))
        return acts

    def _chains(self, m, acts, weights, step, step_in):
        """The chains, with the rows that they need in ``step`` and get in ``step_in``; their sums."""
        sums, single = [], delay(m, weights.single, SELECT_LATENCY, "single")
        for number in range(self.config.chains):
            chain = SparseChain(cascade_groups=CASCADE_GROUPS, singles=self.singles(number), primitive=self.primitive)
            m.submodules[f"chain_{number}"] = chain
            rows, indices = self._rows(number, weights, step)
            i = chain.i.payload
            m.d.comb += [
                chain.i.valid.eq(1),
                i.acts.eq(acts),
                i.sparse.eq(step_in.sparse),
                i.row.eq(step_in.token),
                i.single.eq(single),
                i.breaks.eq(DENSE_BREAKS),
                i.weights.eq(delay(m, rows, SELECT_LATENCY, f"weights_{number}")),
                i.indices.eq(delay(m, indices, SELECT_LATENCY, f"indices_{number}")),
            ]
            sums.append(chain.o_sums.payload)
        return sums

    def _mine(self, number):
        """Chain ``number``'s rows of a round, two a pass."""
        return [
            N_LANES * (pass_ * self.config.chains + number) + i
            for pass_ in range(self.config.passes)
            for i in range(N_LANES)
        ]

    def singles(self, number):
        """Which slots of each of its groups hold a block's only weight in any of the chain's rows."""
        slots = {single_slot(row, group) for row in self._mine(number) for group in range(N_GROUPS)}
        return [
            tuple(MULTIPLIERS_PER_GROUP * group + slot in slots for slot in range(MULTIPLIERS_PER_GROUP))
            for group in range(N_GROUPS)
        ]

    def _rows(self, number, weights, step):
        """Chain ``number``'s rows of a pass; the indices of the one that a sparse step multiplies, or for a dense step
        the places of the weights."""
        rows, indices = ([each.as_value() for each in weights[name]] for name in ("weights", "indices"))
        mine = self._mine(number)
        own = Cat(Const(place, range(BLOCK)) for place in UNREACHED).replicate(N_GROUPS)
        return (
            Cat(rows[i] for i in mine).word_select(step.pass_, N_LANES * len(rows[0])),
            Mux(step.sparse, Cat(indices[i] for i in mine).word_select(Cat(step.token, step.pass_), len(own)), own),
        )

    def _turn(self, m, sums, step, words):
        """The sums of a (row, pass). Dense: both of every chain. Sparse: one token's, of both steps of its pair.

        Token 0's are those of ``step`` and of the next, token 1's those of the step before and of ``step``.
        """
        for number, following in enumerate(sums):
            this = data.View(SUMS, delay(m, following.as_value(), TURN_LATENCY, f"this_{number}"))
            before = data.View(SUMS, delay(m, this.as_value(), 1, f"before_{number}"))
            m.d.comb += [
                words[N_LANES * number].eq(Mux(step.sparse & step.token, before.sum1, this.sum0)),
                words[N_LANES * number + 1].eq(Mux(step.sparse & ~step.token, following.sum0, this.sum1)),
            ]
