"""AB: the int32 results of the matrix units, on their way to the vector unit."""

from amaranth.hdl import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In

from hw.interfaces import BufferRead, BufferWrite
from hw.spec.config import GRANULE_LANES, Config


class AccumulatorBuffer(wiring.Component):
    """Words of ``lanes`` int32, written by granules of 16 lanes.

    Latency: read data one cycle after ``en``; what is written in t is read in t + 1. Throughput: a word in and a word
    out a cycle. Back-pressure: none. Reset: none; contents read 0 after power-up.

    Parameters: ``config``. Members: ``write``: from the drain; ``read``: the vector unit's.
    """

    def __init__(self, config: Config):
        self.config = config
        self.words = config.ab_granules // config.granules_per_word
        super().__init__({
            "write": In(BufferWrite(self.words, config.lanes, enables=config.granules_per_word)),
            "read": In(BufferRead(self.words, config.lanes)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.store = store = memory.Memory(shape=unsigned(32 * self.config.lanes), depth=self.words, init=[])
        write, read = store.write_port(granularity=32 * GRANULE_LANES), store.read_port()
        m.d.comb += [
            write.en.eq(self.write.en), write.addr.eq(self.write.addr), write.data.eq(self.write.data.as_value()),
            read.en.eq(self.read.en), read.addr.eq(self.read.addr), self.read.data.eq(read.data),
        ]
        return m
