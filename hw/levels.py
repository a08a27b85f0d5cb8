"""LUTs on the longest combinational path of a mapped netlist: a proxy for timing, with neither delays nor routing.

Every distinct module is looked at once. What its surroundings have to know of it is its `Timing`: how deep its outputs
are behind its registers, how deep registers are behind its inputs, and how deep each output is behind each input. A
path that leaves a module and comes back (core, unit, core) is found where both ends are known, without flattening.

DSPs end paths. Yosys leaves the registers around multipliers that it infers outside of them, where the vendor's tools
move them inside; so what is before and what is behind such a multiplier is not added up, nor is its own delay.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from hw.synth_units import Netlist

Bit = int
Depth = tuple[int, int, int]
"""LUTs, carry cells, wide multiplexers; the longest path is the one of most LUTs."""
PortBit = tuple[str, int]

_LEVEL = ("$lut", "LUT", "RAM32", "RAM64", "RAM128", "RAM256", "RAM512", "SRL")
"""Cells a signal takes a LUT's delay in; an asynchronous read of LUT memory is one."""
_CARRY, _MUX = "CARRY", "MUXF"
_THROUGH = (*_LEVEL, _CARRY, _MUX, "INV", "$")
"""Combinational cells. Paths begin and end at all others: registers, memories, DSPs, modules that are left out."""
_NOTHING: Depth = (0, 0, 0)
NO_BOUND = 1 << 30


class Found(NamedTuple):
    """The depth of a path and the place at its other end."""

    depth: Depth
    place: str


@dataclass(frozen=True)
class Levels:
    """The longest combinational path: LUTs on it, and carry cells and wide multiplexers, which are counted apart."""

    luts: int
    carries: int
    muxes: int
    starts_in: str
    ends_in: str
    """The register, memory, DSP or port at either end."""


@dataclass
class Timing:
    """What the surroundings of a module see of it, and the longest path within it."""

    arrivals: dict[PortBit, Found] = field(default_factory=dict)
    """Of outputs: the deepest start inside."""
    departures: dict[PortBit, Found] = field(default_factory=dict)
    """Of inputs: the deepest end inside."""
    through: dict[PortBit, dict[PortBit, Depth]] = field(default_factory=dict)
    """Output -> the inputs that it depends on within a cycle."""
    longest: Levels = Levels(0, 0, 0, "nothing", "nothing")
    deep: list[Levels] = field(default_factory=list)
    """The paths within it that are longer than a bound: of each net the one through it that joins deepest start and
    end, where both are known."""


def levels(netlist: Netlist, root: str, inside: Callable[[str], bool] = lambda _: True) -> Levels:
    """Of a module with everything below it that is `inside`; its ports, and what is outside, begin and end paths.

    ValueError for a combinational loop.
    """
    return _timing(netlist, root, inside).longest


def above(netlist: Netlist, root: str, bound: int) -> list[Levels]:
    """The paths of a module with everything below it that are longer than so many LUTs, the longest first; of paths
    with the same ends one. ValueError for a combinational loop."""
    paths: dict[tuple[str, str], Levels] = {}
    for path in sorted(_timing(netlist, root, bound=bound).deep, key=lambda path: (-path.luts, -path.carries)):
        paths.setdefault((path.starts_in, path.ends_in), path)
    return list(paths.values())


def _timing(
    netlist: Netlist, root: str, inside: Callable[[str], bool] = lambda _: True, bound: int = NO_BOUND
) -> Timing:
    known: dict[str, Timing] = {}

    def timing(name: str) -> Timing:
        if name not in known:
            module = netlist.modules[name]
            below = {
                kind: timing(kind)
                for kind in {cell["type"] for cell in module["cells"].values()}
                if kind in netlist.modules and inside(kind)
            }
            known[name] = _Graph(name, module, below, is_root=name == root).timing(bound)
        return known[name]

    return timing(root)


def _is_written(kind: str, port: str) -> bool:
    """Whether an input of a LUT memory or shift register is of its synchronous side."""
    if kind.startswith("SRL"):
        return not port.startswith("A")
    return kind.startswith("RAM") and (port in ("D", "WE", "WCLK", "ADDRH") or port.startswith("DI"))


def _plus(one: Depth, other: Depth) -> Depth:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _cost(kind: str) -> Depth:
    return int(kind.startswith(_LEVEL)), int(kind.startswith(_CARRY)), int(kind.startswith(_MUX))


def _signals(bits: Iterable) -> Iterator[tuple[int, Bit]]:
    """(place, bit) of what is not a constant."""
    return ((place, bit) for place, bit in enumerate(bits) if not isinstance(bit, str))


