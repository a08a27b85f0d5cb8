"""LUTs as slices would hold them: a bound from below on what placement makes of a mapped netlist, and no tool's figure.

Yosys counts every function of up to six inputs as a LUT. A slice of UltraScale+ does better in three ways (UG574):

| what | example | LUTs |
|---|---|---|
| multiplexers F7, F8 | one of 2:1 behind two LUTs that it alone reads; one of 4:1 behind four | 3 -> 2, 5 -> 4 |
| two outputs of a LUT | two functions of five inputs together | 2 -> 1 |
| two shift registers of 16 | of one length and one enable | 2 -> 1 |

Which LUTs a placer really pairs depends on where they are; only functions that share an input are paired here.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache
from itertools import permutations

from hw.synth import LUT_KINDS
from hw.synth_units import Netlist, unit_of

FRACTURED_INPUTS = 5
"""Inputs of the two functions of one LUT, together."""
NEIGHBOURS = 64
"""How many LUTs at one input are looked at as partners; more change the count by less than a hundredth."""


def packed_luts(netlist: Netlist, unit: str | None = None) -> float:
    """LUTs of logic, memories and shift registers, packed: of a unit in all its instances, of everything for None."""
    saved = sum(
        netlist.instances[name] * _saved(module)
        for name, module in netlist.modules.items()
        if unit in (None, unit_of(name))
    )
    table = netlist.table(unit)
    return sum(table[kind] for kind in LUT_KINDS) - saved


def _saved(module: dict) -> int:
    """LUTs that packing spares in a module."""
    luts = {name: cell for name, cell in module["cells"].items() if cell["type"] == "$lut"}
    muxes, kept = _wide_multiplexers(module, luts)
    return (
        len(muxes)
        + _pairs([_inputs(cell) for name, cell in luts.items() if name not in muxes | kept])
        + _shifts(module)
    )


def _inputs(cell: dict) -> frozenset[int]:
    return frozenset(bit for bit in cell["connections"]["A"] if not isinstance(bit, str))


def _wide_multiplexers(module: dict, luts: dict[str, dict]) -> tuple[set[str], set[str]]:
    """LUTs that are F7 or F8 multiplexers instead, and those in front of them, which are read by nothing else."""
    loads, drivers = _loads(module), {cell["connections"]["Y"][0]: name for name, cell in luts.items()}
    muxes: set[str] = set()
    kept: set[str] = set()
    for width in (6, 3):  # the larger ones first
        for name, cell in luts.items():
            if len(cell["connections"]["A"]) != width or name in kept:
                continue
            data = _multiplexers(width).get(int(cell["parameters"]["LUT"].replace("x", "0"), 2))
            bits = [cell["connections"]["A"][place] for place in data or ()]
            behind = {drivers.get(bit) for bit in bits if not isinstance(bit, str) and loads[bit] == 1}
            if data and len(behind) == len(data) and None not in behind and not behind & (muxes | kept):
                muxes.add(name)
                kept |= {before for before in behind if before}
    return muxes, kept


def _loads(module: dict) -> Counter[int]:
    """How often each net is read."""
    found: Counter[int] = Counter()
    for port in module["ports"].values():
        if port["direction"] == "output":
            found.update(bit for bit in port["bits"] if not isinstance(bit, str))
    for cell in module["cells"].values():
        for port, bits in cell["connections"].items():
            if cell.get("port_directions", {}).get(port) != "output":
                found.update(bit for bit in bits if not isinstance(bit, str))
    return found


@cache
def _multiplexers(width: int) -> dict[int, tuple[int, ...]]:
    """Truth table -> places of the data inputs, of multiplexers of 2 (three inputs) or 4 (six inputs). Inputs may be
    inverted: the LUTs in front of them invert for nothing."""
    n_select = 1 if width == 3 else 2
    found = {}
    for select in permutations(range(width), n_select):
        for data in permutations([place for place in range(width) if place not in select]):
            for inverted in range(1 << len(data)):
                table = 0
                for row in range(1 << width):
                    chosen = sum((row >> place & 1) << i for i, place in enumerate(select))
                    table |= (row >> data[chosen] & 1 ^ inverted >> chosen & 1) << row
                found[table] = data
    return found


def _pairs(inputs: Iterable[frozenset[int]]) -> int:
    """How many pairs of functions fit a LUT: greedily, the widest first, with the one it shares most inputs with."""
    small = sorted((found for found in inputs if 0 < len(found) <= FRACTURED_INPUTS), key=len, reverse=True)
    readers: dict[int, list[int]] = defaultdict(list)
    for number, bits in enumerate(small):
        for bit in bits:
            readers[bit].append(number)
    used: set[int] = set()
    for number, bits in enumerate(small):
        if number not in used:
            others = {other for bit in bits for other in readers[bit][:NEIGHBOURS]} - used - {number}
            fitting = [other for other in others if len(bits | small[other]) <= FRACTURED_INPUTS]
            if fitting:
                used |= {number, max(fitting, key=lambda other: (len(bits & small[other]), len(small[other]), -other))}
    return len(used) // 2


def _shifts(module: dict) -> int:
    groups = Counter(
        tuple(tuple(cell["connections"].get(port, ())) for port in ("A0", "A1", "A2", "A3", "CE", "CLK"))
        for cell in module["cells"].values()
        if cell["type"].startswith("SRL16")
    )
    return sum(n // 2 for n in groups.values())
