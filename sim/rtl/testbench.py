"""The test benches around an accelerator top, generated for its number of memory ports.

| bench | simulator | memories and trace |
|---|---|---|
| `testbench` | Verilator | C++ behind DPI (`native/`): fast, HBM timing, random stalls, AXI4 checked in every cycle |
| `plain_testbench` | any | Verilog-2005 (`plain/`): memories of a fixed latency, bursts checked |

Both have the same control port and the same end of a run (`plain/control.v`).

Nothing that moves in every cycle is Python. The AXI4-Lite master is a small state machine that cocotb asks for one
access at a time; Python wakes when an access is complete and when the run stops.
"""

from collections.abc import Callable, Iterable, Sequence
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
    """The test bench's text for Verilator, for the top module named `top`; kernel: one as `hw.kernel` packages it,
    without trace."""
    payload = [name for name in AXI_SIGNALS if name not in HANDSHAKES]
    return _filled(
        _text("native", "tb.sv"),
        n_ports,
        MEMORY_SIGNALS="\n".join(_declare(name, bits, " [N_PORTS]") for name, (bits, _) in AXI_SIGNALS.items()),
        DUT_HANDSHAKES="\n".join(_declare(f"dut_{name}", 1, " [N_PORTS]") for name in HANDSHAKES),
        GUARD_CONNECTIONS=", ".join(
            [f".{name}({name}[g]), .dut_{name}(dut_{name}[g])" for name in HANDSHAKES]
            + [f".{name}({name}[g])" for name in payload]
        ),
        TOP=_instance(top, n_ports, kernel, lambda port, name: f"{_memory_wire(name)}[{port}]", _trace_wire),
    )


def plain_testbench(top: str, beats: Sequence[int], kernel: bool = False) -> str:
    """The test bench's text in Verilog-2005, which any simulator reads; its memories are plain/axi_memory.v. beats: how
    many beats the memory of each port stores."""

    def wire(port: int, name: str) -> str:
        return f"m{port:02d}_{name}"

    def trace(name: str) -> str:
        if name == "trace_cycle":
            return name
        _, unit, event = name.split("_")
        index = UNITS.index(unit)
        return f"trace_tag[{32 * index} +: 32]" if event == "tag" else f"trace_{event}[{index}]"

    memories = []
    for port, n_beats in enumerate(beats):
        memories += [_declare(wire(port, name), bits, kind="wire") for name, (bits, _) in AXI_SIGNALS.items()]
        memories.append(
            f"    axi_memory #(.PORT({port}), .BEATS({n_beats})) memory_{port} (\n"
            f"        .clk(clk), .rst(rst), .cycle(cycle), .finish(finish), .finished(port_finished[{port}]),\n"
            f"        .failed(port_failed[{port}]), .n_expected(n_expected[{32 * port} +: 32]),\n"
            f"        .n_differing(n_differing[{32 * port} +: 32]),\n        "
            + ",\n        ".join(f".{name}({wire(port, name)})" for name in AXI_SIGNALS)
            + "\n    );"
        )
    return _filled(
        _text("plain", "testbench.v"),
        len(beats),
        MEMORIES="\n".join(memories),
        TOP=_instance(top, len(beats), kernel, wire, trace),
    )


def self_check(
    n_ports: int,
    writes: Iterable[tuple[int, int]],
    registers: Iterable[tuple[str, int, int]],
    cycles: int,
    n_expected: int,
    max_cycles: int,
) -> str:
    """A top above `plain_testbench` that plays one run and judges it, without cocotb.

    writes: (offset, value) that start the run; registers: (name, offset, expected value) when it is over; cycles: what
    it then prints; n_expected: beats in all files expected_PORT.hex; max_cycles: without an interrupt it ends there.
    """
    checks = [f'        check({_offset(at)}, 32\'d{value}, "{name}");' for name, at, value in registers]
    return _filled(
        _text("plain", "self_check.v"),
        n_ports,
        WRITES="\n".join(f"        write({_offset(at)}, 32'd{value});" for at, value in writes),
        CHECKS="\n".join(checks),
        CYCLES=f"{cycles:,}",
        N_CHECKS=str(len(checks)),
        N_EXPECTED=str(n_expected),
        MAX_CYCLES=str(max_cycles),
    )


def _offset(offset: int) -> str:
    return f"{CSR_ADDRESS_BITS}'h{offset:03x}"


def bench_waivers() -> str:
    """Verilator's warnings about the plain bench that are no defects, in the form of hw/verilog/waivers.vlt."""
    return _text("plain", "waivers.vlt")


def memory_text() -> str:
    """The module `axi_memory` that `plain_testbench` stands on."""
    return _text("plain", "axi_memory.v")


def _text(*place: str) -> str:
    return files(__package__).joinpath(*place).read_text()


def _filled(template: str, n_ports: int, **texts: str) -> str:
    """A template with a text in the place of every `@NAME@`."""
    control = [_declare(f"control_{name}", bits, kind="wire") for name, (bits, _) in CSR_SIGNALS.items()]
    shared = {"CONTROL": _text("plain", "control.v").rstrip(), "CONTROL_SIGNALS": "\n".join(control)}
    sizes = {"N_PORTS": n_ports, "N_UNITS": len(UNITS), "RESET_CYCLES": RESET_CYCLES}
    for name, text in (texts | shared | sizes | {"CSR_ADDRESS_BITS": CSR_ADDRESS_BITS}).items():
        template = template.replace(f"@{name}@", str(text))
    return template


def _instance(
    top: str, n_ports: int, kernel: bool, memory: Callable[[int, str], str], trace: Callable[[str], str]
) -> str:
    """The accelerator's instance. memory: the wire of a port's signal; trace: that of one of `TRACE_SIGNALS`."""
    connections = [f".s_axi_control_{name}(control_{name})" for name in CSR_SIGNALS]
    connections += [f".m{port:02d}_axi_{name}({memory(port, name)})" for port in range(n_ports) for name in AXI_SIGNALS]
    untraced = ""
    if kernel:
        connections += [".ap_clk(clk)", ".ap_rst_n(!rst)", ".interrupt(irq)"]
        untraced = ";\n    assign trace_start = 0;\n    assign trace_done = 0;\n    assign trace_cycle = 0"
    else:
        connections += [".clk(clk)", ".rst(rst)", ".irq(irq)"]
        connections += [f".{name}({trace(name)})" for name in TRACE_SIGNALS]
    return f"{top} dut (\n        " + ",\n        ".join(connections) + f"\n    ){untraced}"


def _declare(name: str, bits: int, dimension: str = "", kind: str = "logic") -> str:
    return f"    {kind} {f'[{bits - 1}:0] ' if bits > 1 else ''}{name}{dimension};"


def _memory_wire(name: str) -> str:
    return f"dut_{name}" if name in HANDSHAKES else name


def _trace_wire(name: str) -> str:
    if name == "trace_cycle":
        return name
    _, unit, event = name.split("_")
    return f"trace_{event}[{UNITS.index(unit)}]"
