"""Any other board: an IP-XACT core with AXI4 masters and AXI4-Lite control for a Vivado project of one's own."""

from alula.alveo import tcl
from alula.alveo.flow import PACKAGING, UNIT_CELL, VERILOG, Command, Flow, header
from alula.alveo.kernel_ports import module_ports
from hw.spec.cards import Card
from hw.spec.config import Config
from hw.spec.errors import InternalError
from hw.spec.packaging import KERNEL

CONSTRAINTS = "constraints.xdc"
CLOCK_PORT = "ap_clk"


def constraints_xdc(config: Config, card: Card) -> str:
    """A template: the clock that the configuration assumes, and what a board's project has to add."""
    lines = [
        f"# For the core by itself (out of context): {config.clock_hz / 1e6:g} MHz. Where a clock generator of the",
        "# design drives ap_clk, leave this line out: Vivado derives the clock from the generator.",
        f"create_clock -name {CLOCK_PORT} -period {1e9 / config.clock_hz:.3f} [get_ports {CLOCK_PORT}]",
        "",
        "# What a design around the core adds:",
        "# - ap_rst_n is synchronous to ap_clk and active low: a reset block (proc_sys_reset) drives it.",
        f"# - Each of the {config.units + 1} AXI4 masters goes to a memory of its own; m00_axi to "
        f"m{config.units - 1:02d}_axi carry the weights.",
        "#   The host writes the memory's address into the master's base register (host_args.json).",
        "# - A clock other than ap_clk on the memories' side needs a clock converter; no path here is asynchronous.",
        "# - On a device of several dies, Pblocks keep a matrix unit on one of them. For unit 0 on SLR0:",
        "# create_pblock alula_slr0",
        "# resize_pblock [get_pblocks alula_slr0] -add SLR0",
        f"# add_cells_to_pblock [get_pblocks alula_slr0] [get_cells -hierarchical -filter {{NAME =~ *{UNIT_CELL}0}}]",
    ]
    return header(config, card) + "\n".join(lines) + "\n"


def files(config: Config, card: Card) -> dict[str, str]:
    """The constraints alone: what the core is connected to is the user's."""
    return {CONSTRAINTS: constraints_xdc(config, card)}


def commands(target: str) -> list[Command]:
    """The core."""
    return [PACKAGING]


def check(config: Config, card: Card, contents: dict[str, str]) -> list[str]:
    """The constraints run, and name the clock that the kernel has, with the configuration's period."""
    try:
        recorded = tcl.run(contents[CONSTRAINTS])
    except InternalError as error:
        return [f"{CONSTRAINTS}: {error}"]
    clocks = [dict(zip(c[1:-1:2], c[2:-1:2], strict=True)) for c in recorded if c[0] == "create_clock"]
    ports = [c[1] for c in recorded if c[0] == "get_ports"]
    wrong = []
    periods = [clock.get("-period") for clock in clocks]
    if periods != [f"{1e9 / config.clock_hz:.3f}"]:
        wrong.append(f"{CONSTRAINTS}: clock periods are {periods} ns, the configuration has {config.clock_hz} Hz")
    inputs = module_ports(contents[VERILOG], KERNEL)
    wrong += [f"{CONSTRAINTS}: {KERNEL} has no port {name}" for name in ports if name not in inputs]
    return wrong


FLOW = Flow(("ip",), False, files, commands, check, "install AMD Vivado, source its settings64.sh")
