"""An on-chip buffer as columns of memory primitives, each as wide as one of them."""

from itertools import accumulate, pairwise

from amaranth.hdl import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from hw.pipeline import KEEP
from hw.spec.resources import BYTE_BITS, Column, Memory, Store, columns

READ_LATENCY = 3
"""Cycles from a read of a registered memory to its data: its address, the primitives, its output."""


class ColumnMemory(wiring.Component):
    """A memory of the width of one primitive.

    Latency: read data one cycle after ``read_en``, kept without; what is written in t is read in t + 1. Registered:
    everything goes through a register on its way in, and read data through one on its way out: READ_LATENCY cycles, and
    what is written in t is still read in t + 1. Throughput: a word in and a word out a cycle. Back-pressure: none.
    Reset: none; contents read 0 after power-up.

    Parameters: ``column``, ``words``; ``store``: the primitive, for synthesis (simulators do not care);
    ``registered``: for buffers that are many primitives deep or wide, and far from what they serve.
    Members: ``write_en``: a bit for each part of the memory that has bits here.
    """

    def __init__(self, column: Column, words: int, store: Store, *, registered: bool = False):
        self.column, self.words, self.store, self.registered = column, words, store, registered
        self.numbers = sorted({part for part, _ in column.parts})
        """Of the parts, in the order of ``write_en``."""
        bits = column.bits
        super().__init__(
            {
                "write_en": In(len(self.numbers)),
                "write_addr": In(range(words)),
                "write_data": In(bits),
                "read_en": In(1),
                "read_addr": In(range(words)),
                "read_data": Out(bits),
            }
        )

    def elaborate(self, platform):
        m = Module()
        shared = len(self.numbers) > 1
        m.submodules.cells = cells = memory.Memory(
            shape=unsigned(BYTE_BITS * len(self.column.parts) if shared else self.column.bits),
            depth=self.words,
            init=[],
            attrs={"ram_style": self.store.value},
        )
        write, read = cells.write_port(granularity=BYTE_BITS if shared else None), cells.read_port()
        write_en, write_data = self._near(m, "write_en", resets=True), self._near(m, "write_data")
        m.d.comb += [
            write.en.eq(self._by_byte(write_en) if shared else write_en),
            write.addr.eq(self._near(m, "write_addr")),
            write.data.eq(self._in_bytes(write_data) if shared else write_data),
            read.en.eq(self._near(m, "read_en")),
            read.addr.eq(self._near(m, "read_addr")),
        ]
        found = self._of_bytes(read.data) if shared else read.data
        if self.registered:
            out = Signal(self.column.bits, reset_less=True)
            m.d.sync += out.eq(found)
            m.d.comb += self.read_data.eq(out)
        else:
            m.d.comb += self.read_data.eq(found)
        return m

    def _by_byte(self, enables: Value) -> Value:
        return Cat(enables[self.numbers.index(part)] for part, _ in self.column.parts)

    def _in_bytes(self, word: Value) -> Value:
        """Each piece of a part in a byte of its own."""
        starts = accumulate((bits for _, bits in self.column.parts), initial=0)
        return Cat(word[at:end] | Const(0, BYTE_BITS) for at, end in pairwise(starts))

    def _of_bytes(self, word: Value) -> Value:
        return Cat(word[BYTE_BITS * i :][:bits] for i, (_, bits) in enumerate(self.column.parts))

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

    Latency, throughput, back-pressure, reset: as `ColumnMemory`.

    Parameters: ``memory`` (its count is the user's business); ``registered``: as `ColumnMemory`.
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
        at = 0
        for number, described in enumerate(columns(of.bits, of.parts, of.store)):
            column, width = ColumnMemory(described, of.words, of.store, registered=self.registered), described.bits
            m.submodules[f"column_{number}"] = column
            m.d.comb += [
                column.write_en.eq(Cat(self.write_en[part] for part in column.numbers)),
                column.write_addr.eq(self.write_addr),
                column.write_data.eq(self.write_data[at : at + width]),
                column.read_en.eq(self.read_en),
                column.read_addr.eq(self.read_addr),
                self.read_data[at : at + width].eq(column.read_data),
            ]
            at += width
        return m
