"""Program fetch and instruction memory."""

from amaranth.hdl import *
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from hw.burst import next_burst
from hw.interfaces import BEAT_BITS, AXI4Read
from hw.pipeline import copies
from hw.spec.config import BEAT_BYTES, Config
from hw.spec.isa import INSTRUCTION_BYTES

PER_BEAT = BEAT_BYTES // INSTRUCTION_BYTES


class Fetch(wiring.Component):
    """Loads the program from the auxiliary memory, then tells the sequencer to go; holds the instruction memory.

    Contract: ceil(length / 8) beats from beat address `address` on, eight 64-bit instructions a beat, the first in the
    low bytes. A length beyond the instruction memory raises `illegal` in cycle 0; a bus error raises `bus_error`.
    Latency and throughput: first AR in cycle 1, then one a cycle; `go` in the cycle after the last beat, without fetch
    (skip, or length 0) in cycle 1. The read port answers in the next cycle.
    Back-pressure: arready is honoured, beats are always taken.
    Reset: state only; the memory keeps its program.

    Parameters: config.
    Members: run; skip, address (beats), length (instructions); bus; active: beats on the bus are the program's; go;
    illegal, bus_error; pc -> words: the read port, its word twice, because a reader loads it much.
    """

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "run": In(1),
                "skip": In(1),
                "address": In(32),
                "length": In(32),
                "bus": Out(AXI4Read()),
                "active": Out(1),
                "go": Out(1),
                "illegal": Out(1),
                "bus_error": Out(1),
                "pc": In(32),
                "words": Out(data.ArrayLayout(64, 2)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        limit = self.config.imem_instructions
        shape = data.ArrayLayout(64, PER_BEAT)
        m.submodules.program = program = memory.Memory(
            shape=shape, depth=limit // PER_BEAT, init=[], attrs={"ram_style": "block"}
        )
        write, read = program.write_port(), program.read_port()
        asked, expected = (Signal(range(limit // PER_BEAT + 1), name=name) for name in ("asked", "expected"))
        at = Signal(range(limit // PER_BEAT))
        address = Signal(32, reset_less=True)
        lanes = copies(m, self.pc[:3], len(self.words), "lane")
        burst = Signal(5)
        beats = (self.length + PER_BEAT - 1) >> 3
        taken = self.bus.rvalid & self.active
        m.d.comb += [
            burst.eq(next_burst(address, asked)),
            self.bus.araddr.eq(address << 6),
            self.bus.arlen.eq(burst - 1),
            self.bus.arvalid.eq(self.active & (asked != 0)),
            self.bus.rready.eq(1),
            write.en.eq(taken),
            write.addr.eq(at),
            Value.cast(write.data).eq(self.bus.rdata),
            self.bus_error.eq(taken & self.bus.rresp[1]),
            read.addr.eq(self.pc >> 3),
            *(word.eq(read.data[lane]) for word, lane in zip(self.words, lanes, strict=True)),
        ]
        with m.FSM():
            with m.State("BEGIN"), m.If(self.run):
                m.d.sync += [address.eq(self.address), asked.eq(beats), expected.eq(beats)]
                with m.If(self.length > limit):
                    m.d.comb += self.illegal.eq(1)
                    m.next = "END"
                with m.Elif(self.skip | (self.length == 0)):
                    m.next = "GO"
                with m.Else():
                    m.next = "LOAD"
            with m.State("LOAD"):
                m.d.comb += self.active.eq(1)
                with m.If(self.bus.arvalid & self.bus.arready):
                    m.d.sync += [address.eq(address + burst), asked.eq(asked - burst)]
                with m.If(taken):
                    m.d.sync += [at.eq(at + 1), expected.eq(expected - 1)]
                    with m.If(expected == 1):
                        m.next = "GO"
            with m.State("GO"):
                m.d.comb += self.go.eq(1)
                m.next = "END"
            with m.State("END"):
                pass
        return m


assert BEAT_BITS == 64 * PER_BEAT
