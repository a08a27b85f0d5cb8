"""The front of a matrix unit: weight beats in, rounds of weights for the chains out."""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.extender import Extender
from hw.round import BLOCKS, PLACE, ROUND, ROUND_KIND
from hw.unpacker import Unpacker
from hw.weight_buffer import WeightBuffer
from hw.weight_reader import BEAT

FREE_LATE = 3
"""From the last read of a round to the cycle in which it may be freed."""


class WeightFront(wiring.Component):
    """Unpacks and holds up to WEIGHT_BUFFER_ROUNDS rounds (docs/machine.md, "Matrix unit front").

    Numeric contract: see :class:`hw.extender.Extender`.

    Latency: a round whose last beat is popped in c is ``done`` in c and can be read from c + 4 on; ``read`` in r puts
    it on ``o`` part by part, see :class:`hw.weight_buffer.WeightBuffer`. Throughput: a beat a cycle in every format; a
    round read a cycle.

    Back-pressure: a beat is popped in every cycle that begins with room for another round. ``free`` is given FREE_LATE
    cycles behind the round's last read, at the earliest: its parts are read until then. Reset: empty, awaiting a
    header or a RAW block.

    Members: ``i``, ``i_valid``, ``pop``: beats; ``done``, ``kind``: a round is complete; ``free``, ``read``, ``at``,
    ``o``, ``load``, ``load_at``, ``blocks``: see :class:`hw.weight_buffer.WeightBuffer`; ``error``: sticky, see
    :class:`hw.unpacker.RunSequencer`; ``stall``: a beat is held back because there is no room (none behind an error).
    """

    def __init__(self):
        super().__init__(
            {
                "i": In(BEAT),
                "i_valid": In(1),
                "pop": Out(1),
                "done": Out(1),
                "kind": Out(ROUND_KIND),
                "free": In(1),
                "read": In(1),
                "at": In(PLACE),
                "o": Out(ROUND),
                "load": In(1),
                "load_at": In(PLACE),
                "blocks": Out(BLOCKS),
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
            self.stall.eq(self.i_valid & ~buffer.room & ~unpacker.error),
            unpacker.i.eq(self.i),
            unpacker.pop.eq(self.pop),
            self.error.eq(unpacker.error),
            extender.scales.eq(unpacker.part.scales),
            extender.wide.eq(unpacker.part.wide),
            extender.i.eq(unpacker.o),
            extender.i_valid.eq(unpacker.o_valid),
            self.done.eq(unpacker.done),
            self.kind.eq(unpacker.kind),
            buffer.done.eq(unpacker.done),
            buffer.i.eq(extender.o),
            buffer.i_valid.eq(extender.o_valid),
            *[getattr(buffer, name).eq(getattr(self, name)) for name in ("free", "read", "at", "load", "load_at")],
            *[getattr(self, name).eq(getattr(buffer, name)) for name in ("o", "blocks")],
        ]
        return m
