"""What can be wrong with a build before any vendor tool sees it. Each check returns what it found, a line each."""

import json
import re
from collections import Counter

from alula.alveo import recipes, tcl
from alula.alveo.registers import ADDRESS_SPACE_BYTES, arguments, control, host_arguments, port_name
from hw.kernel import KERNEL
from hw.spec.cards import HBM_CHANNELS, Card
from hw.spec.config import BEAT_BYTES, Config
from hw.spec.errors import InternalError

_BITS = 8 * BEAT_BYTES
_UNIT_INSTANCE = r"^  \\alula\.core\.matrix\.unit_\d+ +(unit_\d+) \("
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


def link(config: Config, card: Card, contents: dict[str, str]) -> list[str]:
    """nk=, sp= and slr= or the floorplan against the kernel's masters and the card's memories and SLRs."""
    pairs = [line.split("=", 1) for line in contents[recipes.LINK].splitlines() if "=" in line and line[0] != "#"]
    values = {key: [value for name, value in pairs if name == key] for key, _ in pairs}
    unit = recipes.COMPUTE_UNIT
    wrong = []
    if values.get("nk") != [f"{KERNEL}:1:{unit}"]:
        wrong.append(f"nk= is {values.get('nk')}, not one {KERNEL} called {unit}")
    if values.get("platform") != [card.platform]:
        wrong.append(f"platform= is {values.get('platform')}, not {card.platform}")
    kernel_ports = module_ports(contents[recipes.VERILOG], KERNEL)
    masters = sorted({name[:7] for name in kernel_ports if re.match(r"m\d\d_axi_", name)})
    mapped = [value.split(":", 1) for value in values.get("sp", [])]
    where = {name.removeprefix(f"{unit}."): bank for name, bank in mapped}
    count = Counter(name.removeprefix(f"{unit}.") for name, _ in mapped)
    wrong += [f"master {name} has no sp=" for name in masters if name not in where]
    wrong += [f"sp= names {name}, the kernel has no such master" for name in where if name not in masters]
    wrong += [f"master {name} has {n} sp=" for name, n in count.items() if n > 1]
    wrong += _banks(card, where)
    return wrong + _placement(config, card, contents, values.get("slr", []))


def _banks(card: Card, where: dict[str, str]) -> list[str]:
    """Each bank is the card's, and no pseudo-channel serves two masters."""
    wrong, used = [], dict[int, str]()
    for master, bank in where.items():
        found = re.fullmatch(r"(HBM|DDR)\[(\d+)(?::(\d+))?\]", bank)
        first, last = (int(found[2]), int(found[3] or found[2])) if found else (0, -1)
        limit = HBM_CHANNELS if found and found[1] == "HBM" else card.ddr_banks
        if not found or not first <= last < limit:
            wrong.append(f"master {master}: {card.name} has no memory {bank}")
        elif found[1] == "HBM":
            for channel in range(first, last + 1):
                if channel in used:
                    wrong.append(f"masters {used[channel]} and {master} share HBM[{channel}]")
                used[channel] = master
    return wrong


def _placement(config: Config, card: Card, contents: dict[str, str], slr: list[str]) -> list[str]:
    """One SLR for all, or a floorplan that names every matrix unit once, in SLRs that exist."""
    try:
        commands = tcl.run(contents[recipes.FLOORPLAN])
    except InternalError as error:
        return [f"{recipes.FLOORPLAN}: {error}"]
    regions = {c[1][13:-1]: c[3] for c in commands if c[0] == "resize_pblock" and c[1].startswith("<get_pblocks ")}
    units = [int(re.findall(r"unit_(\d+)", c[2])[-1]) for c in commands if c[0] == "add_cells_to_pblock"]
    legal = {f"SLR{index}" for index in range(card.slrs)}
    if slr:
        wrong = [] if len(slr) == 1 and not units else ["slr= and the floorplan both place the compute unit"]
        return wrong + [f"slr={value} is not on {card.name}" for value in slr if value.split(":")[-1] not in legal]
    wrong = [
        f"Pblock {name} is in {region}, {card.name} has no such SLR"
        for name, region in regions.items()
        if region not in legal
    ]
    unplaced = sorted(set(range(config.units)) - set(units))
    wrong += [f"matrix unit {unit} is in no Pblock" for unit in unplaced]
    wrong += [
        f"matrix unit {unit} is in {n} Pblocks, or there is none of that number"
        for unit, n in Counter(units).items()
        if n > 1 or unit >= config.units
    ]
    instances = set(re.findall(_UNIT_INSTANCE, contents[recipes.VERILOG], flags=re.M))
    if instances and instances != {f"unit_{unit}" for unit in range(config.units)}:
        wrong.append(f"the netlist's matrix units are {sorted(instances)}")
    return wrong


