"""Alveo cards with XRT: Vivado packages the kernel, v++ links it into the platform."""

import re
from collections import Counter

from alula.alveo import tcl
from alula.alveo.flow import LINK, PACKAGING, UNIT_CELL, VERILOG, Command, Flow, header
from alula.alveo.kernel_ports import module_ports
from hw.spec.cards import Card
from hw.spec.config import Config
from hw.spec.errors import InternalError
from hw.spec.packaging import COMPUTE_UNIT, KERNEL, port_name
from hw.spec.resources import dsp_total

FLOORPLAN, REPORTS = "floorplan.tcl", "reports.tcl"
SLR_DSP_SHARE = 0.75
"""A design that needs less of SLR0's DSPs than this stays there, next to the memory."""
_UNIT_INSTANCE = r"^  \\alula\.core\.matrix\.unit_\d+ +(unit_\d+) \("


def fits_one_slr(config: Config, card: Card) -> bool:
    return dsp_total(config) <= SLR_DSP_SHARE * card.slr(0)["DSP48E2"]


def link_cfg(config: Config, card: Card) -> str:
    """v++ --link --config: one compute unit, a memory bank for each of its masters, the clock that is asked for."""
    lines = [
        f"platform={card.platform}",
        f"kernel_frequency={config.clock_hz // 10**6}",
        "save-temps=1",
        "",
        "[connectivity]",
        f"nk={KERNEL}:1:{COMPUTE_UNIT}",
    ]
    lines += [f"sp={COMPUTE_UNIT}.{port_name(i)}:{card.memory_of(config, i)}" for i in range(config.units + 1)]
    if fits_one_slr(config, card):
        lines.append(f"slr={COMPUTE_UNIT}:SLR0")
    return header(config, card) + "\n".join(lines) + "\n"


def floorplan_tcl(config: Config, card: Card) -> str:
    """Vivado, before placement: matrix units over the SLRs. Empty where the whole stays in SLR0 (`slr=`)."""
    lines = []
    for slr, units in ({} if fits_one_slr(config, card) else card.floorplan(config)).items():
        if not units:
            continue
        block = f"alula_slr{slr}"
        lines += [f"create_pblock {block}", f"resize_pblock [get_pblocks {block}] -add SLR{slr}"]
        for unit in units:
            cells = f"[get_cells -hierarchical -filter {{NAME =~ *{COMPUTE_UNIT}{UNIT_CELL}{unit}}}]"
            lines.append(f"add_cells_to_pblock [get_pblocks {block}] {cells}")
    return header(config, card) + "".join(line + "\n" for line in lines)


def reports_tcl(config: Config, card: Card) -> str:
    """Vivado, behind routing: the reports that `alula build` reads back."""
    cell = f"[get_cells -hierarchical -filter {{NAME =~ *{COMPUTE_UNIT}}}]"
    lines = [
        "set folder $::env(ALULA_REPORTS)",
        "report_utilization -file $folder/utilization.rpt",
        f"report_utilization -cells {cell} -file $folder/utilization_kernel.rpt",
        "report_timing_summary -no_detailed_paths -file $folder/timing.rpt",
        "report_power -file $folder/power.rpt",
    ]
    return header(config, card) + "\n".join(lines) + "\n"


def files(config: Config, card: Card) -> dict[str, str]:
    """Connections, floorplan and reports."""
    return {
        LINK: link_cfg(config, card),
        FLOORPLAN: floorplan_tcl(config, card),
        REPORTS: reports_tcl(config, card),
    }


def commands(target: str) -> list[Command]:
    """The kernel object, and behind it the linked container."""
    if target == "xo":
        return [PACKAGING]
    link = ["--link", "--target", target, "--config", LINK, "--output", f"{KERNEL}.{target}.xclbin"]
    if target == "hw":
        link += [
            "--vivado.prop",
            f"run.impl_1.STEPS.PLACE_DESIGN.TCL.PRE=FOLDER/{FLOORPLAN}",
            "--vivado.prop",
            f"run.impl_1.STEPS.ROUTE_DESIGN.TCL.POST=FOLDER/{REPORTS}",
        ]
    return [PACKAGING, ("v++", [*link, f"{KERNEL}.xo"])]


def link(config: Config, card: Card, contents: dict[str, str]) -> list[str]:
    """nk=, sp= and slr= or the floorplan against the kernel's masters and the card's memories and SLRs."""
    pairs = [line.split("=", 1) for line in contents[LINK].splitlines() if "=" in line and line[0] != "#"]
    values = {key: [value for name, value in pairs if name == key] for key, _ in pairs}
    unit = COMPUTE_UNIT
    wrong = []
    if values.get("nk") != [f"{KERNEL}:1:{unit}"]:
        wrong.append(f"nk= is {values.get('nk')}, not one {KERNEL} called {unit}")
    if values.get("platform") != [card.platform]:
        wrong.append(f"platform= is {values.get('platform')}, not {card.platform}")
    kernel_ports = module_ports(contents[VERILOG], KERNEL)
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
        limit = card.hbm_channels if found and found[1] == "HBM" else card.ddr_banks
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
        commands = tcl.run(contents[FLOORPLAN])
    except InternalError as error:
        return [f"{FLOORPLAN}: {error}"]
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
    instances = set(re.findall(_UNIT_INSTANCE, contents[VERILOG], flags=re.M))
    if instances and instances != {f"unit_{unit}" for unit in range(config.units)}:
        wrong.append(f"the netlist's matrix units are {sorted(instances)}")
    return wrong


FLOW = Flow(
    ("hw", "hw_emu", "xo"),
    True,
    files,
    commands,
    link,
    "install AMD Vitis with the platform {platform}, source its settings64.sh",
)
