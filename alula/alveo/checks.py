"""What can be wrong with a build before any vendor tool sees it. Each check returns what it found, a line each."""

import json
import re

from alula.alveo import recipes, tcl
from alula.alveo.flow import HOST, PACKAGE, VERILOG
from alula.alveo.kernel_ports import ports
from alula.alveo.registers import ADDRESS_SPACE_BYTES, arguments, control, host_arguments
from hw.spec.cards import Card
from hw.spec.config import Config
from hw.spec.errors import InternalError
from hw.spec.packaging import port_name

KERNEL_PROPERTIES = (("sdx_kernel", "true"), ("sdx_kernel_type", "rtl"), ("vitis_drc", "ctrl_protocol ap_ctrl_hs"))
"""What makes a kernel of Vitis out of a core."""


def packaging(config: Config, card: Card, contents: dict[str, str]) -> list[str]:
    """The packaging script runs; its registers are those of the RTL's source, and each master has its pointer."""
    try:
        commands = tcl.run(contents[PACKAGE])
    except InternalError as error:
        return [f"{PACKAGE}: {error}"]
    names = [command[0] for command in commands]
    kernel_object = recipes.flow_of(card).kernel_object
    needed = ("ipx::package_project", "ipx::check_integrity", "ipx::save_core", *(["package_xo"] * kernel_object))
    wrong = [f"{PACKAGE} does not run {name}" for name in needed if name not in names]
    flags = {tuple(command[1:3]) for command in commands if command[0] == "set_property"}
    wrong += [
        f"{PACKAGE} does not set {key} {value}"
        for key, value in (
            ("range", str(ADDRESS_SPACE_BYTES)),
            ("usage", "register"),  # where SLASH's linker looks for registers
            *(KERNEL_PROPERTIES if kernel_object else ()),
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
    written = json.loads(contents[HOST])
    return [
        f"{HOST}: {key} is not the machine's"
        for key, value in host_arguments(config).items()
        if written.get(key) != value
    ]


def all_checks(config: Config, card: Card, contents: dict[str, str]) -> list[str]:
    """Everything but the lint, which needs Verilator (`sim.rtl.lint`)."""
    return [
        *ports(config, contents[VERILOG]),
        *recipes.flow_of(card).check(config, card, contents),
        *packaging(config, card, contents),
        *host(config, contents),
    ]
