"""The ring of rounds between a matrix unit's weight stream and its chains."""

from amaranth.hdl import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from hw.chain import CASCADE_GROUPS, N_GROUPS, skew
from hw.dsp_group import MULTIPLIERS_PER_GROUP, delay
from hw.pipeline import copies
from hw.round import BLOCKS, PLACE, ROUND
from hw.spec.timing import WEIGHT_BUFFER_ROUNDS

READ = data.StructLayout({"at": PLACE, "en": 1})
READ_LATENCY = 2
"""Cycles from a read to a round: its registers of place and enable, the memories."""


class WeightBuffer(wiring.Component):
    """Counts complete rounds when their last beat is popped, stores them when they arrive, in order, round k at place
    k modulo WEIGHT_BUFFER_ROUNDS. Where a round is read is for its user to say, as often as it likes.

    A round is read in parts, one for each group of DSPs, in the cycle in which the group's cascade needs it
    (:func:`hw.chain.skew`): so weights wait in the ring and not in registers between ring and multipliers.

    Latency: ``done`` in c: ``room`` may fall in c + 1; ``free`` in f: it may rise in f + 1. A round that arrives in w
    can be read from w on; ``read`` in r puts its blocks and scales on ``o`` in r + READ_LATENCY, group g's weights and
    indices ``skew(g)`` cycles later; ``load`` in r puts its blocks on ``blocks`` in r + 1. Throughput: a round in and
    one read a cycle.

    Back-pressure: ``room`` is low while WEIGHT_BUFFER_ROUNDS complete rounds are not freed. A round is not read before
    it has arrived; a round that arrives takes the place of one whose last part was read in the cycle before, at the
    latest. Reset: empty.

    Members: ``done``: a round is complete; ``i``, ``i_valid``: its contents, later, in order; ``room``: beats may be
    popped; ``free``: the oldest round's place is free; ``read``, ``at``, ``o``: a round's contents, each part kept
    until the next read; ``load``, ``load_at``, ``blocks``: a round's blocks, likewise.
    """

    def __init__(self):
        super().__init__(
            {
                "done": In(1),
                "i": In(ROUND),
                "i_valid": In(1),
                "room": Out(1),
                "free": In(1),
                "read": In(1),
                "at": In(PLACE),
                "o": Out(ROUND),
                "load": In(1),
                "load_at": In(PLACE),
                "blocks": Out(BLOCKS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        held, write_at = Signal(range(WEIGHT_BUFFER_ROUNDS + 1), name="held"), Signal(PLACE, name="write_at")
        m.d.sync += [held.eq(held + self.done - self.free), write_at.eq(write_at + self.i_valid)]
        m.d.comb += self.room.eq(held != WEIGHT_BUFFER_ROUNDS)
        write_at = copies(m, write_at + self.i_valid, N_GROUPS + 1, "write_at", resets=True)
        now = Signal(READ)
        m.d.comb += [now.en.eq(self.read), now.at.eq(self.at)]
        for number in range(N_GROUPS):
            late = delay(m, now.as_value(), skew(number, CASCADE_GROUPS), f"read_{number}")
            for part in ("weights", "indices"):
                self._part(m, f"{part}_{number}", self._of_group(part, number), write_at[number], late)
        for part in ("blocks", "scales"):
            self._part(m, part, lambda of, part=part: of[part].as_value(), write_at[-1], now)
        blocks = Signal(BLOCKS, reset_less=True)
        of_load = self._ring(m, "of_load", self.i.blocks.as_value(), write_at[-1], self.load_at)
        with m.If(self.load):
            m.d.sync += blocks.eq(of_load)
        m.d.comb += self.blocks.eq(blocks)
        return m

    @staticmethod
    def _of_group(part, number):
        """Of a round: every row's slots of a group of DSPs."""
        mine = slice(number * MULTIPLIERS_PER_GROUP, (number + 1) * MULTIPLIERS_PER_GROUP)
        return lambda of: Cat(Cat(*(row[slot] for slot in range(mine.start, mine.stop))) for row in of[part])

    def _part(self, m, name, of, write_at, read):
        """A part of the round, read with registers of its own."""
        (register,) = copies(m, read, 1, f"read_{name}")
        register, kept = data.View(READ, register), Signal(len(of(self.i)), name=name, reset_less=True)
        found = self._ring(m, f"ring_{name}", of(self.i), write_at, register.at)
        with m.If(register.en):
            m.d.sync += kept.eq(found)
        m.d.comb += of(self.o).eq(kept)

    def _ring(self, m, name, value, write_at, read_at):
        """Arriving values in LUT memory; the one at ``read_at``."""
        m.submodules[name] = ring = memory.Memory(shape=unsigned(len(value)), depth=WEIGHT_BUFFER_ROUNDS, init=[])
        write, read = ring.write_port(), ring.read_port(domain="comb")
        m.d.comb += [write.en.eq(self.i_valid), write.addr.eq(write_at), write.data.eq(value), read.addr.eq(read_at)]
        return read.data
