"""A register slice: a stream with registers on both of its ways."""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out


class Skid(wiring.Component):
    """Hands payloads on; nothing at one end depends on the other within a cycle, so dies may lie between them.

    Latency: a payload taken in t is on ``o`` in t + 1. Throughput: one a cycle.

    Back-pressure: ``i_ready`` is a register. A payload that comes while ``o`` waits is kept in a second register, and
    ``i_ready`` falls in the next cycle. Reset: empty.

    Parameters: ``shape`` of the payload. Members: ``i``, ``i_valid``, ``i_ready``; ``o``, ``o_valid``, ``o_ready``. An
    offered payload stays until it is taken.
    """

    def __init__(self, shape):
        self.shape = shape
        super().__init__(
            {
                "i": In(shape),
                "i_valid": In(1),
                "i_ready": Out(1, init=1),
                "o": Out(shape),
                "o_valid": Out(1),
                "o_ready": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        out, kept = Signal(self.shape, reset_less=True), Signal(self.shape, reset_less=True)
        moves = Signal()
        m.d.comb += [self.o.eq(out), moves.eq(self.o_ready | ~self.o_valid)]
        with m.If(self.i_ready):
            m.d.sync += kept.eq(self.i)
        with m.If(moves):
            m.d.sync += [
                out.eq(Mux(self.i_ready, self.i, kept)),
                self.o_valid.eq(self.i_valid | ~self.i_ready),
                self.i_ready.eq(1),
            ]
        with m.Elif(self.i_valid):
            m.d.sync += self.i_ready.eq(0)
        return m
