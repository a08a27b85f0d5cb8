"""Weight beats -> 16 x 16 blocks, with the stream's header checked on the way."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.interfaces import BEAT_BITS
from hw.spec.config import BLOCK, BLOCK_BEATS
from hw.spec.weights import header
from hw.weight_reader import BEAT

BLOCK_LAYOUT = data.ArrayLayout(data.ArrayLayout(signed(8), BLOCK), BLOCK)     # int8[row, input]
EXPECTED_HEADER = int.from_bytes(header(0)[:4], "little")


class BlockAssembler(wiring.Component):
    """Collects four beats into a block: int8[16 rows, 16 inputs], a beat being four rows.

    Latency: full from the cycle after the fourth beat's pop. Throughput: a beat a cycle, a block every four cycles: the
    first beat of a block may be popped in the cycle in which its predecessor is taken.

    Back-pressure: nothing is popped while a full block is not taken. A header takes a cycle and no room. Reset: empty.

    Members: ``i``, ``i_valid``, ``pop``: beats; ``block``, ``full``, ``take``: the block, valid while ``full``;
    ``error``: sticky, an unknown header, or one inside a block.
    """

    def __init__(self):
        super().__init__({
            "i": In(BEAT), "i_valid": In(1), "pop": Out(1),
            "block": Out(BLOCK_LAYOUT), "full": Out(1), "take": In(1), "error": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        beats = [Signal(BEAT_BITS, name=f"beat_{i}", reset_less=True) for i in range(BLOCK_BEATS)]
        count = Signal(range(BLOCK_BEATS))
        m.d.comb += [self.pop.eq(self.i_valid & (~self.full | self.take)), self.block.eq(Cat(beats))]
        with m.If(self.take):
            m.d.sync += self.full.eq(0)
        with m.If(self.pop & self.i.header), m.If((self.i.data[:32] != EXPECTED_HEADER) | (count != 0)):
            m.d.sync += self.error.eq(1)
        with m.Elif(self.pop):
            m.d.sync += count.eq(count + 1)
            for number, beat in enumerate(beats):
                with m.If(count == number):
                    m.d.sync += beat.eq(self.i.data)
            with m.If(count == BLOCK_BEATS - 1):
                m.d.sync += self.full.eq(1)
        return m
