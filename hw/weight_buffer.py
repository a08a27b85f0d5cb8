"""The ring of rounds between a matrix unit's weight stream and its chains."""

from amaranth.hdl import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from hw.round import ROUND, ROUND_KIND
from hw.spec.timing import WEIGHT_BUFFER_ROUNDS

RING = 2 * WEIGHT_BUFFER_ROUNDS
"""Rounds held, and those taken but not yet read."""
PART_BITS = 512
"""Width of one memory: Amaranth's simulator refuses those of a thousand bits."""


class WeightBuffer(wiring.Component):
    """Counts complete rounds when their last beat is popped, stores them when they arrive.

    Latency: ``done`` in c: ``full`` and ``round`` from c + 1, ``room`` may fall in c + 1. A round that arrives in w can
    be read from w + 1 on; ``read`` in r puts it on ``o`` in r + 1. Throughput: a round in, one taken, one read a cycle.

    Back-pressure: ``room`` is low while WEIGHT_BUFFER_ROUNDS complete rounds are not taken. Reads follow their takes
    within WEIGHT_BUFFER_ROUNDS takes, and not before the round has arrived. Reset: empty.

    Members: ``done``, ``kind``: a round is complete; ``i``, ``i_valid``: its contents, later, in order; ``room``:
    beats may be popped; ``full``, ``round``, ``take``: the oldest round not yet taken; ``read``, ``o``: contents of the
    oldest not yet read.
    """

    def __init__(self):
        super().__init__(
            {
                "done": In(1),
                "kind": In(ROUND_KIND),
                "i": In(ROUND),
                "i_valid": In(1),
                "room": Out(1),
                "full": Out(1),
                "round": Out(ROUND_KIND),
                "take": In(1),
                "read": In(1),
                "o": Out(ROUND),
            }
        )

    def elaborate(self, platform):
        m = Module()
        held = Signal(range(WEIGHT_BUFFER_ROUNDS + 1))
        m.d.sync += held.eq(held + self.done - self.take)
        m.d.comb += [
            self.full.eq(held != 0),
            self.room.eq(held != WEIGHT_BUFFER_ROUNDS),
            self.round.eq(self._ring(m, "kinds", self.kind, self.done, self.take)),
        ]
        contents = self._ring(m, "contents", self.i, self.i_valid, self.read)
        with m.If(self.read):
            m.d.sync += self.o.eq(contents)
        return m

    def _ring(self, m, name, value, write_en, advance):
        """A queue in LUT RAM; its oldest entry, which ``advance`` removes."""
        write_at, read_at = Signal(range(RING), name=f"{name}_write_at"), Signal(range(RING), name=f"{name}_read_at")
        m.d.sync += [write_at.eq(write_at + write_en), read_at.eq(read_at + advance)]
        value, oldest = value.as_value(), []
        for at in range(0, len(value), PART_BITS):
            part = value[at : at + PART_BITS]
            m.submodules[f"{name}_{at}"] = ring = memory.Memory(shape=unsigned(len(part)), depth=RING, init=[])
            write, read = ring.write_port(), ring.read_port(domain="comb")
            m.d.comb += [write.en.eq(write_en), write.addr.eq(write_at), write.data.eq(part), read.addr.eq(read_at)]
            oldest.append(read.data)
        return Cat(oldest)
