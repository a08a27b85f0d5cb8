"""The longest combinational path of each unit in LUT levels: a proxy for timing (no delays, no routing), by Yosys."""

import time
from functools import partial

from hw.accelerator import TOP
from hw.synth_units import Levels, Netlist, levels, synthesise_units, unit_of
from sim.cache import entry
from sim.rtl.accelerator import synthesisable

DEPENDS = ("hw/*.py", "machine:u280")
BOUND = 8
REASONS = {
    "control": "the reply of a register read: a multiplexer over every register and counter, and the counters' adders",
    "core": "glue: error priority and traffic sums over all channels in one cycle, one a channel",
    "matrix_unit": "a stream beat is unpacked at any of 8 precisions within the cycle the channel brings it",
    "sequencer": "one instruction is decoded, its operands read, added or compared and the next address chosen",
    "store": "addresses are sums of products of strides, with the block they fall into",
    "load": "burst length is the least of three counts, then added to two addresses",
    "fetch": "burst length is the least of two counts, then added to the address",
    "vector": "reduction over 64 lanes and the finaliser's shifts",
    "vector_lane": "32 x 32 bit products, shifts by any amount, rounding and saturation in few stages",
    "ports": "the base address is added to what leaves a port: one 52-bit carry chain behind the port's own logic",
}
"""Why a unit may be above the bound. Judgements from the source, not measurements."""


def unit_levels(netlist: Netlist, unit: str) -> Levels:
    """The deepest of a unit's modules that are in no other module of it, everything of the unit below them included."""
    names = [name for name in netlist.modules if unit_of(name) == unit]
    below = {cell["type"] for name in names for cell in netlist.modules[name]["cells"].values()}
    roots = [name for name in names if name not in below]
    return max(
        (levels(netlist, root, lambda name: unit_of(name) == unit) for root in roots),
        key=lambda found: (found.luts, found.carries),
    )


def result(netlist: Netlist, config: str, wall_seconds: float) -> dict:
    rows = []
    for unit in netlist.units:
        found = unit_levels(netlist, unit)
        above = found.luts > BOUND
        rows.append(
            {
                "unit": unit,
                "lut_levels": found.luts,
                "carry_cells": found.carries,
                "wide_muxes": found.muxes,
                "ends_in": found.ends_in,
                "above_bound": above,
                "reason": REASONS.get(unit) if above else None,
            }
        )
    return {
        "what": "LUTs on the longest combinational path of a unit, from Yosys; carry cells (CARRY4) and MUXF on that "
        "path apart. A proxy for timing: no delay, no routing, no tool of the vendor has seen this design. Paths end "
        "at registers, memories and DSPs, and at the unit's own ports: paths from unit to unit are longer.",
        "config": config,
        "bound": BOUND,
        "above_bound": [row["unit"] for row in rows if row["above_bound"]],
        "wall_seconds": wall_seconds,
        "runs": rows,
    }


def measure(config: str = "u280") -> dict:
    began = time.monotonic()
    netlist = synthesise_units(synthesisable(config), TOP, cache=partial(entry, "yosys"))
    return result(netlist, config, time.monotonic() - began)