def packaging(config: Config, contents: dict[str, str]) -> list[str]:
    """The packaging script runs; its registers are those of the RTL's source, and each master has its pointer."""
    try:
        commands = tcl.run(contents[recipes.PACKAGE])
    except InternalError as error:
        return [f"{recipes.PACKAGE}: {error}"]
    names = [command[0] for command in commands]
    needed = ("ipx::package_project", "ipx::check_integrity", "ipx::save_core", "package_xo")
    wrong = [f"{recipes.PACKAGE} does not run {name}" for name in needed if name not in names]
    flags = {tuple(command[1:3]) for command in commands if command[0] == "set_property"}
    wrong += [
        f"{recipes.PACKAGE} does not set {key} {value}"
        for key, value in (
            ("sdx_kernel", "true"),
            ("sdx_kernel_type", "rtl"),
            ("range", str(ADDRESS_SPACE_BYTES)),
            ("vitis_drc", "ctrl_protocol ap_ctrl_hs"),
        )
        if (key, value) not in flags
    ]
    clocked = {c[c.index("-busif") + 1] for c in commands if c[0] == "ipx::associate_bus_interfaces" and "-busif" in c}
    expected = {"s_axi_control", *(port_name(i) for i in range(config.units + 1))}
    wrong += [f"interface {name} has no clock" for name in sorted(expected - clocked)]
    return wrong + _registers(config, commands)


def packaged_registers(commands: list[list[str]]) -> dict[str, tuple[int, int, str | None]]:
    """Register -> (offset, bits, associated master) of recorded packaging commands."""
    found: dict[str, list] = {}
    for command in commands:
        if command[0] == "ipx::add_register":
            found[command[1]] = [None, None, None]
        if command[0] == "set_property" and "<ipx::add_register " in command[-1]:
            name = re.findall(r"<ipx::add_register (\w+)", command[-1])[0]
            place = {"address_offset": 0, "size": 1, "value": 2}.get(command[1])
            if place is not None:
                found[name][place] = command[2] if place == 2 else int(command[2], 0)
    return {name: tuple(values) for name, values in found.items()}


def _registers(config: Config, commands: list[list[str]]) -> list[str]:
    wanted: dict[str, tuple] = {name: (offset, 32, None) for name, offset in control().items()}
    wanted |= {a.name: (a.offset, a.bits, a.port) for a in arguments(config)}
    found = packaged_registers(commands)
    wrong = [f"register {name} is not packaged" for name in wanted if name not in found]
    wrong += [f"packaged register {name} is none of the machine's" for name in found if name not in wanted]
    return wrong + [
        f"register {name} is packaged as (offset, bits, master) {found[name]}, the machine has {values}"
        for name, values in wanted.items()
        if name in found and found[name] != values
    ]


def host(config: Config, contents: dict[str, str]) -> list[str]:
    """The host's file against the same source."""
    written = json.loads(contents[recipes.HOST])
    return [
        f"{recipes.HOST}: {key} is not the machine's"
        for key, value in host_arguments(config).items()
        if written.get(key) != value
    ]


def all_checks(config: Config, card: Card, contents: dict[str, str]) -> list[str]:
    """Everything but the lint, which needs Verilator (`sim.rtl.lint`)."""
    return [
        *ports(config, contents[recipes.VERILOG]),
        *link(config, card, contents),
        *packaging(config, contents),
        *host(config, contents),
    ]
