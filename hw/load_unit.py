"""LD: auxiliary memory to the parameter buffer PB."""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.buffer_memory import BufferMemory
from hw.burst import next_burst
from hw.interfaces import AXI4Read, BufferRead, UnitPort
from hw.spec.config import Config
from hw.spec.isa import Error, LdKind, Unit
from hw.spec.resources import buffer


class LoadUnit(wiring.Component):
    """LD and the parameter buffer.

    Contract: for o in n_outer: n_inner beats from aux beat address addr + o*stride to PB granules dst + o*dst_stride on
    (mod 2**32). A granule beyond PB is BUFFER_RANGE when its beat comes and is not written; a zero count or undefined
    kind is ILLEGAL_DESCRIPTOR in t + 1.
    Latency and throughput: AR j in t + 1 + j, t the cycle of `unit.start`; one beat a cycle; done in the cycle after
    the last beat. What a beat wrote in r is read from r + 1 on.
    Back-pressure: arready is honoured, beats are always taken.
    Reset: idle; PB keeps its contents (0 at power-up).

    Parameters: config.
    Members: unit; bus (read half of aux); buffer (the vector unit's port, a word of `lanes` values).
    """

    def __init__(self, config: Config):
        self.config = config
        self.words = config.pb_granules // config.granules_per_word
        super().__init__(
            {
                "unit": In(UnitPort(Unit.LD)),
                "bus": Out(AXI4Read()),
                "buffer": In(BufferRead(self.words, config.lanes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        desc, bus = self.unit.desc, self.bus
        busy, finished, illegal = Signal(), Signal(), Signal()
        row, at, left, rows = (
            Signal(32, name=f"ask_{name}", reset_less=True) for name in ("row", "at", "left", "rows")
        )
        burst = Signal(5)
        m.d.comb += [
            burst.eq(next_burst(at, left)),
            bus.araddr.eq(at << 6),
            bus.arlen.eq(burst - 1),
            bus.arvalid.eq(busy & (left != 0) & ~illegal),
            bus.rready.eq(1),
        ]
        with m.If(self.unit.start):
            m.d.sync += illegal.eq((desc.n_outer == 0) | (desc.n_inner == 0) | (desc.kind > max(LdKind)))
            m.d.sync += [busy.eq(1), rows.eq(desc.n_outer), left.eq(desc.n_inner), at.eq(desc.addr), row.eq(desc.addr)]
        with m.Elif(bus.arvalid & bus.arready):
            m.d.sync += [at.eq(at + burst), left.eq(left - burst)]
            with m.If(left == burst):
                m.d.sync += [rows.eq(rows - 1), row.eq(row + desc.stride), at.eq(row + desc.stride)]
                m.d.sync += left.eq(Mux(rows == 1, 0, desc.n_inner))
        with m.If(finished):
            m.d.sync += busy.eq(0)
        m.d.comb += self.unit.done.eq(finished)
        self._receive(m, busy, illegal & busy, finished)
        return m

    def _receive(self, m, busy, illegal, finished):
        desc, per_word = self.unit.desc, self.config.granules_per_word
        m.submodules.pb = pb = BufferMemory(buffer(self.config, "PB"), registered=True)
        row, at, left, rows = (Signal(32, name=name, reset_less=True) for name in ("row", "at", "left", "rows"))
        taken, outside, start = Signal(), Signal(), Signal()
        bits = per_word.bit_length() - 1
        m.d.comb += [
            taken.eq(busy & self.bus.rvalid),
            outside.eq(at >= self.config.pb_granules),
            pb.write_addr.eq(at >> bits),
            pb.write_en.eq(Mux(taken & ~outside, 1 << at[:bits], 0)),
            pb.write_data.eq(self.bus.rdata.replicate(per_word)),
            pb.read_addr.eq(self.buffer.addr),
            pb.read_en.eq(self.buffer.en),
            Value.cast(self.buffer.data).eq(pb.read_data),
        ]
        # Beats come later than a cycle after the start: it has two registers, each with half of the loads.
        m.d.sync += [finished.eq(0), start.eq(self.unit.start)]
        with m.If(start):
            m.d.sync += [row.eq(desc.dst), at.eq(desc.dst), left.eq(desc.n_inner), rows.eq(desc.n_outer)]
        with m.Elif(taken):
            m.d.sync += [at.eq(at + 1), left.eq(left - 1)]
            with m.If(left == 1):
                m.d.sync += [row.eq(row + desc.dst_stride), at.eq(row + desc.dst_stride), left.eq(desc.n_inner)]
                m.d.sync += [rows.eq(rows - 1), finished.eq(rows == 1)]
        with m.If(illegal):
            m.d.comb += [self.unit.error.eq(1), self.unit.error_code.eq(Error.ILLEGAL_DESCRIPTOR)]
        with m.Elif(taken & self.bus.rresp[1]):
            m.d.comb += [self.unit.error.eq(1), self.unit.error_code.eq(Error.BUS_READ)]
        with m.Elif(taken & outside):
            m.d.comb += [self.unit.error.eq(1), self.unit.error_code.eq(Error.BUFFER_RANGE)]
