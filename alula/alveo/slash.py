"""Alveo V80 with SLASH: Vivado packages an IP-XACT core, slashkit links it and makes a vbin.

The forms are those of Xilinx/SLASH, commit 26f9c55: docs/howto/use-rtl-kernels.rst, linker/slashkit/parser/
config_parser.py (link file), linker/slashkit/core/command_config.py (command line). slashkit reads no `sp=` outside of
`[connectivity]` and says nothing of one that stands elsewhere, so the check does.
"""

import re
from collections import Counter

from alula.alveo.flow import IP_FOLDER, LINK, PACKAGING, VERILOG, Command, Flow, header
from alula.alveo.kernel_ports import module_ports
from hw.spec.cards import Card
from hw.spec.config import Config
from hw.spec.packaging import COMPUTE_UNIT, KERNEL, port_name

MAX_CLOCK_HZ = 333_333_333
"""The highest user clock that SLASH's runtime sets (vrt/include/vrt/device.hpp)."""
PLATFORMS = {"hw": "hw", "sim": "sim"}
"""Target -> slashkit's platform; its emulation takes C++ kernels alone."""
Lines = dict[str, list[tuple[str, str]]]


def link_cfg(config: Config, card: Card) -> str:
    """slashkit link -c: one instance, a memory for each of its masters, the clock that is asked for."""
    lines = ["[connectivity]", f"nk={KERNEL}:1:{COMPUTE_UNIT}"]
    lines += [f"sp={COMPUTE_UNIT}.{port_name(i)}:{card.memory_of(config, i)}" for i in range(config.units + 1)]
    lines += ["", "[clock]", f"krnl={COMPUTE_UNIT}", f"freqhz={config.clock_hz}"]
    return header(config, card) + "\n".join(lines) + "\n"


def files(config: Config, card: Card) -> dict[str, str]:
    """The connections alone: SLASH has a floorplan of its own."""
    return {LINK: link_cfg(config, card)}


def commands(target: str) -> list[Command]:
    """The core, and behind it the vbin."""
    if target == "ip":
        return [PACKAGING]
    vbin = f"{KERNEL}.{target}.vbin"
    link = ["link", "-c", LINK, "-k", f"{IP_FOLDER}/component.xml", "-o", vbin, "-p", PLATFORMS[target]]
    return [PACKAGING, ("slashkit", link)]


def sections(text: str) -> Lines:
    """Section -> (key, value) of each line, as slashkit reads the file."""
    found: Lines = {}
    section = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("["):
            section = line[1:-1].lower()
        elif line[0] not in "#;":
            key, _, value = line.partition("=")
            found.setdefault(section, []).append((key, value))
    return found


def check(config: Config, card: Card, contents: dict[str, str]) -> list[str]:
    """nk=, sp= and the clock against the kernel's masters and the card's memories."""
    found = sections(contents[LINK])
    connected = found.get("connectivity", [])
    wrong = [
        f"{key}={value} stands in [{section}], where slashkit does not read it"
        for section, lines in found.items()
        for key, value in lines
        if key in ("nk", "sp") and section != "connectivity"
    ]
    instances = [value for key, value in connected if key == "nk"]
    if instances != [f"{KERNEL}:1:{COMPUTE_UNIT}"]:
        wrong.append(f"nk= is {instances}, not one {KERNEL} called {COMPUTE_UNIT}")
    if found.get("clock") != [("krnl", COMPUTE_UNIT), ("freqhz", str(config.clock_hz))]:
        wrong.append(f"[clock] is {found.get('clock')}, not {config.clock_hz} Hz for {COMPUTE_UNIT}")
    if config.clock_hz > MAX_CLOCK_HZ:
        wrong.append(f"clock_hz = {config.clock_hz}, SLASH sets at most {MAX_CLOCK_HZ} Hz")
    return wrong + _memories(card, contents[VERILOG], [value for key, value in connected if key == "sp"])


def _memories(card: Card, verilog: str, connections: list[str]) -> list[str]:
    """Each master has one memory of the card, and none shares a pseudo-channel."""
    masters = sorted({name[:7] for name in module_ports(verilog, KERNEL) if re.match(r"m\d\d_axi_", name)})
    pairs = [connection.removeprefix(f"{COMPUTE_UNIT}.").split(":", 1) for connection in connections]
    count = Counter(name for name, _ in pairs)
    wrong = [f"master {name} has no sp=" for name in masters if name not in count]
    wrong += [f"sp= names {name}, the kernel has no such master" for name in count if name not in masters]
    wrong += [f"master {name} has {n} sp=" for name, n in count.items() if n > 1]
    banks = {"HBM": card.hbm_channels, "DDR": card.ddr_banks}
    used: dict[str, str] = {}
    for name, memory in pairs:
        found = re.fullmatch(r"(HBM|DDR)(\d+)", memory)
        if not found or int(found[2]) >= banks[found[1]]:
            wrong.append(f"master {name}: {card.name} has no memory {memory}")
        elif found[1] == "HBM" and used.setdefault(memory, name) != name:
            wrong.append(f"masters {used[memory]} and {name} share {memory}")
    return wrong


FLOW = Flow(
    (*PLATFORMS, "ip"),
    False,
    files,
    commands,
    check,
    "install AMD Vivado 2025.1 and {platform} (github.com/Xilinx/SLASH), source Vivado's settings64.sh",
)
