"""Yosys on a whole configuration, unit by unit: every distinct module once, counted as often as it is instantiated.

A unit is a block of the machine (`unit_of`). Modules that differ only in the names of their places (the chains of a
matrix unit, the lanes) are one. Counts are Yosys's (see `hw.synth`); `hw.levels` finds the longest paths.
"""

import gzip
import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from hw.accelerator import TOP
from hw.synth import MAP_LUTS, SYNTHESIS, tally
from hw.verilog_writer import run_yosys

_MODULE = re.compile(r"^(?:\(\*[^\n]*\*\)\n)?module (\\\S+|\w+) ?.*?^endmodule\n?", flags=re.M | re.S)
_INSTANCE = re.compile(r"^  (\\\S+|\w+) (?=(?: |#|\w|\\)[^=;]*?\($)", flags=re.M)
_INSTANCE_BODY = re.compile(_INSTANCE.pattern + r"(.*?\n  \);)", flags=re.M | re.S)
_NUMBERED = re.compile(r"\\[^\s.]+\$\d+\S*")
_PORT = re.compile(r"^  (?:input|output)\b.*;$", flags=re.M)


def unit_of(module: str) -> str:
    """The unit of a module: its place under the core, or the repeated block it belongs to."""
    path = module.split("$")[0].split(".")
    if path[0] != TOP:
        return path[0]
    if len(path) == 1:
        return "ports"
    return path[1] if path[1] != "core" else "core" if len(path) == 2 else path[2]


def split_modules(verilog: str) -> dict[str, str]:
    """Name (without the escape) -> text, as `hw.verilog_writer.convert` writes them."""
    return {found[1].lstrip("\\"): found[0] for found in _MODULE.finditer(verilog)}


def _children(text: str, known: dict[str, str]) -> list[str]:
    return [found[1].lstrip("\\") for found in _INSTANCE.finditer(text) if found[1].lstrip("\\") in known]


def distinct(modules: dict[str, str], top: str) -> tuple[dict[str, str], dict[str, str]]:
    """({module: its representative}, {representative: text}) of everything below `top`, children first.

    Amaranth numbers some names over the whole design; they do not make modules differ.
    """
    stands_for: dict[str, str] = {}
    texts: dict[str, str] = {}
    tokens: dict[str, list[str]] = {}
    seen: dict[str, str] = {}

    def visit(name: str) -> None:
        if name in stands_for:
            return
        for child in _children(modules[name], modules):
            visit(child)
        text = _INSTANCE_BODY.sub(lambda found: _renamed(found, stands_for, tokens), modules[name])
        body = text.replace(f"module {_escaped(name)}", "module ?", 1)
        tokens[name] = list(dict.fromkeys(_NUMBERED.findall(body)))
        place = {token: index for index, token in enumerate(tokens[name])}
        key = sha256(_NUMBERED.sub(lambda found: f"numbered${place[found[0]]}", body).encode()).hexdigest()
        stands_for[name] = seen.setdefault(key, name)
        if stands_for[name] == name:
            texts[name] = text

    visit(top)
    return stands_for, texts


def _renamed(found: re.Match, stands_for: dict[str, str], tokens: dict[str, list[str]]) -> str:
    """An instance, as one of the representative."""
    name = found[1].lstrip("\\")
    if name not in stands_for:
        return found[0]
    other = dict(zip(tokens[name], tokens[stands_for[name]], strict=True))
    body = re.sub(r"\.(\\\S+) (?=\()", lambda port: f".{other.get(port[1], port[1])} ", found[2])
    return f"  {_escaped(stands_for[name])} {body}"


def _escaped(name: str) -> str:
    return name if re.fullmatch(r"\w+", name) else f"\\{name} "


def instances(texts: dict[str, str], top: str) -> dict[str, int]:
    """How often each distinct module is there."""
    count = Counter({top: 1})
    for name in reversed(texts):  # children come first in `texts`
        for child in _children(texts[name], texts):
            count[child] += count[name]
    return dict(count)


def _stub(text: str) -> str:
    """A module's ports alone, as a black box."""
    header = text[text.index("module ") : text.index(";") + 1]
    return "(* blackbox *)\n" + header + "\n" + "\n".join(_PORT.findall(text)) + "\nendmodule\n"


@dataclass
class Netlist:
    """Mapped modules by name, their cells and ports as in Yosys's JSON (`_kept`); and how long each unit took."""

    top: str
    modules: dict[str, dict] = field(default_factory=dict)
    instances: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def units(self) -> list[str]:
        return list(dict.fromkeys(unit_of(name) for name in self.modules))

    def cells(self, unit: str | None = None) -> Counter:
        """Primitives of a unit in all its instances (of everything: None)."""
        found: Counter = Counter()
        for name, module in self.modules.items():
            if unit in (None, unit_of(name)):
                types = Counter(cell["type"] for cell in module["cells"].values())
                found.update(
                    {
                        kind: n * self.instances[name]
                        for kind, n in types.items()
                        if kind not in self.modules and kind != "$scopeinfo"
                    }
                )
        return found

    def table(self, unit: str | None = None) -> dict[str, float]:
        return tally(self.cells(unit))


