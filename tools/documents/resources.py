"""What Yosys counts of a configuration: benchmarks/results/synthesis.json."""

from tools.documents.results import figure, table

NAMES = {
    "LUT": "LUTs of logic",
    "LUTRAM": "LUTs as memories",
    "SRL": "LUTs as shift registers",
    "FF": "flip-flops",
    "BRAM36": "block RAMs (36 Kb)",
    "URAM": "UltraRAMs",
    "DSP48E2": "DSP48E2",
}
CARDS = ("u280", "u55c", "u50", "v80")


def _share(value: float) -> str:
    return f"{value:.1%}".replace("%", " %")


@figure("synthesis")
def by_unit(found: dict) -> str:
    """One row a unit of the machine, all its instances together."""
    rows = [
        [run["unit"], *(f"{run[kind]:,g}" if run[kind] < 1e6 else f"{run[kind]:,}" for kind in NAMES)]
        for run in found["runs"]
    ]
    total = found["whole"]["resources"]
    rows.append(["**in all**", *(f"**{total[kind]:,}**" for kind in NAMES)])
    return table([f"unit of `{found['config']}`", *NAMES.values()], rows)


@figure("synthesis")
def against_cards(found: dict) -> str:
    """Every card's configuration against its device, and against what its platform leaves to the user."""
    results = {found["config"]: found["whole"]} | found["others"]
    rows = []
    for kind, name in {"LUT": "LUTs, all three kinds", **{k: v for k, v in NAMES.items() if k in KINDS}}.items():
        cells = [_share(results[card]["share_of_card"][kind]) for card in CARDS]
        left = results["u280"]["share_of_platform"][kind]
        rows.append([name, *cells, _share(left)])
    rows.append(["LUT levels of the longest path", *(str(results[card]["lut_levels_whole"]) for card in CARDS), ""])
    return table(["", *(f"`{card}`, of the device" for card in CARDS), "`u280`, of its platform's part"], rows)


KINDS = ("FF", "BRAM36", "URAM", "DSP48E2")


@figure("synthesis")
def longest_path(found: dict) -> str:
    """Where the longest path of the whole netlist begins and ends."""
    path = found["whole"]["longest_path"]
    return f"The longest path goes from `{path['starts_in']}` to `{path['ends_in']}`: {path['luts']} LUT levels."
