"""Tables of `alula info`, at most 80 columns wide: the budget, and what synthesis counts."""

from rich.table import Table

from alula.output import percent, show, table

ABOVE = "!"
"""Behind a share of more than 100 %."""
NAMES = {
    "FF": "flip-flops",
    "BRAM36": "block RAMs of 36 Kb",
    "URAM": "UltraRAMs",
    "DSP48E2": "DSP48E2 slices",
}
PARTS_OF_LUT = {"LUT": "  logic", "LUTRAM": "  memories", "SRL": "  shift registers"}
COLUMNS = {
    "LUT": "logic",
    "LUTRAM": "memory",
    "SRL": "SRL",
    "FF": "FF",
    "BRAM36": "BRAM",
    "URAM": "URAM",
    "DSP48E2": "DSP",
}

PLACEMENT = {
    "lut_levels_whole": "LUT levels, longest path",
    "largest_fanout": "loads of one net, but the clock",
    "unregistered_crossings": "nets between dies without a register at both ends",
    "payload_resets": "bits of wide registers that are reset",
    "packed_share": "LUTs packed into slices, of the platform's",
    "slr_share": "packed LUTs of the fullest die, of the platform's",
    "wires_share": "wires between two dies, of the platform's",
}
SHARES = ("packed_share", "slr_share", "wires_share")


def share(of: float | None) -> str:
    """A share in percent, marked where it is too much; `unknown` for None."""
    if of is None:
        return "unknown"
    return f"{percent(of)} {ABOVE}" if of > 1 else percent(of)


def budget_table(result: dict) -> Table:
    """What a configuration takes, from widths and depths, and below each line what takes it."""
    rows: list[list] = []
    for row in result["budget"]:
        own, left = share(row["share"]), share(row["platform_share"])
        rows.append([row["unit"].partition(" (")[0], row["used"], row["limit"], own, left])
        rows += [[f"  {name}", used, "", "", ""] for name, used in row["parts"].items()]
    title = f"budget on {result['budget_card']}, by formula ({ABOVE} is too much)"
    return table(title, ["", "used", "limit", "share", "of the platform"], rows)


def resource_table(result: dict) -> Table:
    """Counts of a netlist against the card and against what the platform leaves of it."""
    total, device, region = result["resources"], result["card_resources"], result["platform_resources"] or {}

    def against(kind: str) -> list:
        left = (result["share_of_platform"] or {}).get(kind)
        return [device[kind], share(result["share_of_card"][kind]), region.get(kind), share(left)]

    rows: list[list] = [["LUTs of six inputs", sum(total[kind] for kind in PARTS_OF_LUT), *against("LUT")]]
    rows += [[name, total[kind], "", "", "", ""] for kind, name in PARTS_OF_LUT.items()]
    rows += [[name, total[kind], *against(kind)] for kind, name in NAMES.items()]
    title = f"resources on {result['card']} (Yosys; LUT counts are rough)"
    return table(title, ["", "used", "device", "share", "platform", "share"], rows)


def placement_table(result: dict) -> Table:
    """Figures that say whether the netlist can be placed, each with its bound."""

    def shown(name: str, value: float | None) -> str:
        return show(value) if value is None or name not in SHARES else percent(value)

    rows: list[list] = []
    for name, bound in result["netlist_bounds"].items():
        mark = f" {ABOVE}" if name in result["above_bounds"] else ""
        rows.append([PLACEMENT[name], shown(name, result[name]) + mark, shown(name, bound)])
    return table(f"whether it can be placed ({ABOVE} is above the bound)", ["", "found", "bound"], rows)


def unit_table(result: dict) -> Table:
    """Counts by unit of the machine, all its instances together."""
    units = result["resources_by_unit"] | {"in all": result["resources"]}
    rows = [[unit, *(counts[kind] for kind in COLUMNS)] for unit, counts in units.items()]
    title = "by unit: LUTs of logic, memories, shift registers; flip-flops; BRAMs of 36 Kb; UltraRAMs; DSPs"
    return table(title, ["unit", *COLUMNS.values()], rows)


def remarks(result: dict) -> list[str]:
    """What is above the card or its platform, and where the longest path is."""
    path = result["longest_path"]
    lines = [f"longest path: {path['starts_in']} to {path['ends_in']} ({path['carries']} carry cells besides)"]
    if result["over"]:
        lines.append(f"{ABOVE} more than {result['card']} has: {', '.join(result['over'])}")
    if result["over_platform"]:
        over = ", ".join(result["over_platform"])
        lines.append(f"{ABOVE} more than {result['platform']} leaves to the user: {over}")
    if result["share_of_platform"] is None:
        lines.append(f"what {result['platform']} leaves to the user is not known: only device totals are compared")
    return lines
