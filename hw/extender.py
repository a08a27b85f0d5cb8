"""Cells to what the chains multiply: INT8 weights, and the scales that their sums are multiplied by."""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.pipeline import copies
from hw.round import ROUND, SCALES, WEIGHTS
from hw.spec.config import BLOCK
from hw.spec.weights import ROWS_A_QUARTER
from hw.unpacker import LEVELS, NIBBLE

WIDE_COPIES = 8
"""Registers of `wide`, each with loads in so many rows less."""


class Extender(wiring.Component):
    """weight[row, slot] = the cell's byte (scale 1), or its level with the sign extended; zero in unused slots.

    Numeric contract: signed 4-bit levels, signed 6-bit scales. Scales multiply sums, not weights
    (:class:`hw.accumulator.Accumulators`): sixteen products a step and no wrapping, rather than 256 products a round.

    Latency: one cycle; ``scales`` and ``wide`` come a cycle ahead of ``i``, its indices and blocks a cycle behind it.
    Throughput: a round a cycle. Back-pressure: none. Reset: ``o_valid`` low; payload keeps what it has.

    Members: ``scales``; ``wide``: cells are bytes, scales are ignored; ``i``, ``i_valid``: a round's cells; ``o``,
    ``o_valid``: the round.
    """

    def __init__(self):
        super().__init__(
            {
                "scales": In(SCALES),
                "wide": In(1),
                "i": In(LEVELS),
                "i_valid": In(1),
                "o": Out(ROUND),
                "o_valid": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        scales, wide = Signal(SCALES, reset_less=True), copies(m, self.wide, WIDE_COPIES, "wide")
        weights, factors = Signal(WEIGHTS, reset_less=True), Signal(SCALES, reset_less=True)
        m.d.sync += [self.o_valid.eq(self.i_valid), factors.eq(scales)]
        m.d.comb += [
            self.o.indices.eq(self.i.indices),
            self.o.blocks.eq(self.i.blocks),
            self.o.weights.eq(weights),
            self.o.scales.eq(factors),
        ]
        for row in range(BLOCK):
            m.d.sync += scales[row].eq(Mux(self.wide, 1, self.scales[row]))
            for slot in range(BLOCK):
                cell, weight = self.i.cells[BLOCK * row + slot], weights[row][slot]
                sign = cell[NIBBLE - 1].replicate(NIBBLE)
                m.d.sync += weight.eq(Cat(cell[:NIBBLE], Mux(wide[row % WIDE_COPIES], cell[NIBBLE:], sign)))
                with m.If(~self.i.used[row // ROWS_A_QUARTER % 2][slot]):
                    m.d.sync += weight.eq(0)
        return m
