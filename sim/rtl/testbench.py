"""The SystemVerilog test bench around an accelerator top, generated for its number of memory ports.

The clock and everything that moves in every cycle is native: the AXI4 memories and the trace log are C++
(`native/memory.cpp`), the AXI4-Lite master is a small state machine that cocotb asks for one access at a time. Python
wakes when an access is complete and when the run stops.
"""

from importlib.resources import files

UNITS = ("ld", "st", "rd", "mx", "vu")
"""The units of the trace, in the order of their numbers."""

CSR_ADDRESS_BITS = 12
RESET_CYCLES = 8

# name -> (bits, direction as seen from the top)
AXI_SIGNALS = {
    "araddr": (64, "out"), "arlen": (8, "out"), "arsize": (3, "out"), "arburst": (2, "out"),
    "arvalid": (1, "out"), "arready": (1, "in"),
    "rdata": (512, "in"), "rresp": (2, "in"), "rlast": (1, "in"), "rvalid": (1, "in"), "rready": (1, "out"),
    "awaddr": (64, "out"), "awlen": (8, "out"), "awsize": (3, "out"), "awburst": (2, "out"),
    "awvalid": (1, "out"), "awready": (1, "in"),
    "wdata": (512, "out"), "wstrb": (64, "out"), "wlast": (1, "out"), "wvalid": (1, "out"), "wready": (1, "in"),
    "bresp": (2, "in"), "bvalid": (1, "in"), "bready": (1, "out"),
}  # fmt: skip
"""The signals of a memory port `m{i:02d}_axi_`."""

HANDSHAKES = tuple(name for name in AXI_SIGNALS if name.endswith(("valid", "ready")))
"""Of a memory port; on the top's side of the guard (native/axi_guard.sv) their names begin with `dut_`."""

CSR_SIGNALS = {
    "awaddr": (CSR_ADDRESS_BITS, "in"),
    "awvalid": (1, "in"),
    "awready": (1, "out"),
    "wdata": (32, "in"),
    "wstrb": (4, "in"),
    "wvalid": (1, "in"),
    "wready": (1, "out"),
    "bresp": (2, "out"),
    "bvalid": (1, "out"),
    "bready": (1, "in"),
    "araddr": (CSR_ADDRESS_BITS, "in"),
    "arvalid": (1, "in"),
    "arready": (1, "out"),
    "rdata": (32, "out"),
    "rresp": (2, "out"),
    "rvalid": (1, "out"),
    "rready": (1, "in"),
}
"""The signals of the control port `s_axi_control_`."""

TRACE_SIGNALS = {
    **{f"trace_{unit}_{event}": (1, "out") for unit in UNITS for event in ("start", "done")},
    **{f"trace_{unit}_tag": (32, "out") for unit in UNITS},
    "trace_cycle": (64, "out"),
}
"""A unit's tag is that of its start, in the cycle of `start`. Events carry the top's own cycle count."""


def top_signals(n_ports: int) -> dict[str, tuple[int, str]]:
    """Every port that the test bench expects of a top with `n_ports` memory ports, but for `clk` and `rst`."""
    signals = {f"s_axi_control_{name}": shape for name, shape in CSR_SIGNALS.items()}
    for port in range(n_ports):
        signals |= {f"m{port:02d}_axi_{name}": shape for name, shape in AXI_SIGNALS.items()}
    return signals | TRACE_SIGNALS | {"irq": (1, "out")}


def public_signals() -> tuple[str, ...]:
    """The test bench's variables that cocotb reads and writes; nothing else is visible to it."""
    return ("csr_*", "rst", "stop", "timeout", "failed", "cycle", "irq")


def testbench(top: str, n_ports: int, kernel: bool = False) -> str:
    """The test bench's text, for the top module named `top`; kernel: one as `hw.kernel` packages it, without trace."""
    template = files(__package__).joinpath("native", "tb.sv").read_text()
    connections = [f".s_axi_control_{name}(control_{name})" for name in CSR_SIGNALS]
    connections += [
        f".m{port:02d}_axi_{name}({_memory_wire(name)}[{port}])" for port in range(n_ports) for name in AXI_SIGNALS
    ]
    untraced = ""
    if kernel:
        connections += [".ap_clk(clk)", ".ap_rst_n(!rst)", ".interrupt(irq)"]
        untraced = ";\n    assign trace_start = 0;\n    assign trace_done = 0;\n    assign trace_cycle = 0"
    else:
        connections += [".clk(clk)", ".rst(rst)", ".irq(irq)"]
        connections += [f".{name}({_trace_wire(name)})" for name in TRACE_SIGNALS]
    payload = [name for name in AXI_SIGNALS if name not in HANDSHAKES]
    replacements = {
        "@N_PORTS@": str(n_ports),
        "@N_UNITS@": str(len(UNITS)),
        "@RESET_CYCLES@": str(RESET_CYCLES),
        "@CSR_ADDRESS_BITS@": str(CSR_ADDRESS_BITS),
        "@MEMORY_SIGNALS@": "\n".join(_declare(name, bits, " [N_PORTS]") for name, (bits, _) in AXI_SIGNALS.items()),
        "@CONTROL_SIGNALS@": "\n".join(_declare(f"control_{name}", bits) for name, (bits, _) in CSR_SIGNALS.items()),
        "@DUT_HANDSHAKES@": "\n".join(_declare(f"dut_{name}", 1, " [N_PORTS]") for name in HANDSHAKES),
        "@GUARD_CONNECTIONS@": ", ".join(
            [f".{name}({name}[g]), .dut_{name}(dut_{name}[g])" for name in HANDSHAKES]
            + [f".{name}({name}[g])" for name in payload]
        ),
        "@TOP@": f"{top} dut (\n        " + ",\n        ".join(connections) + f"\n    ){untraced}",
    }
    for mark, text in replacements.items():
        template = template.replace(mark, text)
    return template


def _declare(name: str, bits: int, dimension: str = "") -> str:
    return f"    logic {f'[{bits - 1}:0] ' if bits > 1 else ''}{name}{dimension};"


def _memory_wire(name: str) -> str:
    return f"dut_{name}" if name in HANDSHAKES else name


def _trace_wire(name: str) -> str:
    if name == "trace_cycle":
        return name
    _, unit, event = name.split("_")
    return f"trace_{event}[{UNITS.index(unit)}]"
