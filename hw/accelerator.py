"""The chip: control registers and core behind flat AXI ports."""

from amaranth.hdl import *
from amaranth.lib import data, wiring
from amaranth.lib.wiring import Out

from hw.control import AXI4Lite, Control
from hw.core import Core
from hw.interfaces import MEMORY_ADDRESS_BITS, AXI4Read, AXI4Write, based
from hw.pipeline import Slice, reset_through
from hw.spec.cards import card_of
from hw.spec.config import BEAT_BYTES, Config
from hw.spec.isa import Unit

TOP = "alula"
BURST_INCR = 1
SIZE_LOG2 = BEAT_BYTES.bit_length() - 1
CONSTANTS = {"arsize": (3, SIZE_LOG2), "arburst": (2, BURST_INCR), "awsize": (3, SIZE_LOG2), "awburst": (2, BURST_INCR)}
"""Memory port signals that never change: (bits, value)."""


READ_ADDRESS = ("araddr", "arlen", "arvalid", "arready")
READ_REQUEST = data.StructLayout({"address": MEMORY_ADDRESS_BITS, "length": 8})


def _flat(prefix, signature):
    """The members of an interface without members of its own, each a port of its own."""
    return {prefix + name: member for name, member in signature.members.items()}


def ports(config: Config) -> dict:
    """The top's members."""
    members = _flat("s_axi_control_", AXI4Lite().flip())
    for port in range(config.units + 1):
        for signature in (AXI4Read(), AXI4Write()):
            members |= _flat(f"m{port:02d}_axi_", signature)
        members |= {f"m{port:02d}_axi_{name}": Out(bits) for name, (bits, _) in CONSTANTS.items()}
    for unit in Unit:
        name = unit.name.lower()
        members |= {f"trace_{name}_start": Out(1), f"trace_{name}_done": Out(1), f"trace_{name}_tag": Out(32)}
    return members | {"trace_cycle": Out(64), "irq": Out(1)}


class Accelerator(wiring.Component):
    """The top module.

    Ports: clk, rst, `s_axi_control_*` (AXI4-Lite), `m00_axi_*` .. (AXI4 masters: the channels, then aux), irq, trace_*.
    Contract: docs/machine.md; registers: `hw.spec.csr`. Every burst is INCR of whole beats without IDs; addresses are
    bytes: the program's, and the port's base register added. In a channel's read addresses that is done by its matrix
    unit (`hw.weight_reader`), in the auxiliary port's here, between two register slices.
    Latency and throughput: `hw.spec.timing`, counted by `trace_cycle`.
    Back-pressure: all handshakes are honoured; R and B are always ready.
    Reset: `rst`, synchronous; the core is also reset by each START. Both resets go through a register, from which the
    tree of the core's blocks goes on (`hw.core`). Memories keep their contents.

    Elaboration refuses, with `ConfigError`, a configuration that does not fit its card (`hw.spec.cards.card_of`).

    Parameters: config; shared: the matrix unit is one Verilog module (False for the Amaranth simulator); primitive:
    DSP48E2 instances in place of their Amaranth model.
    Members: as above; trace_<unit>_start, _done, _tag (of the entry that starts or runs), trace_cycle.
    """

    def __init__(self, config: Config, *, primitive=True, shared=True):
        self.config, self.primitive, self.shared = config, primitive, shared
        super().__init__(ports(config))

    def elaborate(self, platform):
        card_of(self.config).check(self.config)
        m = Module()
        control, core = Control(self.config), Core(self.config, primitive=self.primitive, shared=self.shared)
        m.submodules.control = reset_through(m, "host", ResetSignal(), control)
        m.submodules.core = reset_through(m, "core", ResetSignal() | control.clear, core)
        m.d.comb += [
            self.irq.eq(control.irq),
            self.trace_cycle.eq(control.cycle),
        ]
        for name, member in core.signature.members.items():
            if name in control.signature.members:
                source, target = (core, control) if member.flow is Out else (control, core)
                m.d.comb += Value.cast(getattr(target, name)).eq(Value.cast(getattr(source, name)))
        self._join(m, "s_axi_control_", control.axi)
        for port in range(self.config.units + 1):
            prefix = f"m{port:02d}_axi_"
            write, aux = core.writes[port], port == self.config.aux_port
            self._join(m, prefix, write, but=("awaddr",))
            self._join(m, prefix, core.reads[port], but=READ_ADDRESS if aux else ())
            m.d.comb += getattr(self, prefix + "awaddr").eq(based(write.awaddr, control.bases[port]))
            m.d.comb += [getattr(self, prefix + name).eq(value) for name, (_, value) in CONSTANTS.items()]
        for channel in range(self.config.units):
            m.d.comb += core.channel_bases[channel].eq(control.bases[channel])
        self._aux_addresses(m, core.reads[self.config.aux_port], control.bases[self.config.aux_port])
        for unit in Unit:
            prefix = f"trace_{unit.name.lower()}_"
            m.d.comb += [
                getattr(self, prefix + "start").eq(core.starts[unit]),
                getattr(self, prefix + "done").eq(core.dones[unit]),
                getattr(self, prefix + "tag").eq(core.tags[unit]),
            ]
        return m

    def _aux_addresses(self, m, read, base):
        """The auxiliary port's read addresses: slice, base, slice, port."""
        prefix = f"m{self.config.aux_port:02d}_axi_"
        m.submodules.request = request = Slice(READ_REQUEST)
        m.submodules.address = address = Slice(READ_REQUEST)
        m.d.comb += [
            request.i.payload.address.eq(read.araddr),
            request.i.payload.length.eq(read.arlen),
            request.i.valid.eq(read.arvalid),
            read.arready.eq(request.i.ready),
            address.i.payload.address.eq(based(request.o.payload.address, base)),
            address.i.payload.length.eq(request.o.payload.length),
            address.i.valid.eq(request.o.valid),
            request.o.ready.eq(address.i.ready),
            getattr(self, prefix + "araddr").eq(address.o.payload.address),
            getattr(self, prefix + "arlen").eq(address.o.payload.length),
            getattr(self, prefix + "arvalid").eq(address.o.valid),
            address.o.ready.eq(getattr(self, prefix + "arready")),
        ]

    def _join(self, m, prefix, interface, but=()):
        """Connects an inner interface to the flat ports of its prefix, all but some."""
        for name in interface.signature.members:
            if name in but:
                continue
            inner, outer = getattr(interface, name), getattr(self, prefix + name)
            drives = self.signature.members[prefix + name].flow is Out
            m.d.comb += outer.eq(inner) if drives else inner.eq(outer)
