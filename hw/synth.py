"""Resources of a Verilog text: Yosys `synth_xilinx -family xcup`, each module synthesised once (whole configurations:
`hw.synth_units`).

Counts are Yosys's, hierarchical (a matrix unit counts as often as it is instantiated). LUT counts are rough, there is
no timing: Yosys maps carries without CARRY8 and does not retime. DSP48E2, block RAM and UltraRAM counts are structural.
"""

import json
import tempfile
from collections import Counter
from pathlib import Path

from hw.verilog_writer import run_yosys

SYNTHESIS = "synth_xilinx -family xcup -noiopad -noclkbuf -uram"
LUT_COSTS = "2:2,3,6:5"
"""Costs of LUTs by width, as in synth_xilinx -nowidelut: wider ones than six inputs would be several."""
LUT_SCRIPT = "+strash;ifraig;scorr;dch;if;mfs2"
"""abc's default script gives a matrix unit a fifth more LUTs at as many levels, and a vector lane a twelfth fewer."""
MAP_LUTS = (
    f"abc -luts {LUT_COSTS} -script {LUT_SCRIPT}",
    "opt_merge",
    "clean",
    "xilinx_srl -fixed -minlen 3",
    "techmap -map +/xilinx/cells_map.v",
    "clean",
)
"""In place of synth_xilinx's phase map_luts, whose own mapper (abc9) fails on this hierarchy (0.70)."""
LUT_KINDS = ("LUT", "LUTRAM", "SRL")
"""What LUTs are taken for: logic, memories, shift registers."""
KINDS = ("DSP48E2", *LUT_KINDS, "FF", "BRAM36", "URAM", "CARRY", "MUX")
_PREFIXES = {
    "DSP48E2": ("DSP48E2",),
    "LUT": ("LUT", "$lut", "INV"),
    "FF": ("FD",),
    "URAM": ("URAM288",),
    "CARRY": ("CARRY",),
    "MUX": ("MUXF",),
    "LUTRAM": ("RAM32", "RAM64", "RAM128", "RAM256", "RAM512"),
    "SRL": ("SRL",),
}
_LUTS_OF = {
    "RAM32M16": 8, "RAM64M8": 8, "RAM32X16DR8": 8, "RAM64X8SW": 8, "RAM32M": 4, "RAM64M": 4, "RAM32X1D": 2,
    "RAM64X1D": 2, "RAM128X1D": 4, "RAM256X1D": 8, "RAM32X1S": 1, "RAM64X1S": 1, "RAM128X1S": 2, "RAM256X1S": 4,
    "RAM512X1S": 8,
}  # fmt: skip
"""LUTs that a LUT memory takes (UG574)."""
_HALF_BLOCK, _WHOLE_BLOCK = "RAMB18", "RAMB36"


def kind_of(cell: str) -> str | None:
    """The row of the resource table that a primitive counts in."""
    return next((kind for kind, prefixes in _PREFIXES.items() if cell.startswith(prefixes)), None)


def tally(cells: dict[str, float]) -> dict[str, float]:
    """Resource table of {primitive: count}; a RAMB18 is half a BRAM36, LUTRAM counts LUTs."""
    table: Counter = Counter(dict.fromkeys(KINDS, 0))
    for cell, count in cells.items():
        if cell.startswith(_HALF_BLOCK):
            table["BRAM36"] += count / 2
        elif cell.startswith(_WHOLE_BLOCK):
            table["BRAM36"] += count
        elif kind := kind_of(cell):
            table[kind] += count * (_LUTS_OF[cell] if kind == "LUTRAM" else 1)
    return dict(table)


def luts(table: dict[str, float]) -> float:
    """All LUTs of a resource table."""
    return sum(table[kind] for kind in LUT_KINDS)


def hierarchy_cells(modules: dict[str, dict], top: str) -> dict[str, dict[str, int]]:
    """Primitives of every module, those of its submodules included, from the `modules` of `stat -json`."""
    own = {name: info["num_cells_by_type"] | info.get("num_submodules_by_type", {}) for name, info in modules.items()}
    done: dict[str, dict[str, int]] = {}

    def total(name: str) -> dict[str, int]:
        if name not in done:
            cells: Counter = Counter()
            for cell, count in own[name].items():
                below = total(_known(cell)) if _known(cell) in own else {cell: 1}
                cells.update({kind: n * count for kind, n in below.items()})
            done[name] = dict(cells)
        return done[name]

    def _known(cell: str) -> str:
        return cell if cell in own else f"\\{cell}"

    total(top)
    return done


def synthesise(verilog: str, top: str, flatten: bool = False) -> dict[str, dict[str, int]]:
    """Primitives of each module of a Verilog text, submodules included.

    flatten: dissolve the hierarchy first, so that constants reach into submodules.
    """
    with tempfile.TemporaryDirectory(prefix="alula-synth-") as name:
        source, answer = Path(name) / "design.v", Path(name) / "stat.json"
        source.write_text(verilog)
        run_yosys(
            [
                f"read_verilog {source}",
                f"{SYNTHESIS} {'-flatten' if flatten else ''} -top {top} -run begin:map_luts",
                *MAP_LUTS,
                f"tee -q -o {answer} stat -json",
            ]
        )
        modules = json.loads(answer.read_text())["modules"]
    found = next(key for key in modules if key.lstrip("\\") == top)
    return {key.lstrip("\\"): cells for key, cells in hierarchy_cells(modules, found).items()}
