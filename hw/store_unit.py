"""ST: the store buffer SB to the auxiliary memory and to the K and V caches in the channels."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.buffer_memory import READ_LATENCY, BufferMemory
from hw.interfaces import BEAT_BITS, AXI4Write, BufferWrite, UnitPort
from hw.pipeline import copies
from hw.spec.config import BEAT_BYTES, GRANULE_LANES, Config
from hw.spec.isa import Error, StKind, StMode, Unit
from hw.spec.resources import buffer
from hw.store_output import QUEUE_BEATS, BeatPart
from hw.vector_arith import delayed, registered

STRIDES = {
    # mode: what a step of t, h, g adds to the beat address
    StMode.LIN: ("stride_tok", "stride_head", 1),
    StMode.K: (0, "stride_head", "stride_gran"),
    StMode.V: (0, "stride_head", "stride_gran"),
    StMode.SC: (0, "stride_head", 0),
}


STROBES = {
    # mode: the strobes of key 0, and by how many bytes each key moves them on
    StMode.LIN: ((1 << BEAT_BYTES) - 1, 0),
    StMode.K: (0xFFFF, 16),
    StMode.V: (0x0001_0001_0001_0001, 1),
    StMode.SC: (0xF, 4),
}
PLACED_AT = READ_LATENCY + 1
"""Stages from an item's issue to its placed bytes; the queue and the bus take one each."""
DATA_GROUPS = 8
"""Groups of a beat's bits whose multiplexers have selects of their own."""
BEAT_PARTS = 4


def bytes_of(granule, lane_bytes):
    """A beat whose byte groups are given by `lane_bytes`: a list of 64 lane numbers, the low byte of each."""
    return Cat(granule.word_select(lane, 32)[:8] for lane in lane_bytes)


