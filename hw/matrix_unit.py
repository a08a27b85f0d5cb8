"""One matrix unit: a memory channel's reader, its rounds of weights, the chains and their accumulators."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.accumulator import ROW, Accumulators, accumulator_rows, delay_valid, step_layout
from hw.chain import (
    CASCADE_GROUPS,
    DENSE_BREAKS,
    N_GROUPS,
    SUMS,
    TABLES,
    SkewedChain,
    chain_latency,
    skew,
)
from hw.dsp_group import ENTRY, MULTIPLIERS_PER_GROUP, N_LANES, delay
from hw.interfaces import BASE_BITS, AXI4Read, descriptor_layout
from hw.operand_buffer import BLOCK_BITS, WINDOW_LAYOUT, OperandBuffer
from hw.pipeline import copies, reset_domain
from hw.round import PLACE, ROUND_KIND
from hw.spec.config import BLOCK, Config
from hw.spec.isa import Unit
from hw.spec.resources import MAX_FANOUT
from hw.spec.weights import TABLE_ENTRIES, WINDOW
from hw.weight_buffer import READ_LATENCY
from hw.weight_front import WeightFront
from hw.weight_reader import CAME, WeightReader

CROSSING = 2
"""Registers of a net between core and unit: one at each end, for it may have to cross dies."""
ACTS_LATENCY = OperandBuffer.latency + 1
"""Cycles from a step to its window of act blocks in the unit: operand buffer, which ends with a register, and one
here."""
SELECT_LATENCY = 1
"""From there to the chains: a dense step's block of the window, a pass's rows."""
TURN_LATENCY = 1
"""From the chains' sums to the accumulators': those of a pair's two steps put together by row."""
READ_LATE = 5
"""Cycles from the command that frees a round to the one in which its place may be popped into: its last part is still
being read."""
CONTROL_LOADS = 24 * MULTIPLIERS_PER_GROUP
"""LUTs of one chain that the mode of a group's step selects in: three operands of eight bits a multiplier."""

COMMAND = data.StructLayout(
    {
        "read": 1,  # the round at `at` is multiplied from this step on
        "at": PLACE,
        "free": 1,  # and for the last time
        "load": 1,  # entries for tables come, of the blocks of the round at `load_at`
        "load_at": PLACE,
        "load_half": 1,
    }
)
"""What a unit does with its rounds."""


