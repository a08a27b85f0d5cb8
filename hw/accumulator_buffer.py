"""AB: the int32 results of the matrix units, on their way to the vector unit."""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from hw.buffer_memory import BufferMemory
from hw.interfaces import BufferRead, BufferWrite
from hw.spec.config import Config
from hw.spec.resources import buffer


class AccumulatorBuffer(wiring.Component):
    """Words of ``lanes`` int32, written by granules of 16 lanes.

    Latency: read data READ_LATENCY cycles after ``en``; what is written in t is read in t + 1. Throughput: a word in
    and a word out a cycle. Back-pressure: none. Reset: none; contents read 0 after power-up.

    Parameters: ``config``. Members: ``write``: from the drain; ``read``: the vector unit's.
    """

    def __init__(self, config: Config):
        self.config = config
        self.words = config.ab_granules // config.granules_per_word
        super().__init__(
            {
                "write": In(BufferWrite(self.words, config.lanes, enables=config.granules_per_word)),
                "read": In(BufferRead(self.words, config.lanes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.store = store = BufferMemory(buffer(self.config, "AB"), registered=True)
        m.d.comb += [
            store.write_en.eq(self.write.en),
            store.write_addr.eq(self.write.addr),
            store.write_data.eq(self.write.data.as_value()),
            store.read_en.eq(self.read.en),
            store.read_addr.eq(self.read.addr),
            self.read.data.eq(store.read_data),
        ]
        return m
