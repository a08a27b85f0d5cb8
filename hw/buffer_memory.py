"""An on-chip buffer as columns of memory primitives, each as wide as one of them."""

from amaranth.hdl import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from hw.pipeline import KEEP
from hw.spec.resources import Memory, Store, column_bits

READ_LATENCY = 3
"""Cycles from a read of a registered memory to its data: its address, the primitives, its output."""


class Column(wiring.Component):
    """A memory of the width of one primitive.

    Latency: read data one cycle after ``read_en``, kept without; what is written in t is read in t + 1. Registered:
    everything goes through a register on its way in, and read data through one on its way out: READ_LATENCY cycles, and
    what is written in t is still read in t + 1. Throughput: a word in and a word out a cycle. Back-pressure: none.
    Reset: none; contents read 0 after power-up.

    Parameters: ``bits``, ``words``; ``store``: the primitive, for synthesis (simulators do not care);
    ``registered``: for buffers that are many primitives deep or wide, and far from what they serve.
    """

    def __init__(self, bits: int, words: int, store: Store, *, registered: bool = False):
        self.bits, self.words, self.store, self.registered = bits, words, store, registered
        super().__init__(
            {
                "write_en": In(1),
                "write_addr": In(range(words)),
                "write_data": In(bits),
                "read_en": In(1),
                "read_addr": In(range(words)),
                "read_data": Out(bits),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.cells = cells = memory.Memory(
            shape=unsigned(self.bits), depth=self.words, init=[], attrs={"ram_style": self.store.value}
        )
        write, read = cells.write_port(), cells.read_port()
        m.d.comb += [
            write.en.eq(self._near(m, "write_en", resets=True)),
            write.addr.eq(self._near(m, "write_addr")),
            write.data.eq(self._near(m, "write_data")),
            read.en.eq(self._near(m, "read_en")),
            read.addr.eq(self._near(m, "read_addr")),
        ]
        if self.registered:
            out = Signal(self.bits, reset_less=True)
            m.d.sync += out.eq(read.data)
            m.d.comb += self.read_data.eq(out)
        else:
            m.d.comb += self.read_data.eq(read.data)
        return m

    def _near(self, m, name, resets=False):
        """An input, or its register beside the primitive."""
        value = getattr(self, name)
        if not self.registered:
            return value
        register = Signal(len(value), name=f"{name}_near", reset_less=not resets, attrs=KEEP)
        m.d.sync += register.eq(value)
        return register


class BufferMemory(wiring.Component):
    """One memory of the budget as columns side by side.

    Latency, throughput, back-pressure, reset: as `Column`.

    Parameters: ``memory`` (its count is the user's business); ``registered``: as `Column`.
    Members: ``write_en``: a bit a part.
    """

    def __init__(self, memory: Memory, *, registered: bool = False):
        self.memory, self.registered = memory, registered
        address, word = range(memory.words), memory.bits
        super().__init__(
            {
                "write_en": In(memory.parts),
                "write_addr": In(address),
                "write_data": In(word),
                "read_en": In(1),
                "read_addr": In(address),
                "read_data": Out(word),
            }
        )

    def elaborate(self, platform):
        m = Module()
        of = self.memory
        at, part_bits = 0, of.bits // of.parts
        for number, width in enumerate(column_bits(of.bits, of.parts, of.store)):
            column = Column(width, of.words, of.store, registered=self.registered)
            m.submodules[f"column_{number}"] = column
            m.d.comb += [
                column.write_en.eq(self.write_en[at // part_bits]),
                column.write_addr.eq(self.write_addr),
                column.write_data.eq(self.write_data[at : at + width]),
                column.read_en.eq(self.read_en),
                column.read_addr.eq(self.read_addr),
                self.read_data[at : at + width].eq(column.read_data),
            ]
            at += width
        return m