class MatrixUnit(wiring.Component):
    """acc[row, n] (+)= scale[n] * sum over slots of acts[row][block of the slot][index of the slot] * weights[n, slot].

    A dense step is a row and a pass: chain c multiplies rows 2 * (pass * chains + c) and the next of the round. The
    two steps of a sparse pair of rows follow each other; in that of ``token`` t, chain c multiplies the t-th of its two
    rows for both, and the sums of (row, pass) are put together from both steps. Sparse steps look their activations up
    in tables, which are written beforehand: sixteen windows with an entry a block, see
    :class:`hw.operand_buffer.OperandBuffer`.

    Numeric contract: int8 acts[-128, 127], int8 weights[-127, 127], exact; int32 totals wrap.

    Latency: every input and output but the memory channel's is a register of the unit; times are those ahead of it. A
    round whose last beat is popped in c is on ``done`` in c + 2 and can be read by a step from c + 5 on. A step in t
    has its window in t + ``ACTS_LATENCY - 1``, and a ``read`` with it is that of its round; the first ``drain`` that
    sees its sums is in t + ``step_latency`` - 2. ``load`` in l: the first entry is in ``window`` in
    l + 1, steps may read its table from l + 13 on. ``drain`` in y is on ``row`` in y + 3. Throughput: a
    step a cycle; a beat a cycle; a table in 16 cycles.

    Back-pressure: reads happen of rounds that are done, and ``free`` is given once for each. Reset: idle, FIFO and
    weight buffer empty; sums and tables keep their values.

    Parameters: ``config``; ``primitive``: see :class:`hw.dsp48e2.DSP48E2`.

    Members: ``rd_start``, ``rd_desc``, ``stop``, ``base``, ``active``, ``bus_idle``, ``axi``, ``came``: see
    :class:`hw.weight_reader.WeightReader`; ``done``, ``kind``: a round is complete; ``command``; ``step``,
    ``step_valid`` (not for a row that is not written), ``window``: work; ``drain``, ``drain_valid``, ``row``: results;
    ``bus_error``, ``header_error``: sticky; ``unpack_stall``: a beat waits for room among the rounds.
    """

    def __init__(self, config: Config, *, primitive=False):
        self.config = config
        self.primitive = primitive
        super().__init__(
            {
                "rd_start": In(1),
                "rd_desc": In(descriptor_layout(Unit.RD)),
                "stop": In(1),
                "base": In(BASE_BITS),
                "active": Out(1),
                "bus_idle": Out(1),
                "bus_error": Out(1),
                "header_error": Out(1),
                "unpack_stall": Out(1),
                "came": Out(CAME),
                "done": Out(1),
                "kind": Out(ROUND_KIND),
                "command": In(COMMAND),
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
        """From a step, ahead of both of its registers, to the first drain behind its own that sees the step's sums."""
        return self.sums_at + Accumulators.latency

    def elaborate(self, platform):
        m = Module()
        # One register could not reset it all.
        domains = {name: reset_domain(m, name, ResetSignal()) for name in ("inside", "reader", "front", "accumulators")}
        m.submodules.inside = domains["inside"](self._inside(domains))
        return m

    def _inside(self, domains):
        """Everything; blocks of some size in their own ones of the domains, whose resets are registers of the unit."""
        m = Module()
        reader, front = WeightReader(self.config), WeightFront()
        accumulators = Accumulators(self.config, primitive=self.primitive)
        for name, block in (("reader", reader), ("front", front), ("accumulators", accumulators)):
            m.submodules[name] = domains[name](block)
        wiring.connect(m, wiring.flipped(self.axi), reader.axi)
        command, desc = self._command(m), Signal.like(self.rd_desc, name="desc", reset_less=True)
        kind = Signal(ROUND_KIND, name="kind_out", reset_less=True)
        m.d.comb += [reader.desc.eq(desc), reader.base.eq(delay(m, self.base, 1, "base")), self.kind.eq(kind)]
        m.d.sync += [
            reader.start.eq(self.rd_start),
            desc.eq(self.rd_desc),
            reader.stop.eq(self.stop),
            self.active.eq(reader.active),
            self.bus_idle.eq(reader.bus_idle),
            self.bus_error.eq(reader.error),
            self.came.eq(reader.came),
            self.done.eq(front.done),
            kind.eq(front.kind),
            self.header_error.eq(front.error),
            self.unpack_stall.eq(front.stall),
            accumulators.drain.eq(self.drain),
            accumulators.drain_valid.eq(self.drain_valid),
        ]
        early = ACTS_LATENCY - CROSSING - READ_LATENCY
        m.d.comb += [
            front.i.eq(reader.o),
            front.i_valid.eq(reader.o_valid),
            reader.pop.eq(front.pop),
            front.free.eq(delay_valid(m, command.free, READ_LATE, "free")),
            # Its first parts are there from the cycle on in which the round's first step has its window.
            front.read.eq(delay_valid(m, command.read, early, "read")),
            front.at.eq(delay(m, command.at, early, "at")),
            front.load.eq(command.load),
            front.load_at.eq(command.load_at),
            self.row.eq(accumulators.o),
        ]
        # Steps as they are when their window arrives, and a cycle before their sums are put together.
        layout, valid = step_layout(self.config), delay_valid(m, self.step_valid, 1, "step_valid_in")
        # The first register stays one: a shift register in LUTs could not lie at the end of the net.
        (crossed,) = copies(m, self.step, 1, "step_in")
        step = [data.View(layout, delay(m, crossed, ACTS_LATENCY - CROSSING, "step"))]
        step.append(data.View(layout, delay(m, step[0].as_value(), self.sums_at - 1 - ACTS_LATENCY, "step_of_sums")))
        window = data.View(WINDOW_LAYOUT, delay(m, self.window.as_value(), 1, "window"))
        tables = self._tables(m, window, command, front.blocks)
        acts = delay(m, window.as_value().word_select(front.o.blocks[0], BLOCK_BITS), SELECT_LATENCY, "own")
        acts = [acts.word_select(slot, 8) for slot in range(BLOCK)]
        sums = self._chains(m, acts, tables, front.o, step[0])
        scales = delay(
            m,
            front.o.scales.as_value().word_select(step[0].pass_, len(accumulators.scales.as_value())),
            self.sums_at - ACTS_LATENCY,
            "scales",
        )
        self._turn(m, sums, step[1], accumulators.sums)
        m.d.comb += [
            # The accumulators read one cycle ahead of the sums.
            accumulators.i.eq(step[1]),
            accumulators.scales.eq(scales),
            accumulators.i_valid.eq(delay_valid(m, valid, self.sums_at - 1 - CROSSING, "step_valid")),
        ]
        return m

    def _command(self, m):
        """The command, registered."""
        command = Signal(COMMAND)
        m.d.sync += command.eq(self.command)
        return command

    def _tables(self, m, window, command, blocks):
        """The entries that are written into the chains' tables: of each group its block's."""
        count, half, coming = Signal(range(TABLE_ENTRIES)), Signal(), Signal()
        tables = Signal(TABLES, reset_less=True)
        with m.If(coming):
            m.d.sync += [count.eq(count + 1), coming.eq(count != TABLE_ENTRIES - 1)]
        with m.If(command.load):
            m.d.sync += [count.eq(0), half.eq(command.load_half), coming.eq(1)]
        m.d.sync += [tables.write.en.eq(coming), tables.write.half.eq(half), tables.write.at.eq(count)]
        entries = Array(window[block][: ENTRY.size] for block in range(WINDOW))
        for group in range(N_GROUPS):
            m.d.sync += tables.entries[group].eq(entries[blocks[group]])
        return tables

    def _chains(self, m, acts, tables, weights, step):
        """The chains' sums. acts: a dense step's, as chains get them; step: as its window arrives, a cycle earlier."""
        chains = [
            SkewedChain(cascade_groups=CASCADE_GROUPS, primitive=self.primitive) for _ in range(self.config.chains)
        ]
        for number, chain in enumerate(chains):
            m.submodules[f"chain_{number}"] = chain
            m.d.comb += chain.breaks.eq(DENSE_BREAKS)
        for group in range(N_GROUPS):
            self._feed(m, chains, group, acts, tables, weights, step)
        return [chain.sums for chain in chains]

    def _feed(self, m, chains, group, acts, tables, weights, step):
        """Feeds a group of every chain, as late as its cascade needs: what all chains share is delayed once."""
        late, first = skew(group, CASCADE_GROUPS), group * MULTIPLIERS_PER_GROUP
        mine = range(first, first + MULTIPLIERS_PER_GROUP)
        choice = delay(m, Cat(step.token, step.pass_), late, f"choice_{group}")
        shared = delay(m, Cat(acts[slot] for slot in mine), late, f"acts_{group}")
        entry = delay(m, Cat(tables.write, tables.entries[group]), late, f"entry_{group}")
        mode = delay(m, Cat(step.sparse, step.half, step.token), late, f"mode_{group}")
        # A register of the mode, which selects among many operands, for as many chains as it can drive.
        each = max(1, MAX_FANOUT // CONTROL_LOADS)
        modes = copies(m, mode, -(-len(chains) // each), f"mode_of_{group}")
        for number, chain in enumerate(chains):
            part = chain.groups[group]
            rows, indices = self._rows(number, weights, mine, choice)
            m.d.comb += [
                Cat(part.sparse, part.half, part.row).eq(modes[number // each]),
                part.acts.eq(shared),
                Cat(part.write, part.entry).eq(entry),
                part.weights.eq(delay(m, rows, SELECT_LATENCY, f"weights_{number}_{group}")),
                part.indices.eq(delay(m, indices, SELECT_LATENCY, f"indices_{number}_{group}")),
            ]

    def _rows(self, number, weights, slots, choice):
        """Of chain ``number``, in these slots: its two rows of a pass; the indices of the one that a sparse step
        multiplies. choice: token, and pass."""
        rows, indices = (
            [Cat(each[slot] for slot in slots) for each in weights[name]] for name in ("weights", "indices")
        )
        mine = [
            N_LANES * (pass_ * self.config.chains + number) + i
            for pass_ in range(self.config.passes)
            for i in range(N_LANES)
        ]
        return (
            Cat(rows[i] for i in mine).word_select(choice[1:], N_LANES * len(rows[0])),
            Cat(indices[i] for i in mine).word_select(choice, len(indices[0])),
        )

    def _turn(self, m, sums, step, words):
        """The sums of a (row, pass). Dense: both of every chain. Sparse: one token's, of both steps of its pair.

        Token 0's are those of ``step`` and of the next, token 1's those of the step before and of ``step``. ``step`` is
        told a cycle before its sums.
        """
        first, second = Signal(name="first_of_pair", reset_less=True), Signal(name="second_of_pair", reset_less=True)
        m.d.sync += [first.eq(step.sparse & ~step.token), second.eq(step.sparse & step.token)]
        for number, following in enumerate(sums):
            this = data.View(SUMS, delay(m, following.as_value(), TURN_LATENCY, f"this_{number}"))
            before = data.View(SUMS, delay(m, this.as_value(), 1, f"before_{number}"))
            m.d.comb += [
                words[N_LANES * number].eq(Mux(second, before.sum1, this.sum0)),
                words[N_LANES * number + 1].eq(Mux(first, following.sum0, this.sum1)),
            ]
