"""The end of ST: beats wait in a queue and are held on the bus until both of their handshakes are done."""

from amaranth.hdl import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

QUEUE_BEATS = 16


class BeatPart(wiring.Component):
    """Some bits of every beat: a queue in LUT memory, and the register that is on the bus.

    Whether the next beat is loaded follows from the handshakes of this cycle, and what is loaded is wide: each part
    finds it out by itself, and all parts go in step.

    Contract: beats leave in the order in which they were pushed; no more than QUEUE_BEATS may be pushed and not loaded.
    Latency: pushed in t, on the bus from t + 2 on. Throughput: a beat a cycle. Back-pressure: a beat stays until no
    port has its address or its data outstanding. With ``run`` low none is loaded. Reset: empty.

    Parameters: ``bits``; ``ports``.
    Members: ``push``, ``i``; ``run``; ``waiting``: the valid bits on the bus, of addresses, then of data, a bit a port;
    ``ready``: the bus's answers, alike; ``head``: the next beat, which ``load`` puts on the bus in the next cycle;
    ``o``: the beat there; ``valid``: there is one; ``taken``: its last handshake is in this cycle.
    """

    def __init__(self, bits: int, ports: int):
        super().__init__(
            {
                "push": In(1),
                "i": In(bits),
                "run": In(1),
                "waiting": In(2 * ports),
                "ready": In(2 * ports),
                "head": Out(bits),
                "load": Out(1),
                "o": Out(bits),
                "valid": Out(1),
                "taken": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.queue = queue = memory.Memory(shape=unsigned(len(self.i)), depth=QUEUE_BEATS, init=[])
        write, read = queue.write_port(), queue.read_port(domain="comb")
        write_at, read_at = Signal(range(QUEUE_BEATS)), Signal(range(QUEUE_BEATS))
        left, beat = Signal(range(QUEUE_BEATS + 1)), Signal(len(self.i), reset_less=True)
        m.d.comb += [
            write.en.eq(self.push),
            write.addr.eq(write_at),
            write.data.eq(self.i),
            read.addr.eq(read_at),
            self.head.eq(read.data),
            self.taken.eq(self.valid & ~(self.waiting & ~self.ready).any()),
            self.load.eq((left != 0) & self.run & (~self.valid | self.taken)),
            self.o.eq(beat),
        ]
        m.d.sync += [
            write_at.eq(write_at + self.push),
            read_at.eq(read_at + self.load),
            left.eq(left + self.push - self.load),
            self.valid.eq(self.load | (self.valid & ~self.taken)),
        ]
        with m.If(self.load):
            m.d.sync += beat.eq(read.data)
        return m
