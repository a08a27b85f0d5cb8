"""The reader of one memory channel: AXI4 bursts into a run-ahead FIFO of weight beats."""

from amaranth.hdl import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from hw.burst import next_burst
from hw.interfaces import BASE_BITS, BEAT_BITS, MEMORY_ADDRESS_BITS, AXI4Read, based, descriptor_layout
from hw.skid import Skid
from hw.spec.config import Config
from hw.spec.isa import StreamFormat, Unit
from hw.spec.resources import Store, fifo
from hw.spec.timing import BURST_BEATS

BEAT_ADDRESS_BITS = 32
"""Beat addresses are sums of fields modulo 2**32 (`hw.spec.legal`)."""

BEAT = data.StructLayout({"data": BEAT_BITS, "first": 1, "raw": 1})
"""first: the first beat of a STREAM instruction; raw: the instruction's format is RAW."""

TAG = data.StructLayout({"first": 1, "raw": 1})
CAME = data.StructLayout({"raw": 1, "stream": 1})
"""A beat has come, of a RAW or of a STREAM instruction."""
ADDRESS = data.StructLayout({"addr": MEMORY_ADDRESS_BITS, "len": 8})
RESPONSE = data.StructLayout({"data": BEAT_BITS, "resp": 2, "last": 1})


def wrapped_increment(pointer, depth):
    """The pointer after this one in a ring of ``depth``."""
    return Mux(pointer == depth - 1, 0, pointer + 1)


class BeatFIFO(wiring.Component):
    """A ring of beats in block memory whose first beat shows without being asked for.

    Latency: a beat written in r is on ``o`` in r + 2: a memory that showed it earlier would need its data bypassed.
    Throughput: one beat in and one out a cycle. Back-pressure: none at the input; its user counts credits. Reset:
    empty.

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
        read = ring.read_port()
        write_at, read_at = Signal(range(self.depth)), Signal(range(self.depth))
        level = Signal(range(self.depth + 1))
        popped, written = Signal(), Signal()
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
        m.d.sync += [read_at.eq(read.addr), written.eq(self.i_valid), level.eq(level + written - popped)]
        with m.If(self.i_valid):
            m.d.sync += write_at.eq(wrapped_increment(write_at, self.depth))
        return m


class WeightReader(wiring.Component):
    """Reads n_outer runs of n_inner beats and hands them out in order, tagged with their format.

    Latency: started in s, the first address is on the bus in s + 2, then one a cycle; a beat on the bus in r can be
    popped in r + ``RD_BEAT``. Bursts follow `hw.spec.timing.burst_length`. Throughput: one beat a cycle.

    Back-pressure: an address goes out only if the FIFO has room for its whole burst besides everything asked for and
    not yet popped, so ``rready`` is always high. Reset: idle, empty.

    Parameters: ``config``.

    Members: ``start``, ``desc``: an RD instruction (``desc`` is sampled in s); ``active``: addresses are left to send;
    ``stop``: send no new address (those already offered stay); ``base``: of the channel's memory, in pages, added to
    every address (it stays as it is while the reader is active); ``bus_idle``: no address offered, no beat awaited;
    ``error``: sticky, a beat came with an error response; ``came``: a beat came, of RAW, of STREAM; ``o``, ``o_valid``,
    ``pop``: beats; ``axi``: the channel, whose signals are registers on the reader's side.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "desc": In(descriptor_layout(Unit.RD)),
                "stop": In(1),
                "base": In(BASE_BITS),
                "active": Out(1),
                "bus_idle": Out(1),
                "error": Out(1),
                "came": Out(CAME),
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
        m.submodules.address = address = Skid(ADDRESS)
        self._addresses(m, address, asked, length, tag)

        m.submodules.fifo = beats = BeatFIFO(depth, fifo(self.config).store)
        came = Signal(RESPONSE, reset_less=True)
        free, awaited = Signal(range(depth + 1), init=depth), Signal(range(depth + 1))
        popped, room = Signal(), Signal()
        few = len(length)
        m.d.comb += [
            room.eq(free[few:].any() | (length <= free[:few])),
            address.i_valid.eq(self.active & room & ~self.stop),
            asked.eq(address.i_valid & address.i_ready),
            self.axi.arvalid.eq(address.o_valid),
            self.axi.araddr.eq(address.o.addr),
            self.axi.arlen.eq(address.o.len),
            address.o_ready.eq(self.axi.arready),
            self.axi.rready.eq(1),
            beats.i.data.eq(came.data),
            beats.i_valid.eq(taken),
            beats.pop.eq(self.pop),
            self.o.eq(beats.o),
            self.o_valid.eq(beats.o_valid),
            popped.eq(self.pop & self.o_valid),
            self.bus_idle.eq(awaited == 0),
        ]
        # Both outcomes beside the handshake that chooses one.
        m.d.sync += [
            came.data.eq(self.axi.rdata),
            came.resp.eq(self.axi.rresp),
            came.last.eq(self.axi.rlast),
            taken.eq(self.axi.rvalid),
            free.eq(Mux(asked, (free - length) + popped, free + popped)),
            awaited.eq(Mux(asked, (awaited + length) - taken, awaited - taken)),
        ]
        with m.If(taken & came.resp.any()):
            m.d.sync += self.error.eq(1)
        arrived, burst_start = self._tag(m, asked, tag, taken, came.last)
        m.d.comb += [
            beats.i.first.eq(arrived.first & burst_start),
            beats.i.raw.eq(arrived.raw),
            self.came.raw.eq(taken & arrived.raw),
            self.came.stream.eq(taken & ~arrived.raw),
        ]
        return m

    def _addresses(self, m, address, asked, length, tag):
        """The walk over the runs into ``address``; ``length`` and ``tag`` are those of the burst at ``beat``."""
        beat, run, left, runs_left, n_inner, stride = (
            Signal(BEAT_ADDRESS_BITS, name=name, reset_less=True)
            for name in ("beat", "run", "left", "runs_left", "n_inner", "stride")
        )
        m.d.comb += [
            length.eq(next_burst(beat, left)),
            address.i.addr.eq(based(Cat(Const(0, 6), beat), self.base)),
            address.i.len.eq(length - 1),
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
                # An illegal descriptor asks for nothing: the error that it is comes too late to stop it.
                self.active.eq((desc.n_inner != 0) & (desc.n_outer != 0) & (desc.fmt <= max(StreamFormat))),
            ]

    def _tag(self, m, asked, tag, taken, last):
        """The tag of the burst that the beat belongs to which has been taken, and whether the beat is its first."""
        depth = self.config.fifo_beats
        m.submodules.bursts = bursts = memory.Memory(shape=TAG, depth=depth, init=[])
        write, read = bursts.write_port(), bursts.read_port(domain="comb")
        first = Signal(init=1)
        m.d.comb += [write.en.eq(1), write.data.eq(tag)]  # again and again until it is taken
        with m.If(asked):
            m.d.sync += write.addr.eq(wrapped_increment(write.addr, depth))
        with m.If(taken):
            m.d.sync += first.eq(last)
            with m.If(last):
                m.d.sync += read.addr.eq(wrapped_increment(read.addr, depth))
        return read.data, first