KEPT = "mapped.json.gz"
"""The file of an entry of the cache."""
Cache = Callable[[str, Callable[[Path], None]], Path]
"""Gives an entry's folder by its key, made by the function if it is not there (`sim.cache.entry`)."""


def synthesise_units(
    verilog: str,
    top: str = TOP,
    note: Callable[[str], None] = lambda _: None,
    only: set[str] | None = None,
    logic: bool = True,
    cache: Cache | None = None,
) -> Netlist:
    """Maps every distinct module, a Yosys run a unit. only: these units alone (the rest is then not counted); logic
    False: DSPs and block memories alone are mapped, which is fast; cache: keeps mapped units."""
    _, texts = distinct(split_modules(verilog), top)
    made = Netlist(top, instances=instances(texts, top))
    groups: dict[str, list[str]] = {}
    for name in texts:
        groups.setdefault(unit_of(name), []).append(name)
    for unit, names in groups.items():
        if only is None or unit in only:
            note(unit)
            modules, made.seconds[unit] = _cached(names, texts, logic, cache)
            made.modules |= modules
    return made


def digest(verilog: str) -> str:
    """What figures of a netlist come from: the Verilog text, the mapping and Yosys's version."""
    return sha256(f"{_mapping()}\n{verilog}".encode()).hexdigest()[:16]


def _mapping() -> str:
    return f"{version('pyosys')} {SYNTHESIS} {MAP_LUTS}"


def _cached(names: list[str], texts: dict[str, str], logic: bool, cache: Cache | None) -> tuple[dict[str, dict], float]:
    """What `_synthesise` gives and the seconds it took, now or when the cache got it."""
    state = sha256(f"{_mapping()} {logic} {KEPT}\n".encode())
    for name in names:
        state.update(f"{name}\n{texts[name]}".encode())

    def found() -> dict:
        began = time.monotonic()
        modules = _synthesise(names, texts, logic)
        return {"modules": modules, "seconds": time.monotonic() - began}

    def make(folder: Path) -> None:
        (folder / KEPT).write_bytes(gzip.compress(json.dumps(found()).encode(), 1))

    if cache is None:
        made = found()
    else:
        made = json.loads(gzip.decompress((cache(state.hexdigest()[:32], make) / KEPT).read_bytes()))
    return made["modules"], made["seconds"]


def _synthesise(names: list[str], texts: dict[str, str], logic: bool) -> dict[str, dict]:
    """Mapped cells of the modules of a unit; what belongs to other units is a black box."""
    inside = set(names)
    below = {child for name in names for child in _children(texts[name], texts)}
    source_text = "".join([*(texts[name] for name in names), *(_stub(texts[name]) for name in sorted(below - inside))])
    found: dict[str, dict] = {}
    last, finish = ("map_luts", MAP_LUTS) if logic else ("map_ffram", ())
    with tempfile.TemporaryDirectory(prefix="alula-synth-") as folder:
        source, answer = Path(folder) / "unit.v", Path(folder) / "unit.json"
        source.write_text(source_text)
        for root in [name for name in names if name not in below]:
            run_yosys(
                [
                    f"read_verilog {source}",
                    f"{SYNTHESIS} -top {_escaped(root).strip()} -run begin:{last}",
                    *finish,
                    "blackbox =A:whitebox",
                    f"write_json {answer}",
                ]
            )
            mapped = json.loads(answer.read_text())["modules"]
            found |= {name: _kept(mapped[name]) for name in names if name in mapped}
    return found


def _kept(module: dict) -> dict:
    """Ports and cells of a module of Yosys's JSON. `net` is what the source calls a cell's output: the names of mapped
    cells are numbers."""
    names: dict[int, str] = {}
    for name, net in module["netnames"].items():
        if not name.startswith("$") and "$auto" not in name:
            plain, bits = name.removeprefix("\\"), net["bits"]
            for place, bit in enumerate(bits):
                names.setdefault(bit, f"{plain}[{place}]" if len(bits) > 1 else plain)
    cells = {name: _cell(cell, names) for name, cell in module["cells"].items()}
    return {"cells": cells, "ports": module["ports"]}


def _cell(cell: dict, names: dict[int, str]) -> dict:
    ways, where = cell.get("port_directions", {}), cell["connections"]
    outputs = (bit for port, way in ways.items() if way == "output" for bit in where.get(port, ()))
    net = next((names[bit] for bit in outputs if bit in names), None)
    kept = {"type": cell["type"], "connections": where, "port_directions": ways, "net": net}
    if cell["type"] == "$lut":
        kept["parameters"] = {"LUT": cell["parameters"]["LUT"]}  # the truth table, for `hw.packing`
    return kept