class StoreUnit(wiring.Component):
    """ST and the store buffer.

    Contract: `hw.spec.isa.StMode`; addresses mod 2**32. A source beyond SB is BUFFER_RANGE in its issue cycle; an
    undefined mode or kind or a zero count ILLEGAL_DESCRIPTOR in t + 1, t the cycle of `unit.start`; a bad response
    BUS_WRITE a cycle behind it.
    Latency and throughput: item beat k issues in t + 1 + k; ST_PIPE = 6 cycles later its AW and W are presented: three
    for SB (the address is multiplied meanwhile), one to place the bytes, one in the queue, one to the bus. Done two
    cycles behind the last B.
    Back-pressure: AW and W are held until both are taken; the pipe never stalls, but nothing issues while its queue has
    no room. With `run` low nothing new is presented.
    Reset: idle; SB keeps its contents (0 at power-up).

    Parameters: config.
    Members: unit; run; buffer (the vector unit's write port); buses (write halves, the channels' first, then aux);
    bus_idle: nothing is presented, no response awaited; channel_bytes, aux_bytes: enabled strobes accepted in the cycle
    before.
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
        item = data.StructLayout(
            {"mode": 2, "source": 32, "partial": 32, "slot": 32, "key": 4, "i": 2, "port": port_bits}
        )
        issued = {name: Signal(field.shape, name=f"issued_{name}") for name, field in item}
        busy, active, illegal, walks = Signal(), Signal(), Signal(), Signal()
        """`walks`: whether the next cycle is `active`."""
        room, valid = Signal(range(QUEUE_BEATS + 1), init=QUEUE_BEATS), Signal(PLACED_AT)
        """`room`: beats that may still issue; `valid`, bit k: a beat in stage k + 1."""
        counts = (desc.n_tok == 0) | (desc.n_head == 0) | (desc.n_gran == 0)
        step, outside = Signal(), Signal()
        m.d.comb += [
            step.eq(active & ~illegal & self.run & (room != 0)),
            outside.eq(step & (issued["source"] >= self.config.sb_granules)),
        ]
        m.d.comb += walks.eq(self.unit.start | active)
        m.d.sync += active.eq(walks)
        self._walk(m, desc, issued, walks, step)
        stages = [data.View(item, Value.cast(Cat(*issued.values())))]
        for stage in range(1, PLACED_AT):
            stages.append(data.View(item, registered(m, stages[-1], f"item_{stage}")))
        goes = step & ~outside
        m.d.sync += valid.eq(Cat(goes, valid))
        beat = self._place(m, stages, self._memory(m, issued["source"], step))
        load, bad, idle = self._bus(m, valid[-1], beat)
        m.d.sync += room.eq(room - goes + load)
        m.d.comb += self.unit.done.eq(busy & ~active & (room == QUEUE_BEATS) & idle)
        with m.If(self.unit.start):
            m.d.sync += [busy.eq(1), illegal.eq(counts | (desc.mode > max(StMode)) | (desc.kind > max(StKind)))]
        with m.Elif(self.unit.done):
            m.d.sync += busy.eq(0)
        raised = ((outside, Error.BUFFER_RANGE), (bad, Error.BUS_WRITE), (busy & illegal, Error.ILLEGAL_DESCRIPTOR))
        for condition, code in raised:
            with m.If(condition):
                m.d.comb += [self.unit.error.eq(1), self.unit.error_code.eq(code)]
        return m

    def _walk(self, m, desc, issued, walks, step):
        """The items in order t, h, g, i, with running sums in place of products."""
        i, (g, h, t) = Signal(2), (Signal(32, name=name, reset_less=True) for name in "ght")
        sums = {
            name: Signal(32, name=name, reset_less=True)
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

        # Between two instructions the first item is set up again and again: no start has to reach so many registers.
        counts, sources, beats = copies(m, walks, 3, "active", resets=True)
        with m.If(step):
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
                m.d.comb += walks.eq(0)
        with m.If(~counts):
            m.d.sync += [i.eq(0), g.eq(0), h.eq(0), t.eq(0)]
        for active, name, first in ((sources, "source", desc.src), (beats, "beat", desc.addr)):
            with m.If(~active):
                m.d.sync += [sums[f"{name}_{level}"].eq(first) for level in "ght"]

    def _memory(self, m, source, en):
        """SB; returns the word of the item that was issued READ_LATENCY cycles ago."""
        m.submodules.sb = sb = BufferMemory(buffer(self.config, "SB"), registered=True)
        m.d.comb += [
            sb.write_en.eq(self.buffer.en),
            sb.write_addr.eq(self.buffer.addr),
            sb.write_data.eq(Value.cast(self.buffer.data)),
            sb.read_en.eq(en),
            sb.read_addr.eq(source >> self.config.granules_per_word.bit_length() - 1),
        ]
        return sb.read_data

    def _place(self, m, stages, word):
        """Address, data, strobes, size and port of the beat, in registers: what is in stage PLACED_AT."""
        item, before = stages[PLACED_AT - 1], stages[PLACED_AT - 2]
        cached = (stages[1].mode == StMode.K) | (stages[1].mode == StMode.V)
        product = delayed(m, Mux(cached, stages[1].slot * self.unit.desc.stride_slot, 0)[:32], 2, "product")
        per_word = self.config.granules_per_word
        part = before.source[: per_word.bit_length() - 1]
        choices = copies(m, Cat(before.mode, before.i, part), DATA_GROUPS, "choice")
        size = BEAT_BITS // DATA_GROUPS
        bits = []
        for number, choice in enumerate(choices):
            granule = word.word_select(choice[4:], BEAT_BITS) if per_word > 1 else word
            bits.append(
                _data(m, choice[:2], choice[2:4], granule, f"data_{number}")[number * size : (number + 1) * size]
            )
        strobes, n_bytes = Signal(BEAT_BYTES, name="strobes"), Signal(range(BEAT_BYTES + 1), name="size")
        with m.Switch(item.mode):
            for mode, (pattern, shift) in STROBES.items():
                with m.Case(mode):
                    key = item.key[:2] if mode == StMode.K else item.key
                    m.d.comb += [
                        strobes.eq(Const(pattern, BEAT_BYTES) << (key * shift)),
                        n_bytes.eq(pattern.bit_count()),
                    ]
        address = (item.partial + product)[:32]
        return registered(m, Cat(item.port, n_bytes, address, strobes, *bits), "beat")

    def _bus(self, m, push, beat):
        """The beat on the bus and responses; returns: a beat leaves the queue, a bad response came, nothing is open."""
        ports = len(self.buses)
        port_bits, valids = ceil_log2(ports), Signal(2 * ports, name="valids")
        """Bits of `valids`: awvalid of each port, then wvalid."""
        ready = Cat(*(bus.awready for bus in self.buses), *(bus.wready for bus in self.buses))
        size = -(-len(beat) // BEAT_PARTS)
        parts = []
        for number in range(BEAT_PARTS):
            here = beat[number * size : (number + 1) * size]
            m.submodules[f"part_{number}"] = part = BeatPart(len(here), ports)
            m.d.comb += [
                part.push.eq(push),
                part.i.eq(here),
                part.run.eq(self.run),
                part.waiting.eq(valids),
                part.ready.eq(ready),
            ]
            parts.append(part)
        first, out = parts[0], Cat(*(part.o for part in parts))
        with m.If(first.load):
            m.d.sync += valids.eq(Cat(first.head[:port_bits] == port for port in range(ports)).replicate(2))
        with m.Else():
            m.d.sync += valids.eq(valids & ~ready)
        n_bytes, rest = out[port_bits:][:7], out[port_bits + 7 :]
        for index, bus in enumerate(self.buses):
            m.d.comb += [
                bus.awaddr.eq(rest[:32] << 6),
                bus.awlen.eq(0),
                bus.awvalid.eq(valids[index]),
                bus.wstrb.eq(rest[32:]),
                bus.wdata.eq(rest[32 + BEAT_BYTES :]),
                bus.wlast.eq(1),
                bus.wvalid.eq(valids[ports + index]),
                bus.bready.eq(1),
            ]
        written = valids[ports:] & ready[ports:]
        n_bytes = registered(m, n_bytes, "accepted_size")
        for name, ends in (("channel_bytes", written[:-1].any()), ("aux_bytes", written[-1])):
            m.d.comb += getattr(self, name).eq(Mux(registered(m, ends, f"{name}_end"), n_bytes, 0))
        answered, bad = (Signal(ports, name=name, reset_less=True) for name in ("answered", "bad"))
        outstanding, taken = Signal(32, name="outstanding"), Signal(name="taken")
        m.d.sync += [
            taken.eq(first.taken),
            answered.eq(Cat(bus.bvalid for bus in self.buses)),
            bad.eq(Cat(bus.bvalid & bus.bresp[1] for bus in self.buses)),
            outstanding.eq(outstanding + taken - sum(answered)),
        ]
        m.d.comb += self.bus_idle.eq(~first.valid & ~taken & (outstanding == 0))
        return first.load, bad.any(), self.bus_idle


def _data(m, mode, i, granule, name):
    """The bytes of a beat in its mode."""
    found, quarter = Signal(BEAT_BITS, name=name), granule.word_select(i, 128)
    with m.Switch(mode):
        with m.Case(StMode.LIN):
            m.d.comb += found.eq(granule)
        with m.Case(StMode.K):
            m.d.comb += found.eq(bytes_of(granule, list(range(16)) * 4))
        with m.Case(StMode.V):
            m.d.comb += found.eq(bytes_of(quarter, [j for j in range(4) for _ in range(16)]))
        with m.Case(StMode.SC):
            m.d.comb += found.eq(granule[:32].replicate(GRANULE_LANES))
    return found
