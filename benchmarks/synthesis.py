"""What a configuration takes of a card, by Yosys: resources by unit, LUT levels of each unit and of the whole."""

import time
from collections.abc import Callable
from functools import partial

from alula.info import resources
from hw.levels import Levels, levels
from hw.spec.resources import MAX_LUT_LEVELS, NETLIST_BOUNDS
from hw.synth_units import Netlist, synthesise_units, unit_of
from sim.cache import entry
from sim.rtl.accelerator import PARTS, synthesisable, synthesisable_part

CONFIG, OTHERS = "u280", ("u55c", "u50", "v80")
DEPENDS = (
    "hw/*.py",
    "hw/verilog/*",
    *(
        f"hw/spec/{name}.py"
        for name in ("cards", "csr", "isa", "legal", "numerics", "resources", "timing", "vector", "weights")
    ),
    *(f"machine:{name}" for name in (CONFIG, *OTHERS)),
)
COLUMNS = ("LUT", "LUTRAM", "SRL", "FF", "BRAM36", "URAM", "DSP48E2")
BOUND = MAX_LUT_LEVELS
"""LUT levels that a unit is meant to stay within."""
SUMMARY = (
    "card",
    "platform",
    "resources",
    "share_of_card",
    "share_of_platform",
    "over",
    "over_platform",
    "formula_equal",
    *NETLIST_BOUNDS,
    "slr_shares",
    "above_bounds",
    "longest_path",
    "synthesis_commit_digest",
)
"""What is kept of `alula info`'s answer."""
TOLERANCE = 0.02
"""How much more than recorded a part may take."""
AGAIN = "python -m benchmarks.run synthesis"


def unit_levels(netlist: Netlist, unit: str) -> Levels:
    """The deepest of a unit's modules that are in no other module of it, everything of the unit below them included."""
    names = [name for name in netlist.modules if unit_of(name) == unit]
    below = {cell["type"] for name in names for cell in netlist.modules[name]["cells"].values()}
    roots = [name for name in names if name not in below]
    return max(
        (levels(netlist, root, lambda name: unit_of(name) == unit) for root in roots),
        key=lambda found: (found.luts, found.carries),
    )


def part_figures(part: str, config: str = CONFIG) -> dict[str, float]:
    """What one block of `PARTS` takes by itself, and its LUT levels."""
    netlist = synthesise_units(synthesisable_part(config, part), part, cache=partial(entry, "yosys"))
    table = netlist.table()
    return {kind: table[kind] for kind in COLUMNS} | {"lut_levels": levels(netlist, part).luts}


def excess(part: str, figures: dict[str, float], recorded: dict[str, float]) -> list[str]:
    """A line for each figure of a part that is above its record by more than `TOLERANCE`."""
    return [
        f"{part}: {what} = {now:,.0f}, recorded {before:,.0f}, the limit is {before * (1 + TOLERANCE):,.0f}: "
        f"make it smaller, or, if it has to be, measure again with `{AGAIN}` and commit what that writes"
        for what, now, before in _compared(figures, recorded)
        if now > before * (1 + TOLERANCE)
    ]


def _compared(figures: dict[str, float], recorded: dict[str, float]) -> list[tuple[str, float, float]]:
    """(what, now, recorded) of what is guarded."""
    watched: dict[str, Callable[[dict[str, float]], float]] = {
        "LUTs of logic": lambda of: of["LUT"],
        "LUTs of memories and shift registers": lambda of: of["LUTRAM"] + of["SRL"],
        "flip-flops": lambda of: of["FF"],
        "LUT levels": lambda of: of["lut_levels"],
    }
    return [(what, get(figures), get(recorded)) for what, get in watched.items()]


def unit_rows(netlist: Netlist) -> list[dict]:
    """A row for every unit: what all its instances take, and its longest path."""
    rows = []
    for unit in netlist.units:
        found, table = unit_levels(netlist, unit), netlist.table(unit)
        rows.append(
            {"unit": unit}
            | {kind: table[kind] for kind in COLUMNS}
            | {
                "lut_levels": found.luts,
                "carry_cells": found.carries,
                "wide_muxes": found.muxes,
                "starts_in": found.starts_in,
                "ends_in": found.ends_in,
                "above_bound": found.luts > BOUND,
            }
        )
    return rows


def summary(config: str) -> dict:
    """The whole of a configuration on its card."""
    found = resources(config)
    return {key: found[key] for key in SUMMARY}


def measure(config: str = CONFIG) -> dict:
    began = time.monotonic()
    whole = summary(config)
    rows = unit_rows(synthesise_units(synthesisable(config), cache=partial(entry, "yosys")))
    return {
        "what": "Yosys's counts, no tool of the vendor has seen this design. LUT: logic; LUTRAM: LUTs of memories; "
        "SRL: LUTs of shift registers. Shares of LUT are of all three; of the card: its device, of the platform: what "
        "its shell leaves to the user (null: not known). lut_levels: LUTs on the longest combinational path, carry "
        "cells (CARRY4) and MUXF on it apart; no delay, no routing. Paths end at registers, memories and "
        "DSPs (multipliers that Yosys infers have no registers in it, what is before and behind them is not added up). "
        "A unit's also end at its ports; lut_levels_whole is that of the whole netlist, from unit to unit.",
        "config": config,
        "whole": whole,
        "parts": {part: part_figures(part, config) for part in PARTS},
        "others": {name: summary(name) for name in OTHERS},
        "bound": BOUND,
        "above_bound": [row["unit"] for row in rows if row["above_bound"]],
        "wall_seconds": time.monotonic() - began,
        "runs": rows,
    }
