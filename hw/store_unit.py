"""ST: the store buffer SB to the auxiliary memory and to the K and V caches in the channels."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.buffer_memory import BufferMemory
from hw.interfaces import BEAT_BITS, AXI4Write, BufferWrite, UnitPort
from hw.spec.config import BEAT_BYTES, GRANULE_LANES, Config
from hw.spec.isa import Error, StKind, StMode, Unit
from hw.spec.resources import buffer

STRIDES = {
    # mode: what a step of t, h, g adds to the beat address
    StMode.LIN: ("stride_tok", "stride_head", 1),
    StMode.K: (0, "stride_head", "stride_gran"),
    StMode.V: (0, "stride_head", "stride_gran"),
    StMode.SC: (0, "stride_head", 0),
}


def bytes_of(granule, lane_bytes):
    """A beat whose byte groups are given by `lane_bytes`: a list of 64 lane numbers, the low byte of each."""
    return Cat(granule.word_select(lane, 32)[:8] for lane in lane_bytes)


class StoreUnit(wiring.Component):
    """ST and the store buffer.

    Contract: `hw.spec.isa.StMode`; addresses mod 2**32. A source beyond SB is BUFFER_RANGE in its issue cycle; an
    undefined mode or kind or a zero count ILLEGAL_DESCRIPTOR in s + 1; a bad response BUS_WRITE.
    Latency and throughput: item beat k issues in s + 1 + k, its AW and W are presented ST_PIPE = 3 cycles later (read
    and multiply, add and place, present); done in the cycle after the last B.
    Back-pressure: AW and W are held until both are taken, and the whole pipe with them. With `run` low nothing new is
    presented.
    Reset: idle; SB keeps its contents (0 at power-up).

    Parameters: config.
    Members: unit; run; buffer (the vector unit's write port); buses (write halves, the channels' first, then aux);
    bus_idle: nothing is presented, no response awaited; channel_bytes, aux_bytes: enabled strobes accepted in this
    cycle.
    """

    def __init__(self, config: Config):
        self.config = config
        self.words = config.sb_granules // config.granules_per_word
        super().__init__(
            {
                "unit": In(UnitPort(Unit.ST)),
                "run": In(1),
                "buffer": In(BufferWrite(self.words, config.lanes)),
                "buses": Out(AXI4Write()).array(config.units + 1),
                "bus_idle": Out(1),
                "channel_bytes": Out(7),
                "aux_bytes": Out(7),
            }
        )

    def elaborate(self, platform):
        m = Module()
        desc = self.unit.desc
        port_bits = ceil_log2(self.config.units + 1)
        stage = data.StructLayout(
            {"mode": 2, "source": 32, "partial": 32, "slot": 32, "key": 4, "i": 2, "port": port_bits}
        )
        read, placed = Signal(stage), Signal(stage)
        issued = {name: Signal(field.shape, name=f"issued_{name}") for name, field in stage}
        issued_valid, read_valid, placed_valid = Signal(), Signal(), Signal()
        busy, active, advance, illegal = Signal(), Signal(), Signal(), Signal()
        self.out_valid, self.out_port = Signal(), Signal(port_bits)
        self.address, self.data, self.strobes = Signal(32), Signal(BEAT_BITS), Signal(BEAT_BYTES)
        self.size = Signal(7)
        product = Signal(32)

        counts = (desc.n_tok == 0) | (desc.n_head == 0) | (desc.n_gran == 0)
        outside = issued_valid & (issued["source"] >= self.config.sb_granules)
        m.d.comb += issued_valid.eq(active & ~illegal & self.run)
        self._walk(m, desc, issued, active, issued_valid & advance)
        granule = self._memory(m, read, advance)
        with m.If(advance):
            cached = (read.mode == StMode.K) | (read.mode == StMode.V)
            m.d.sync += [
                *[read[name].eq(value) for name, value in issued.items()],
                read_valid.eq(issued_valid & ~outside),
                placed.eq(read),
                placed_valid.eq(read_valid & self.run),
                product.eq(Mux(cached, read.slot * desc.stride_slot, 0)),
                self.out_valid.eq(placed_valid & self.run),
                self.out_port.eq(placed.port),
                self.address.eq(placed.partial + product),
            ]
            self._place(m, placed, granule)
        bad = self._bus(m, advance, busy, active | read_valid | placed_valid)
        with m.If(self.unit.start):
            m.d.sync += [busy.eq(1), illegal.eq(counts | (desc.mode > max(StMode)) | (desc.kind > max(StKind)))]
        with m.Elif(self.unit.done):
            m.d.sync += busy.eq(0)
        raised = ((outside, Error.BUFFER_RANGE), (bad, Error.BUS_WRITE), (busy & illegal, Error.ILLEGAL_DESCRIPTOR))
        for condition, code in raised:
            with m.If(condition):
                m.d.comb += [self.unit.error.eq(1), self.unit.error_code.eq(code)]
        return m

    def _walk(self, m, desc, issued, active, step):
        """The items in order t, h, g, i, with running sums in place of products."""
        i, g, h, t = Signal(2), Signal(32), Signal(32), Signal(32)
        sums = {
            name: Signal(32, name=f"{name}")
            for name in ("source_g", "source_h", "source_t", "beat_g", "beat_h", "beat_t")
        }
        strides = [Signal(32, name=f"stride_{level}") for level in "thg"]
        with m.Switch(desc.mode):
            for mode, values in STRIDES.items():
                with m.Case(mode):
                    for signal, value in zip(strides, values, strict=True):
                        m.d.comb += signal.eq(desc[value] if isinstance(value, str) else value)
        key, mode = Signal(32), desc.mode[:2]
        unit_bits = self.config.units.bit_length() - 1
        partial, port = issued["partial"], issued["port"]
        m.d.comb += [key.eq(desc.pos + t), partial.eq(sums["beat_g"]), port.eq(key[4 : 4 + unit_bits])]
        with m.Switch(mode):
            with m.Case(StMode.LIN):
                m.d.comb += port.eq(self.config.aux_port)
            with m.Case(StMode.SC):
                m.d.comb += [port.eq(self.config.aux_port), partial.eq(sums["beat_g"] + (key >> 4))]
            with m.Case(StMode.K):
                m.d.comb += partial.eq(sums["beat_g"] + key[2:4])
            with m.Case(StMode.V):
                m.d.comb += partial.eq(sums["beat_g"] + i)
        m.d.comb += [
            issued["mode"].eq(mode),
            issued["source"].eq(sums["source_g"]),
            issued["slot"].eq(key >> 4 + unit_bits),
            issued["key"].eq(key[:4]),
            issued["i"].eq(i),
        ]

        def restart(levels, source, beat):
            for level in levels:
                m.d.sync += [sums[f"source_{level}"].eq(source), sums[f"beat_{level}"].eq(beat)]

        with m.If(self.unit.start):
            m.d.sync += [active.eq(1), i.eq(0), g.eq(0), h.eq(0), t.eq(0)]
            restart("ght", desc.src, desc.addr)
        with m.Elif(step):
            with m.If((mode == StMode.V) & (i != 3)):
                m.d.sync += i.eq(i + 1)
            with m.Elif(g + 1 != desc.n_gran):
                m.d.sync += [i.eq(0), g.eq(g + 1)]
                restart("g", sums["source_g"] + 1, sums["beat_g"] + strides[2])
            with m.Elif(h + 1 != desc.n_head):
                m.d.sync += [i.eq(0), g.eq(0), h.eq(h + 1)]
                restart("gh", sums["source_h"] + desc.src_head, sums["beat_h"] + strides[1])
            with m.Elif(t + 1 != desc.n_tok):
                m.d.sync += [i.eq(0), g.eq(0), h.eq(0), t.eq(t + 1)]
                restart("ght", sums["source_t"] + desc.src_tok, sums["beat_t"] + strides[0])
            with m.Else():
                m.d.sync += active.eq(0)

    def _memory(self, m, read, advance):
        """SB; returns the granule of the item that was in `read` in the cycle before."""
        per_word = self.config.granules_per_word
        bits = per_word.bit_length() - 1
        m.submodules.sb = sb = BufferMemory(buffer(self.config, "SB"))
        part = Signal(max(bits, 1))
        m.d.comb += [
            sb.write_en.eq(self.buffer.en),
            sb.write_addr.eq(self.buffer.addr),
            sb.write_data.eq(Value.cast(self.buffer.data)),
            sb.read_en.eq(advance),
            sb.read_addr.eq(read.source >> bits),
        ]
        with m.If(advance):
            m.d.sync += part.eq(read.source[:bits])
        return sb.read_data.word_select(part, BEAT_BITS) if per_word > 1 else sb.read_data

    def _place(self, m, item, granule):
        """Data and strobes of the beat."""
        group = item.key[:2]
        sizes = {StMode.LIN: BEAT_BYTES, StMode.K: 16, StMode.V: 4, StMode.SC: 4}
        with m.Switch(item.mode):
            with m.Case(StMode.LIN):
                m.d.sync += self.size.eq(sizes[StMode.LIN])
                m.d.sync += [self.data.eq(granule), self.strobes.eq(-1)]
            with m.Case(StMode.K):
                m.d.sync += self.size.eq(sizes[StMode.K])
                m.d.sync += [
                    self.data.eq(bytes_of(granule, list(range(16)) * 4)),
                    self.strobes.eq(Const(0xFFFF, 64) << (group << 4)),
                ]
            with m.Case(StMode.V):
                m.d.sync += self.size.eq(sizes[StMode.V])
                quarter = granule.word_select(item.i, 128)
                m.d.sync += [
                    self.data.eq(bytes_of(quarter, [j for j in range(4) for _ in range(16)])),
                    self.strobes.eq(Const(0x0001_0001_0001_0001, 64) << item.key),
                ]
            with m.Case(StMode.SC):
                m.d.sync += self.size.eq(sizes[StMode.SC])
                m.d.sync += [
                    self.data.eq(granule[:32].replicate(GRANULE_LANES)),
                    self.strobes.eq(Const(0xF, 64) << (item.key << 2)),
                ]

    def _bus(self, m, advance, busy, more):
        """Presents the beat, counts responses; returns whether a bad one has come."""
        ports = len(self.buses)
        aw_taken, w_taken, aw_ready, w_ready, w_accept = Signal(), Signal(), Signal(), Signal(), Signal()
        outstanding = Signal(32)
        responses = Signal(range(ports + 1))
        for index, bus in enumerate(self.buses):
            here = self.out_valid & (self.out_port == index)
            m.d.comb += [
                bus.awaddr.eq(self.address << 6),
                bus.awlen.eq(0),
                bus.awvalid.eq(here & ~aw_taken),
                bus.wdata.eq(self.data),
                bus.wstrb.eq(self.strobes),
                bus.wlast.eq(1),
                bus.wvalid.eq(here & ~w_taken),
                bus.bready.eq(1),
            ]
            with m.If(here):
                m.d.comb += [aw_ready.eq(bus.awready), w_ready.eq(bus.wready)]
        done = (aw_taken | aw_ready) & (w_taken | w_ready)
        m.d.comb += [
            advance.eq(~self.out_valid | done),
            self.bus_idle.eq(~self.out_valid & (outstanding == 0)),
            responses.eq(sum(bus.bvalid for bus in self.buses)),
            w_accept.eq(self.out_valid & ~w_taken & w_ready),
            self.unit.done.eq(busy & ~more & self.bus_idle & ~self.unit.error),
        ]
        with m.If(w_accept & (self.out_port == self.config.aux_port)):
            m.d.comb += self.aux_bytes.eq(self.size)
        with m.Elif(w_accept):
            m.d.comb += self.channel_bytes.eq(self.size)
        m.d.sync += outstanding.eq(outstanding + (self.out_valid & advance) - responses)
        with m.If(advance):
            m.d.sync += [aw_taken.eq(0), w_taken.eq(0)]
        with m.Else():
            m.d.sync += [aw_taken.eq(aw_taken | aw_ready), w_taken.eq(w_taken | w_ready)]
        return Cat(bus.bvalid & bus.bresp[1] for bus in self.buses).any()
