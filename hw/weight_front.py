"""The front of a matrix unit: weight beats in, rounds of weights for the chains out."""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.extender import Extender
from hw.round import ROUND, ROUND_KIND
from hw.unpacker import Unpacker
from hw.weight_buffer import WeightBuffer
from hw.weight_reader import BEAT


class WeightFront(wiring.Component):
    """Unpacks and holds ready up to WEIGHT_BUFFER_ROUNDS rounds (docs/machine.md, "Matrix unit front").

    Numeric contract: see :class:`hw.extender.Extender`.

    Latency: a round whose last beat is popped in c can be taken from c + 1 on; ``read`` in r, at least 3 cycles after
    its take, puts it on ``o`` in r + 1. Throughput: a beat a cycle in every format; a round taken and one read a cycle.

    Back-pressure: a beat is popped in every cycle that begins with room for another round. Reset: empty, awaiting a
    header or a RAW block.

    Members: ``i``, ``i_valid``, ``pop``: beats; ``full``, ``round``, ``take``: the oldest round not yet taken, valid
    while ``full``; ``read``: the oldest taken round goes to ``o``, which keeps it; ``error``: sticky, see
    :class:`hw.unpacker.RunSequencer`; ``stall``: a beat is held back because there is no room.
    """

    def __init__(self):
        super().__init__(
            {
                "i": In(BEAT),
                "i_valid": In(1),
                "pop": Out(1),
                "full": Out(1),
                "round": Out(ROUND_KIND),
                "take": In(1),
                "read": In(1),
                "o": Out(ROUND),
                "error": Out(1),
                "stall": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.unpacker = unpacker = Unpacker()
        m.submodules.extender = extender = Extender()
        m.submodules.buffer = buffer = WeightBuffer()
        m.d.comb += [
            self.pop.eq(self.i_valid & buffer.room),
            self.stall.eq(self.i_valid & ~buffer.room),
            unpacker.i.eq(self.i),
            unpacker.pop.eq(self.pop),
            self.error.eq(unpacker.error),
            extender.scales.eq(unpacker.part.scales),
            extender.wide.eq(unpacker.part.wide),
            extender.i.eq(unpacker.o),
            extender.i_valid.eq(unpacker.o_valid),
            buffer.done.eq(unpacker.done),
            buffer.kind.eq(unpacker.kind),
            buffer.i.eq(extender.o),
            buffer.i_valid.eq(extender.o_valid),
            self.full.eq(buffer.full),
            self.round.eq(buffer.round),
            buffer.take.eq(self.take),
            buffer.read.eq(self.read),
            self.o.eq(buffer.o),
        ]
        return m
