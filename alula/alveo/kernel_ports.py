"""The kernel's ports, as the interfaces that the vendor's tools expect."""

import re

from hw.spec.config import BEAT_BYTES, Config
from hw.spec.packaging import KERNEL, port_name

_BITS = 8 * BEAT_BYTES
MASTER = {
    "araddr": (64, "output"), "arlen": (8, "output"), "arsize": (3, "output"), "arburst": (2, "output"),
    "arcache": (4, "output"), "arprot": (3, "output"), "arvalid": (1, "output"), "arready": (1, "input"),
    "rdata": (_BITS, "input"), "rresp": (2, "input"), "rlast": (1, "input"), "rvalid": (1, "input"),
    "rready": (1, "output"),
    "awaddr": (64, "output"), "awlen": (8, "output"), "awsize": (3, "output"), "awburst": (2, "output"),
    "awcache": (4, "output"), "awprot": (3, "output"), "awvalid": (1, "output"), "awready": (1, "input"),
    "wdata": (_BITS, "output"), "wstrb": (BEAT_BYTES, "output"), "wlast": (1, "output"), "wvalid": (1, "output"),
    "wready": (1, "input"), "bresp": (2, "input"), "bvalid": (1, "input"), "bready": (1, "output"),
}  # fmt: skip
"""An AXI4 master without IDs (UG1393: 64-bit addresses): signal -> (bits, direction)."""
SLAVE = {
    "awaddr": (12, "input"),
    "awvalid": (1, "input"),
    "awready": (1, "output"),
    "wdata": (32, "input"),
    "wstrb": (4, "input"),
    "wvalid": (1, "input"),
    "wready": (1, "output"),
    "bresp": (2, "output"),
    "bvalid": (1, "output"),
    "bready": (1, "input"),
    "araddr": (12, "input"),
    "arvalid": (1, "input"),
    "arready": (1, "output"),
    "rdata": (32, "output"),
    "rresp": (2, "output"),
    "rvalid": (1, "output"),
    "rready": (1, "input"),
}
OTHERS = {"ap_clk": (1, "input"), "ap_rst_n": (1, "input"), "interrupt": (1, "output")}


def module_ports(verilog: str, module: str) -> dict[str, tuple[int, str]]:
    """Port -> (bits, direction) of a module as Yosys writes it; empty if it is not there."""
    found = re.search(rf"^module {re.escape(module)}\s*\((.*?)\);(.*?)^endmodule", verilog, flags=re.M | re.S)
    if found is None:
        return {}
    named = set(re.split(r"[\s,]+", found[1].strip()))
    declared = re.findall(r"^\s*(input|output|inout) (?:\[(\d+):0\] )?(\w+);", found[2], flags=re.M)
    return {name: (int(high or 0) + 1, way) for way, high, name in declared if name in named}


def ports(config: Config, verilog: str) -> list[str]:
    """The kernel's ports against the interfaces that Vitis expects, both ways."""
    found = module_ports(verilog, KERNEL)
    wanted = dict(OTHERS) | {f"s_axi_control_{name}": shape for name, shape in SLAVE.items()}
    for port in range(config.units + 1):
        wanted |= {f"{port_name(port)}_{name}": shape for name, shape in MASTER.items()}
    wrong = [f"{KERNEL}: no port {name}" for name in wanted if name not in found]
    wrong += [f"{KERNEL}: port {name} belongs to no interface" for name in found if name not in wanted]
    wrong += [
        f"{KERNEL}: port {name} is {found[name][1]} of {found[name][0]} bits, not {shape[1]} of {shape[0]}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    return wrong
