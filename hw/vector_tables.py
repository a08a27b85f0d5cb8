"""The interpolation tables of the gates and of the exponential: one read-only memory a lane."""

from itertools import pairwise

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.spec import numerics as nm
from hw.vector_arith import registered

TABLES = (nm.SILU_TABLE, nm.GELU_TABLE, nm.QGELU_TABLE, nm.EXP2_TABLE)
"""In the order of `isa.Func`, from SILU (1) on. SIGMOID (5) has SILU's: its number, less one, wraps to 0."""
SEGMENTS = 256
SLOPES = tuple(tuple(high - low for low, high in pairwise(table)) for table in TABLES)
LOW_BITS = max(max(table[:SEGMENTS]) for table in TABLES).bit_length()
SLOPE_SHAPE = Shape.cast(range(min(map(min, SLOPES)), max(map(max, SLOPES)) + 1))
TABLE_LATENCY = 2


class SegmentTable(wiring.Component):
    """Value and slope of a segment of a piecewise linear function.

    Numeric contract: low = table[i], slope = table[i + 1] - table[i] of the four 257-entry tables of
    `hw.spec.numerics`.
    Latency: TABLE_LATENCY = 2 cycles (memory and its output register). Throughput: one read a cycle.
    Back-pressure: none. Reset: none.
    Members: table: 0 SILU, 1 GELU, 2 QGELU, 3 EXP2; segment; low; slope.
    """

    table: In(2)
    segment: In(8)
    low: Out(LOW_BITS)
    slope: Out(SLOPE_SHAPE)

    def elaborate(self, platform):
        m = Module()
        mask = (1 << SLOPE_SHAPE.width) - 1
        words = [
            low | (slope & mask) << LOW_BITS
            for table, slopes in zip(TABLES, SLOPES, strict=True)
            for low, slope in zip(table, slopes, strict=False)
        ]
        m.submodules.rom = rom = Memory(
            shape=unsigned(LOW_BITS + SLOPE_SHAPE.width), depth=len(words), init=words, attrs={"ram_style": "block"}
        )
        port = rom.read_port()
        m.d.comb += port.addr.eq(Cat(self.segment, self.table))
        m.d.comb += Cat(self.low, self.slope).eq(registered(m, port.data, "out"))
        return m
