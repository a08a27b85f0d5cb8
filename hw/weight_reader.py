"""The reader of one memory channel: AXI4 bursts into a run-ahead FIFO of weight beats."""

from amaranth.hdl import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from hw.burst import next_burst
from hw.interfaces import BEAT_BITS, AXI4Read, descriptor_layout
from hw.spec.config import Config
from hw.spec.isa import StreamFormat, Unit
from hw.spec.resources import Store, fifo
from hw.spec.timing import BURST_BEATS

BEAT_ADDRESS_BITS = 32
"""Beat addresses are sums of fields modulo 2**32 (`hw.spec.legal`)."""

BEAT = data.StructLayout({"data": BEAT_BITS, "first": 1, "raw": 1})
"""first: the first beat of a STREAM instruction; raw: the instruction's format is RAW."""

TAG = data.StructLayout({"first": 1, "raw": 1})


def wrapped_increment(pointer, depth):
    """The pointer after this one in a ring of ``depth``."""
    return Mux(pointer == depth - 1, 0, pointer + 1)


class BeatFIFO(wiring.Component):
    """A ring of beats in block memory whose first beat shows at once.

    Latency: a beat written in r is on ``o`` in r + 1. Throughput: one beat in and one out a cycle. Back-pressure: none
    at the input; its user counts credits. Reset: empty.

    Parameters: ``depth``; ``store``: the primitive. Members: ``i``, ``i_valid``: write; ``o``, ``o_valid``, ``pop``:
    read.
    """

    def __init__(self, depth, store=Store.BLOCK):
        self.depth, self.store = depth, store
        super().__init__(
            {
                "i": In(BEAT),
                "i_valid": In(1),
                "o": Out(BEAT),
                "o_valid": Out(1),
                "pop": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.ring = ring = memory.Memory(
            shape=unsigned(BEAT.size), depth=self.depth, init=[], attrs={"ram_style": self.store.value}
        )
        write = ring.write_port()
        read = ring.read_port(transparent_for=(write,))
        write_at, read_at = Signal(range(self.depth)), Signal(range(self.depth))
        level = Signal(range(self.depth + 1))
        popped = Signal()
        m.d.comb += [
            popped.eq(self.pop & self.o_valid),
            write.en.eq(self.i_valid),
            write.addr.eq(write_at),
            write.data.eq(self.i.as_value()),
            read.en.eq(1),
            read.addr.eq(Mux(popped, wrapped_increment(read_at, self.depth), read_at)),
            self.o.eq(read.data),
            self.o_valid.eq(level != 0),
        ]
        m.d.sync += [read_at.eq(read.addr), level.eq(level + self.i_valid - popped)]
        with m.If(self.i_valid):
            m.d.sync += write_at.eq(wrapped_increment(write_at, self.depth))
        return m


class WeightReader(wiring.Component):
    """Reads n_outer runs of n_inner beats and hands them out in order, tagged with their format.

    Latency: started in s, the first address is on the bus in s + 1, then one a cycle; a beat taken in r can be popped
    in r + 1. Bursts follow `hw.spec.timing.burst_length`. Throughput: one beat a cycle.

    Back-pressure: an address goes out only if the FIFO has room for its whole burst besides everything asked for and
    not yet popped, so ``rready`` is always high. Reset: idle, empty.

    Parameters: ``config``.

    Members: ``start``, ``desc``: an RD instruction (``desc`` is sampled in s); ``active``: addresses are left to send;
    ``stop``: send no new address (one already offered stays); ``bus_idle``: no address offered, no beat awaited;
    ``error``: sticky, a beat came with an error response; ``kv``: a beat of a RAW instruction comes; ``o``,
    ``o_valid``, ``pop``: beats; ``axi``: the channel.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "desc": In(descriptor_layout(Unit.RD)),
                "stop": In(1),
                "active": Out(1),
                "bus_idle": Out(1),
                "error": Out(1),
                "kv": Out(1),
                "o": Out(BEAT),
                "o_valid": Out(1),
                "pop": In(1),
                "axi": Out(AXI4Read()),
            }
        )

    def elaborate(self, platform):
        m = Module()
        depth = self.config.fifo_beats
        asked, taken = Signal(), Signal()
        length, tag = Signal(range(BURST_BEATS + 1)), Signal(TAG)
        self._addresses(m, asked, length, tag)

        m.submodules.fifo = beats = BeatFIFO(depth, fifo(self.config).store)
        free, awaited = Signal(range(depth + 1), init=depth), Signal(range(depth + 1))
        popped, held, room = Signal(), Signal(), Signal()
        few = len(length)
        m.d.comb += [
            room.eq(free[few:].any() | (length <= free[:few])),
            self.axi.arvalid.eq(self.active & room & (~self.stop | held)),
            asked.eq(self.axi.arvalid & self.axi.arready),
            self.axi.rready.eq(1),
            taken.eq(self.axi.rvalid),
            beats.i.data.eq(self.axi.rdata),
            beats.i_valid.eq(taken),
            beats.pop.eq(self.pop),
            self.o.eq(beats.o),
            self.o_valid.eq(beats.o_valid),
            popped.eq(self.pop & self.o_valid),
            self.bus_idle.eq(~self.axi.arvalid & (awaited == 0)),
        ]
        # Both outcomes beside the handshake that chooses one.
        m.d.sync += [
            held.eq(self.axi.arvalid & ~self.axi.arready),
            free.eq(Mux(asked, (free - length) + popped, free + popped)),
            awaited.eq(Mux(asked, (awaited + length) - taken, awaited - taken)),
        ]
        with m.If(taken & (self.axi.rresp != 0)):
            m.d.sync += self.error.eq(1)
        arrived, burst_start = self._tag(m, asked, tag, taken)
        m.d.comb += [
            beats.i.first.eq(arrived.first & burst_start),
            beats.i.raw.eq(arrived.raw),
            self.kv.eq(taken & arrived.raw),
        ]
        return m

    def _addresses(self, m, asked, length, tag):
        """The walk over the runs; ``length`` and ``tag`` are those of the burst at ``beat``."""
        beat, run = Signal(BEAT_ADDRESS_BITS), Signal(BEAT_ADDRESS_BITS)
        left, runs_left, n_inner, stride = (
            Signal(32, name=name) for name in ("left", "runs_left", "n_inner", "stride")
        )
        m.d.comb += [
            length.eq(next_burst(beat, left)),
            self.axi.araddr.eq(Cat(Const(0, 6), beat)),
            self.axi.arlen.eq(length - 1),
        ]
        with m.If(asked):
            m.d.sync += [beat.eq(beat + length), left.eq(left - length), tag.first.eq(0)]
            with m.If(left == length):
                m.d.sync += [beat.eq(run), run.eq(run + stride), left.eq(n_inner), runs_left.eq(runs_left - 1)]
                with m.If(runs_left == 1):
                    m.d.sync += self.active.eq(0)
        with m.If(self.start):
            desc = self.desc
            m.d.sync += [
                beat.eq(desc.addr),
                run.eq(desc.addr + desc.stride),
                stride.eq(desc.stride),
                left.eq(desc.n_inner),
                n_inner.eq(desc.n_inner),
                runs_left.eq(desc.n_outer),
                tag.first.eq(desc.fmt == StreamFormat.STREAM),
                tag.raw.eq(desc.fmt == StreamFormat.RAW),
                self.active.eq((desc.n_inner != 0) & (desc.n_outer != 0)),
            ]

    def _tag(self, m, asked, tag, taken):
        """The tag of the burst that the beat on the bus belongs to, and whether the beat is its first."""
        depth = self.config.fifo_beats
        m.submodules.bursts = bursts = memory.Memory(shape=TAG, depth=depth, init=[])
        write, read = bursts.write_port(), bursts.read_port(domain="comb")
        first = Signal(init=1)
        m.d.comb += [write.en.eq(self.axi.arvalid), write.data.eq(tag)]  # again and again until it is taken
        with m.If(asked):
            m.d.sync += write.addr.eq(wrapped_increment(write.addr, depth))
        with m.If(taken):
            m.d.sync += first.eq(self.axi.rlast)
            with m.If(self.axi.rlast):
                m.d.sync += read.addr.eq(wrapped_increment(read.addr, depth))
        return read.data, first
