"""The row-scalar file: what reductions leave behind and row operands are read from."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.spec.isa import Row
from hw.spec.numerics import MANTISSA_BITS
from hw.vector_arith import bit_length, non_negative, registered

ENTRY = data.StructLayout({"raw": signed(32), "fin": 32})
SCALAR_LATENCY = 4


class RowScalars(wiring.Component):
    """Entries {raw, fin}; two reads as row operands and one write.

    Numeric contract: `hw.spec.vector.row_value`; `square_shift` is `numerics.square_shift` of r0's raw clipped at 0.
    Latency: SCALAR_LATENCY = 4 cycles from an address to its value; what is written in t is read from t + 1 on.
    Throughput: two reads and a write a cycle. Back-pressure: none. Reset: contents stay; 0 at power-up.
    Parameters: entries. Members: `r0_kind`, `r1_kind`: `isa.Row`, constant during a pass.
    """

    def __init__(self, entries: int):
        self.entries = entries
        address = range(entries)
        super().__init__(
            {
                "r0_addr": In(address),
                "r1_addr": In(address),
                "r0_kind": In(2),
                "r1_kind": In(2),
                "r0": Out(signed(32)),
                "r1": Out(signed(32)),
                "square_shift": Out(5),
                "w_en": In(1),
                "w_addr": In(address),
                "w": In(ENTRY),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = Memory(shape=ENTRY, depth=self.entries, init=[], attrs={"ram_style": "block"})
        write = memory.write_port()
        m.d.comb += [write.en.eq(self.w_en), write.addr.eq(self.w_addr), write.data.eq(self.w)]
        for name in ("r0", "r1"):
            read = memory.read_port()
            m.d.comb += read.addr.eq(getattr(self, f"{name}_addr"))
            length = self._operand(m, name, read.data)
            if name == "r0":
                shift = registered(m, Mux(length > 15, length - 15, 0), "shift")
                m.d.comb += self.square_shift.eq(shift)
        return m

    def _operand(self, m, name, entry):
        """Memory, its output register, the bit length, the value."""
        entry = data.View(ENTRY, registered(m, entry, f"{name}_entry"))
        size = non_negative(entry.raw)
        length = registered(m, bit_length(size), f"{name}_length")
        size, fin, raw = (
            registered(m, value, f"{name}_{part}")
            for value, part in ((size, "size"), (entry.fin, "fin"), (entry.raw, "raw"))
        )
        top = (size << (31 - length)[:5])[31 - MANTISSA_BITS : 31]
        exponent = Signal(signed(8), name=f"{name}_exponent")
        m.d.comb += exponent.eq(Mux(length == 0, 0, MANTISSA_BITS - length))
        value = Signal(32, name=f"{name}_value")
        with m.Switch(getattr(self, f"{name}_kind")):
            with m.Case(Row.SCALE):
                m.d.comb += value.eq(Cat(top, exponent))
            with m.Case(Row.FIN):
                m.d.comb += value.eq(fin)
            with m.Default():
                m.d.comb += value.eq(raw)
        m.d.comb += getattr(self, name).eq(registered(m, value.as_signed(), f"{name}_operand"))
        return length
