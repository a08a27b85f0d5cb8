"""Registers for distance: one that stays its own, several in place of one, and a slice of a stream."""

from amaranth.hdl import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

KEEP = {"keep": "true"}
"""Synthesis must not merge a register with another of the same input."""


class Relay(wiring.Component):
    """A register in a module of its own, so that no tool merges it with its likes.

    Latency: one cycle. Throughput: a value a cycle. Back-pressure: none. Reset: to 0, if ``resets``.

    Parameters: ``bits``; ``resets``: whether the reset reaches it.
    Members: ``i``; ``o``: the value of the cycle before.
    """

    def __init__(self, bits: int = 1, *, resets: bool = False):
        self.resets = resets
        super().__init__({"i": In(bits), "o": Out(bits)})

    def elaborate(self, platform):
        m = Module()
        held = Signal(len(self.o), name="held", reset_less=not self.resets, attrs=KEEP)
        m.d.sync += held.eq(self.i)
        m.d.comb += self.o.eq(held)
        return m


def copies(m, value, n: int, name: str, *, resets: bool = False) -> list[Value]:
    """The value one cycle later, n times: each copy has loads of its own."""
    value, found = Value.cast(value), []
    for number in range(n):
        m.submodules[f"{name}_{number}"] = relay = Relay(len(value), resets=resets)
        m.d.comb += relay.i.eq(value)
        found.append(relay.o)
    return found


def fanned(m, value, cycles: int, n: int, name: str) -> list[Value]:
    """The value as it was so many cycles ago (at least 1), n times: copies stand for the last of the registers."""
    for cycle in range(1, cycles):
        stage = Signal(len(Value.cast(value)), name=f"{name}_{cycle}", reset_less=True)
        m.d.sync += stage.eq(value)
        value = stage
    return copies(m, value, n, name)


class Slice(wiring.Component):
    """A register slice: valid, payload and ready all leave registers, so neither direction has a path through it.

    Latency: one cycle. Throughput: a transfer a cycle. Back-pressure: with the output stalled it takes one transfer
    more and then is not ready. Reset: empty.

    Parameters: ``shape`` of the payload. Members: ``i``, ``o``.
    """

    def __init__(self, shape):
        self.shape = shape
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        bits = Shape.cast(self.shape).width
        payload, spare = (Signal(bits, name=name, reset_less=True) for name in ("payload", "spare"))
        valid, room = Signal(), Signal(init=1)
        """`room`: the spare register holds no transfer behind that at the output."""
        m.d.comb += [Value.cast(self.o.payload).eq(payload), self.o.valid.eq(valid), self.i.ready.eq(room)]
        with m.If(room):
            m.d.sync += spare.eq(self.i.payload)
        with m.If(~valid | self.o.ready):
            m.d.sync += [payload.eq(Mux(room, self.i.payload, spare)), valid.eq(~room | self.i.valid), room.eq(1)]
        with m.Elif(self.i.valid):
            m.d.sync += room.eq(0)
        return m


def reset_domain(m, name: str, reset) -> DomainRenamer:
    """A clock domain of this name in a module and those below it: the same clock, and the reset a cycle later, in a
    register that nothing else loads. What puts a component into it."""
    domain = ClockDomain(name, local=True)
    m.domains += domain
    (held,) = copies(m, reset, 1, f"{name}_reset")
    m.d.comb += [domain.clk.eq(ClockSignal()), domain.rst.eq(held)]
    return DomainRenamer(name)


def reset_through(m, name: str, reset, component):
    """The component in a `reset_domain` of its own."""
    return reset_domain(m, name, reset)(component)
