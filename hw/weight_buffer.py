"""The ring of rounds between a matrix unit's weight stream and its chains."""

from amaranth.hdl import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from hw.round import BLOCKS, PLACE, ROUND
from hw.spec.timing import WEIGHT_BUFFER_ROUNDS

PART_BITS = 512
"""Width of one memory: Amaranth's simulator refuses those of a thousand bits."""


class WeightBuffer(wiring.Component):
    """Counts complete rounds when their last beat is popped, stores them when they arrive, in order, round k at place
    k modulo WEIGHT_BUFFER_ROUNDS. Where a round is read is for its user to say, as often as it likes.

    Latency: ``done`` in c: ``room`` may fall in c + 1; ``free`` in f: it may rise in f + 1. A round that arrives in w
    can be read from w + 1 on; ``read`` in r puts it on ``o`` in r + 1, ``load`` in r its blocks on ``blocks``.
    Throughput: a round in and one read a cycle.

    Back-pressure: ``room`` is low while WEIGHT_BUFFER_ROUNDS complete rounds are not freed. A round is not read before
    it has arrived, and for the last time no later than it is freed. Reset: empty.

    Members: ``done``: a round is complete; ``i``, ``i_valid``: its contents, later, in order; ``room``: beats may be
    popped; ``free``: the oldest round's place is free; ``read``, ``at``, ``o``: a round's contents, kept until the next
    read; ``load``, ``load_at``, ``blocks``: a round's blocks, likewise.
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
        o, blocks = Signal(ROUND, reset_less=True), Signal(BLOCKS, reset_less=True)
        m.d.comb += [self.o.eq(o), self.blocks.eq(blocks)]
        round_ = self._ring(m, "contents", self.i, write_at, self.at)
        of_load = self._ring(m, "blocks", self.i.blocks, write_at, self.load_at)
        with m.If(self.read):
            m.d.sync += o.eq(round_)
        with m.If(self.load):
            m.d.sync += blocks.eq(of_load)
        return m

    def _ring(self, m, name, value, write_at, read_at):
        """Arriving values in LUT memory; the one at ``read_at``."""
        value, found = value.as_value(), []
        for at in range(0, len(value), PART_BITS):
            part = value[at : at + PART_BITS]
            m.submodules[f"{name}_{at}"] = ring = memory.Memory(
                shape=unsigned(len(part)), depth=WEIGHT_BUFFER_ROUNDS, init=[]
            )
            write, read = ring.write_port(), ring.read_port(domain="comb")
            m.d.comb += [
                write.en.eq(self.i_valid),
                write.addr.eq(write_at),
                write.data.eq(part),
                read.addr.eq(read_at),
            ]
            found.append(read.data)
        return Cat(found)