class _Graph:
    """The nets of one module: what drives them, where paths start and end."""

    def __init__(self, name: str, module: dict, below: dict[str, Timing], is_root: bool):
        self.name, self.module, self.is_root = name, module, is_root
        self.sources: dict[Bit, list[tuple[Bit, Depth]]] = {}
        self.starts: dict[Bit, Found] = {}
        self.ends: list[tuple[Bit, Found]] = []
        self.inner: list[tuple[str, Timing]] = []
        self.inputs, self.outputs = self._ports("input"), self._ports("output")
        for place, cell in module["cells"].items():
            if timing := below.get(cell["type"]):
                self._add_module(place, cell, timing)
            else:
                self._add_cell(place, cell)
        if is_root:
            self.starts |= {bit: Found(_NOTHING, port) for (port, _), bit in self.inputs.items()}
            self.ends += [(bit, Found(_NOTHING, port)) for (port, _), bit in self.outputs.items()]

    def _ports(self, way: str) -> dict[PortBit, Bit]:
        ports = self.module["ports"].items()
        return {
            (name, place): bit
            for name, port in ports
            if port["direction"] == way
            for place, bit in _signals(port["bits"])
        }

    def _add_cell(self, name: str, cell: dict) -> None:
        kind, ways = cell["type"], cell.get("port_directions", {})
        place = f"{cell.get('net') or name} ({kind})"
        read: list[tuple[Bit, Depth]] = []
        outputs: list[Bit] = []
        is_through = kind.startswith(_THROUGH) and "output" in ways.values()
        for port, bits in cell["connections"].items():
            found = [bit for _, bit in _signals(bits)]
            if ways.get(port) == "output":
                outputs += found
            elif ways.get(port) == "input":
                if is_through and not _is_written(kind, port):
                    read += [(bit, _cost(kind)) for bit in found]
                else:
                    self.ends += [(bit, Found(_NOTHING, place)) for bit in found]
        for bit in outputs:
            if read:
                self.sources[bit] = read
            else:
                self.starts[bit] = Found(_NOTHING, place)

    def _add_module(self, place: str, cell: dict, timing: Timing) -> None:
        nets = {(port, i): bit for port, bits in cell["connections"].items() for i, bit in _signals(bits)}
        self.inner.append((place, timing))
        for port_bit, net in nets.items():
            if found := timing.arrivals.get(port_bit):
                self.starts[net] = Found(found.depth, f"{place}.{found.place}")
            if found := timing.departures.get(port_bit):
                self.ends.append((net, Found(found.depth, f"{place}.{found.place}")))
            if inputs := timing.through.get(port_bit):
                self.sources[net] = [(nets[key], depth) for key, depth in inputs.items() if key in nets]

    def timing(self, bound: int) -> Timing:
        order = self._order()
        arrivals, departures, behind = self._arrivals(order), self._departures(order), self._behind(order)
        keys = {bit: key for key, bit in self.inputs.items()}
        through = {
            key: {keys[source]: depth for source, depth in behind[bit].items()}
            for key, bit in self.outputs.items()
            if behind.get(bit)
        }
        return Timing(
            {key: arrivals[bit] for key, bit in self.outputs.items() if bit in arrivals},
            {key: departures[bit] for key, bit in self.inputs.items() if bit in departures},
            through,
            self._longest(arrivals),
            list(self._deep(arrivals, bound)),
        )

    def _order(self) -> list[Bit]:
        """Driven nets, each behind its sources."""
        order: list[Bit] = []
        state: dict[Bit, bool] = {}  # False: its sources are being visited
        for first in self.sources:
            stack = [first]
            while stack:
                bit = stack[-1]
                if bit in state:
                    stack.pop()
                    if not state[bit]:
                        state[bit] = True
                        order.append(bit)
                    continue
                state[bit] = False
                for source, _ in self.sources[bit]:
                    if source in self.sources and not state.get(source):
                        if source in state:  # what it waits for waits for it
                            raise ValueError(f"a combinational loop in {self.name}")
                        stack.append(source)
        return order

    def _arrivals(self, order: list[Bit]) -> dict[Bit, Found]:
        """The deepest start behind each net."""
        found = dict(self.starts)
        for bit in order:
            for source, cost in self.sources[bit]:
                if before := found.get(source):
                    depth = _plus(before.depth, cost)
                    if bit not in found or depth > found[bit].depth:
                        found[bit] = Found(depth, before.place)
        return found

    def _departures(self, order: list[Bit]) -> dict[Bit, Found]:
        """The deepest end ahead of each net."""
        found: dict[Bit, Found] = {}
        for bit, end in self.ends:
            if bit not in found or end.depth > found[bit].depth:
                found[bit] = end
        for bit in reversed(order):
            if after := found.get(bit):
                for source, cost in self.sources[bit]:
                    depth = _plus(after.depth, cost)
                    if source not in found or depth > found[source].depth:
                        found[source] = Found(depth, after.place)
        return found

    def _behind(self, order: list[Bit]) -> dict[Bit, dict[Bit, Depth]]:
        """The module's inputs behind each net that leads to an output."""
        if self.is_root:
            return {}
        wanted = set(self.outputs.values())
        for bit in reversed(order):
            if bit in wanted:
                wanted.update(source for source, _ in self.sources[bit])
        found = {bit: {bit: _NOTHING} for bit in self.inputs.values() if bit in wanted}
        for bit in order:
            if bit in wanted:
                inputs: dict[Bit, Depth] = {}
                for source, cost in self.sources[bit]:
                    for start, depth in found.get(source, {}).items():
                        inputs[start] = max(inputs.get(start, _NOTHING), _plus(depth, cost))
                found[bit] = inputs
        return found

    def _longest(self, arrivals: dict[Bit, Found]) -> Levels:
        """Of the paths that start and end in this module or in those below it."""
        paths = [*self._paths(arrivals), *(_under(place, timing.longest) for place, timing in self.inner)]
        return max(paths, key=lambda path: (path.luts, path.carries, path.muxes), default=Timing().longest)

    def _deep(self, arrivals: dict[Bit, Found], bound: int) -> Iterator[Levels]:
        """Those of more LUTs than the bound."""
        yield from (path for path in self._paths(arrivals) if path.luts > bound)
        for place, timing in self.inner:
            yield from (_under(place, path) for path in timing.deep)

    def _paths(self, arrivals: dict[Bit, Found]) -> Iterator[Levels]:
        """The deepest path to each end that is known here."""
        for bit, end in self.ends:
            if start := arrivals.get(bit):
                yield Levels(*_plus(start.depth, end.depth), start.place, end.place)


def _under(place: str, path: Levels) -> Levels:
    """A path within an inner module, as its surroundings call it."""
    return replace(path, starts_in=f"{place}.{path.starts_in}", ends_in=f"{place}.{path.ends_in}")
