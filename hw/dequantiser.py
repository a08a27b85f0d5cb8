"""Levels times row scales: INT8 weights."""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.round import ROUND
from hw.spec.config import BLOCK
from hw.spec.weights import QUARTERS
from hw.unpacker import LEVELS, SCALES

ROWS_A_QUARTER = BLOCK // QUARTERS


class Dequantiser(wiring.Component):
    """weight[row, slot] = level * scale[row], or the cell's byte; zero in unused slots.

    Numeric contract: signed 4-bit levels, signed 6-bit scales; the product wraps to 8 bits. A byte passes as it is: its
    low half as a level of scale 1, its high half past the multiplier.

    Latency: one cycle; ``scales`` and ``wide`` come a cycle ahead of ``i``, its indices and blocks a cycle behind it.
    Throughput: a round a cycle. Back-pressure: none. Reset: ``o_valid`` low.

    Members: ``scales``; ``wide``: cells are bytes, scales are ignored; ``i``, ``i_valid``: a round's levels; ``o``,
    ``o_valid``: the round.
    """

    def __init__(self):
        super().__init__({
            "scales": In(SCALES), "wide": In(1), "i": In(LEVELS), "i_valid": In(1), "o": Out(ROUND), "o_valid": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        wide = Signal()
        m.d.sync += [
            wide.eq(self.wide), self.o_valid.eq(self.i_valid), self.o.sparse.eq(self.i.sparse),
        ]
        m.d.comb += [self.o.indices.eq(self.i.indices), self.o.blocks.eq(self.i.blocks)]
        for row in range(BLOCK):
            low, high = self._multiples(m, row)
            for slot in range(BLOCK):
                cell, weight = self.i.cells[BLOCK * row + slot], self.o.weights[row][slot]
                product = Signal(8, name=f"product_{row}_{slot}")
                m.d.comb += product.eq(low[cell[:2]] + (high[cell[2:4]] << 2))
                m.d.sync += weight.eq(Mux(wide, Cat(product[:4], cell[4:]), product))
                with m.If(~self.i.used[row // ROWS_A_QUARTER % 2][slot]):
                    m.d.sync += weight.eq(0)
        return m

    def _multiples(self, m, row):
        """The row's scale times 0 .. 3 and times 0, 1, -2, -1: a level's low digit and its high one of weight 4."""
        scale = Mux(self.wide, 1, self.scales[row])
        tables = []
        for name, factors in (("low", (0, 1, 2, 3)), ("high", (0, 1, -2, -1))):
            tables.append([Const(0)])
            for factor in factors[1:]:
                multiple = Signal(signed(8), name=f"{name}_{row}_{factor % 4}")
                m.d.sync += multiple.eq({1: scale, 2: scale << 1, 3: scale + (scale << 1), -1: -scale,
                                         -2: -(scale << 1)}[factor])
                tables[-1].append(multiple)
        return [Array(table) for table in tables]
