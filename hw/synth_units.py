"""Yosys on a whole configuration, unit by unit: every distinct module once, counted as often as it is instantiated.

A unit is a block of the machine (`unit_of`). Modules that differ only in the names of their places (the chains of a
matrix unit, the lanes) are one. Counts are Yosys's (see `hw.synth`); levels are LUTs between registers, a proxy for
timing: no delay, no routing.
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
from hw.synth import MAP_LUTS, tally
from hw.verilog_writer import run_yosys

_MODULE = re.compile(r"^(?:\(\*[^\n]*\*\)\n)?module (\\\S+|\w+) ?.*?^endmodule\n?", flags=re.M | re.S)
_INSTANCE = re.compile(r"^  (\\\S+|\w+) (?=(?: |#|\w|\\)[^=;]*?\($)", flags=re.M)
_INSTANCE_BODY = re.compile(_INSTANCE.pattern + r"(.*?\n  \);)", flags=re.M | re.S)
_NUMBERED = re.compile(r"\\[^\s.]+\$\d+\S*")
_PORT = re.compile(r"^  (?:input|output)\b.*;$", flags=re.M)
_LEVEL = ("$lut", "LUT", "RAM32", "RAM64", "RAM128", "RAM256", "RAM512")
"""Cells a signal takes a LUT's delay in; an asynchronous read of LUT memory is one."""
_CARRY, _MUX = "CARRY", "MUXF"
_THROUGH = (*_LEVEL, _CARRY, _MUX, "INV", "$")
"""Combinational cells. Paths begin and end at all others: registers, memories, DSPs, other units."""


def _is_written(kind: str, port: str) -> bool:
    """Whether a port of a LUT memory is of its synchronous side."""
    return kind.startswith("RAM") and (port in ("D", "WE", "WCLK", "ADDRH") or port.startswith("DI"))


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
    """Mapped modules by name: cells as Yosys's JSON has them; and how long each unit took."""

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


KEPT = "cells.json.gz"
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


def _cached(names: list[str], texts: dict[str, str], logic: bool, cache: Cache | None) -> tuple[dict[str, dict], float]:
    """What `_synthesise` gives and the seconds it took, now or when the cache got it."""
    state = sha256(f"{version('pyosys')} {MAP_LUTS} {logic}\n".encode())
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
                    f"synth_xilinx -family xcup -noiopad -noclkbuf -uram -top {_escaped(root).strip()} "
                    f"-run begin:{last}",
                    *finish,
                    "blackbox =A:whitebox",
                    f"write_json {answer}",
                ]
            )
            mapped = json.loads(answer.read_text())["modules"]
            found |= {name: {key: mapped[name][key] for key in ("cells", "ports")} for name in names if name in mapped}
    return found


# --- levels ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Levels:
    """The longest combinational path: LUTs on it, and carry cells and wide multiplexers, which are counted apart."""

    luts: int
    carries: int
    muxes: int
    ends_in: str
    """The cell or port at its end."""


def levels(netlist: Netlist, root: str, inside: Callable[[str], bool] = lambda _: True) -> Levels:
    """Of a module with everything below it that is `inside`; its ports, and what is outside, begin and end paths."""
    drivers: dict = {}
    readers: list[tuple[str, list]] = []
    _flatten(netlist, root, (), {}, drivers, readers, inside)
    best: dict = {}
    expanded: set = set()

    def depth(start) -> tuple[int, int, int]:
        stack = [start]
        while stack:
            bit = stack[-1]
            if bit in best:
                stack.pop()
                continue
            cost, sources = drivers.get(bit, ((0, 0, 0), ()))
            missing = [source for source in sources if source not in best]
            if missing:
                if bit in expanded:  # what it waits for waits for it
                    raise ValueError(f"a combinational loop in {root}")
                expanded.add(bit)
                stack += missing
                continue
            deepest = max((best[source] for source in sources), default=(0, 0, 0))
            best[bit] = (deepest[0] + cost[0], deepest[1] + cost[1], deepest[2] + cost[2])
            stack.pop()
        return best[start]

    found, end = (0, 0, 0), "nothing"
    for name, bits in readers:
        for bit in bits:
            if (this := depth(bit)) > found:
                found, end = this, name
    return Levels(*found, end)


def _flatten(netlist, module, path, outside, drivers, readers, inside) -> None:
    """Adds the cells of a module: `drivers` bit -> (cost, input bits), `readers` (place, bits) where paths end.
    outside: bits of this module that are bits of another; others are (path, number)."""

    def bit_of(bit):
        if isinstance(bit, str):  # a constant
            return None
        return outside.get(bit, (path, bit))

    def bits_of(bits):
        return [found for found in map(bit_of, bits) if found is not None]

    if not path:
        readers += [
            (name, bits_of(port["bits"]))
            for name, port in netlist.modules[module]["ports"].items()
            if port["direction"] == "output"
        ]
    for name, cell in netlist.modules[module]["cells"].items():
        kind, where = cell["type"], cell["connections"]
        ways = cell.get("port_directions", {})
        inputs, written = (
            [
                bit
                for port, bits in where.items()
                if ways.get(port) == "input" and _is_written(kind, port) == side
                for bit in bits_of(bits)
            ]
            for side in (False, True)
        )
        outputs = [bit for port, bits in where.items() if ways.get(port) == "output" for bit in bits_of(bits)]
        if kind in netlist.modules and inside(kind):
            joined: dict = {}
            for port in sorted(where, key=lambda port: ways[port] == "output"):
                for inner, outer in zip(
                    netlist.modules[kind]["ports"][port]["bits"], map(bit_of, where[port]), strict=False
                ):
                    if inner in joined:  # an output that is an input, or another output
                        drivers[outer] = ((0, 0, 0), [joined[inner]] if joined[inner] else [])
                    elif not isinstance(inner, str):
                        joined[inner] = outer
            _flatten(netlist, kind, (*path, name), joined, drivers, readers, inside)
            continue
        place = f"{'.'.join((*path, name))} ({kind})"
        readers.append((place, written))
        if not kind.startswith(_THROUGH) or not outputs:
            readers.append((place, inputs))
        else:
            cost = (int(kind.startswith(_LEVEL)), int(kind.startswith(_CARRY)), int(kind.startswith(_MUX)))
            for bit in outputs:
                drivers[bit] = (cost, inputs)
