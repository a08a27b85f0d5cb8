"""The kernel that XRT accepts: the accelerator with the names, the reset and the signals that Vitis asks for."""

from amaranth.hdl import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.accelerator import TOP, ports
from hw.spec.config import Config

CACHE_MODIFIABLE_BUFFERABLE = 0b0011
"""What AMD recommends for memory ports: interconnects may merge and buffer."""
PROTECTION = 0
TIED = {
    "arcache": (4, CACHE_MODIFIABLE_BUFFERABLE),
    "arprot": (3, PROTECTION),
    "awcache": (4, CACHE_MODIFIABLE_BUFFERABLE),
    "awprot": (3, PROTECTION),
}
"""Memory port signals that the kernel adds: (bits, value)."""
RESET_STAGES = 2


class Kernel(wiring.Component):
    """The packaged top module.

    Ports: ap_clk; ap_rst_n, synchronous, active low, registered here (UG1393 asks for pipelining); interrupt;
    `s_axi_control_*`; `mNN_axi_*`. Each belongs to an interface: no trace, nothing else.
    Contract, latency, back-pressure: `hw.accelerator.Accelerator`, whose reset comes RESET_STAGES cycles later; a
    register access waits until it is over. Its Verilog stands beside this one's: `hw.emit.kernel_verilog`.
    Reset: as the accelerator's.

    Parameters: config.
    """

    def __init__(self, config: Config):
        self.config = config
        self.inner = ports(config)
        kept = {name: member for name, member in self.inner.items() if "_axi_" in name}
        for port in range(config.units + 1):
            kept |= {f"m{port:02d}_axi_{name}": Out(bits) for name, (bits, _) in TIED.items()}
        super().__init__({"ap_clk": In(1), "ap_rst_n": In(1), "interrupt": Out(1)} | dict(sorted(kept.items())))

    def elaborate(self, platform):
        m = Module()
        m.domains.ap = ap = ClockDomain(local=True, reset_less=True)
        resets = Signal(RESET_STAGES, init=-1)
        m.d.ap += resets.eq(Cat(~self.ap_rst_n, resets))
        m.d.comb += ap.clk.eq(self.ap_clk)
        connections = {"i_clk": self.ap_clk, "i_rst": resets[-1], "o_irq": self.interrupt}
        for name, member in self.inner.items():
            if name in self.signature.members:
                held = name.startswith("s_axi_control_") and name.endswith("valid") and member.flow is In
                # What came during the late reset would be lost: readies follow valids.
                value = getattr(self, name) & ~resets[-1] if held else getattr(self, name)
                connections[("o_" if member.flow is Out else "i_") + name] = value
        m.submodules.accelerator = Instance(TOP, **connections)
        for port in range(self.config.units + 1):
            m.d.comb += [getattr(self, f"m{port:02d}_axi_{name}").eq(value) for name, (_, value) in TIED.items()]
        return m
