"""What a mapped netlist does that makes it hard to place: long nets, wide nets, deep paths, and resets of payload.

A path within one block can be placed short. Four things cannot, and each has a bound in `hw.spec.resources`:

| finding | example | what to do |
|---|---|---|
| a net of a far block that is not registered at both ends | the block's output comes out of a LUT | add a register |
| a net with many loads | one flip-flop enables 3,000 others | duplicate the register |
| a path of many LUTs (`hw.levels`) | an error code that is chosen and compared in one cycle | add a stage |
| a reset of a wide register that holds payload | 512 bits of data with a reset each | `reset_less=True` |

`Nets` joins the nets of the hierarchy without flattening it: every distinct module is looked at once, what is below its
ports is added from the modules that it holds, what is above them from the modules that hold it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch

from hw.levels import Levels, above
from hw.spec.resources import MAX_FANOUT, MAX_LUT_LEVELS, PAYLOAD_BITS
from hw.synth_units import Netlist

FAR_BLOCKS = ("matrix_unit",)
"""Modules whose instances lie on all dies: the nets at their ports cross boundaries of dies."""

WIDE_STATE = {
    "alula.control:*": "the host reads these registers back, and the counters start at 0",
    "alula.core.aux:awaited": "how many beats are open decides when the machine is done",
    "alula.core.matrix.drain:done_line": "a chain of valid bits",
    "alula.core.matrix.rounds:there": "a bit a unit: it has a round that is not counted",
    "alula.core.matrix:unit_*_error_register": "an error that a unit has told is one of this program",
    "alula.core.store:outstanding": "how many responses are open decides when the machine is done",
    "alula.core.store:valids": "valid bits of the ports",
    "alula.core.vector:history": "a chain of valid bits",
    "alula.core.sequencer:at": "the pc is told with an error that comes before the first instruction",
    "alula.core.sequencer:retired": "it counts from the start of the program",
    "alula.core.sequencer:quiet": "the watchdog counts from the start of the program",
}
"""`module:register` patterns of wide registers whose reset is part of the contract, and the reason."""

HANDSHAKES = {
    "matrix_unit.axi__arready": "an address is on the port until it is taken, and no cycle longer",
}
"""Inputs of far blocks that cannot enter a flip-flop first, and the reason."""

Bit = int
PortBit = tuple[str, int]

_NUMBER = re.compile(r"\$\d+|\[\d+\]")
"""Numbers of bits, and those that Amaranth gives over the whole design to what has no name of its own."""
_CLOCKS = {"C", "CLK", "WCLK", "CLKARDCLK", "CLKBWRCLK"}
_RESET = re.compile(r"(?:^|_)rst$")
_CHIP = "port"
"""Stands for what is outside of the whole."""
PASSED_ON = "an input of the block"
"""What drives an output that is an input's net."""


@dataclass
class Pins:
    """The ends of a net, by cell and port: {"FDRE.D": 3, "$lut.A": 1}."""

    drivers: Counter[str] = field(default_factory=Counter)
    loads: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "Pins") -> "Pins":
        return Pins(self.drivers + other.drivers, self.loads + other.loads)

    def __sub__(self, other: "Pins") -> "Pins":
        return Pins(self.drivers - other.drivers, self.loads - other.loads)

    def __or__(self, other: "Pins") -> "Pins":
        """The most of each, of the nets at a port that several instances have."""
        return Pins(self.drivers | other.drivers, self.loads | other.loads)


@dataclass(frozen=True)
class Crossing:
    """Bits of one port of a far block with the same fault: what drives or loads them is no register."""

    port: str
    end: str
    """Where the register is missing: "driver" or "loads"."""
    pins: tuple[str, ...]
    bits: int

    def __str__(self) -> str:
        what = "driven by" if self.end == "driver" else "loaded by"
        return f"{self.port} ({self.bits} bits) is {what} {', '.join(self.pins)}: add a register there"


@dataclass(frozen=True)
class Fanout:
    """A net with many loads."""

    net: str
    """`module:name`, as the source calls what drives it; an unnamed signal is `$signal`."""
    driver: str
    loads: int

    def __str__(self) -> str:
        return f"{self.net} ({self.driver}) has {self.loads} loads: duplicate the register that drives it"


@dataclass(frozen=True)
class Reset:
    """A wide register that is reset."""

    register: str
    """`module:name`."""
    bits: int

    def __str__(self) -> str:
        return f"{self.register} resets {self.bits} bits: make it reset_less, or name a reason in WIDE_STATE"


class _Module:
    """The nets of one module: joined where a module in it passes an input on, and their ends in it and below."""

    def __init__(self, module: dict, below: dict[str, "_Module"]):
        self._parent: dict[Bit, Bit] = {}
        self.pins: dict[Bit, Pins] = {}
        self.places: dict[Bit, tuple[str, str]] = {}
        """Nets that a primitive of this module drives: (the source's name, the primitive)."""
        self.inner: list[tuple[str, dict[PortBit, Bit]]] = []
        for cell in module["cells"].values():
            if cell["type"] in below:
                self._join(cell, below[cell["type"]])
        for cell in module["cells"].values():
            if cell["type"] not in below:
                self._add(cell)
        for kind, nets in self.inner:
            for net, ports in below[kind].ports.items():
                if found := self._outer(nets, ports):
                    self._ends(found).drivers.update(below[kind].pins[net].drivers)
                    self._ends(found).loads.update(below[kind].pins[net].loads)
        self.ports: dict[Bit, list[PortBit]] = {}
        """The module's nets that have ports, and which."""
        self.ways = {name: port["direction"] for name, port in module["ports"].items()}
        for name, port in module["ports"].items():
            for place, bit in _signals(port["bits"]):
                self._ends(bit)
                self.ports.setdefault(self.net(bit), []).append((name, place))

    def net(self, bit: Bit) -> Bit:
        """The one bit that stands for all that are joined."""
        while (above := self._parent.get(bit, bit)) != bit:
            bit = above
        return bit

    def _ends(self, bit: Bit) -> Pins:
        return self.pins.setdefault(self.net(bit), Pins())

    def _join(self, cell: dict, inner: "_Module") -> None:
        nets = {(port, i): bit for port, bits in cell["connections"].items() for i, bit in _signals(bits)}
        self.inner.append((cell["type"], nets))
        for ports in inner.ports.values():
            first, *others = [nets[port] for port in ports if port in nets] or [0]
            for other in others:
                if self.net(other) != self.net(first):
                    self._parent[self.net(other)] = self.net(first)

    def _add(self, cell: dict) -> None:
        kind, ways = cell["type"], cell.get("port_directions", {})
        for port, bits in cell["connections"].items():
            if port in _CLOCKS and not (kind.startswith("DSP") and port == "C"):
                continue
            for _, bit in _signals(bits):
                if ways.get(port) == "output":
                    self._ends(bit).drivers[f"{kind}.{port}"] += 1
                    self.places[self.net(bit)] = cell.get("net") or "unnamed", kind
                elif ways.get(port) == "input":
                    self._ends(bit).loads[f"{kind}.{port}"] += 1

    def _outer(self, nets: dict[PortBit, Bit], ports: Iterable[PortBit]) -> Bit | None:
        """The net outside an inner module that one of its nets is connected to."""
        return next((self.net(nets[port]) for port in ports if port in nets), None)

    def outside(self, total: dict[Bit, Pins], of: str, inner: "_Module") -> Iterator[dict[Bit, Pins]]:
        """For each instance of an inner module: its nets with the ends that are not inside of it."""
        for kind, nets in self.inner:
            if kind == of:
                found = {net: self._outer(nets, ports) for net, ports in inner.ports.items()}
                yield {net: total[bit] - inner.pins[net] for net, bit in found.items() if bit is not None}


class Nets:
    """Every net of a netlist with all its ends."""

    def __init__(self, netlist: Netlist):
        self.modules: dict[str, _Module] = {}
        self._read(netlist, netlist.top)
        self.outside: dict[str, dict[Bit, Pins]] = {}
        """Module -> its nets with ports -> their ends outside of it."""
        self.most: dict[str, dict[Bit, int]] = {}
        """Module -> its nets with ports -> the most loads outside of it that an instance's net has."""
        self.total: dict[str, dict[Bit, Pins]] = {}
        self._climb(netlist.top)

    def _read(self, netlist: Netlist, name: str) -> None:
        module = netlist.modules[name]
        for kind in dict.fromkeys(cell["type"] for cell in module["cells"].values()):
            if kind in netlist.modules and kind not in self.modules:
                self._read(netlist, kind)
        self.modules[name] = _Module(module, self.modules)

    def _climb(self, top: str) -> None:
        """Ends outside of each module, from the whole down: modules are read after those in them."""
        chip = self.modules[top]
        self.outside[top] = {
            net: Pins(
                Counter(_CHIP for port, _ in ports if chip.ways[port] == "input"),
                Counter(_CHIP for port, _ in ports if chip.ways[port] == "output"),
            )
            for net, ports in chip.ports.items()
        }
        for name in reversed(self.modules):
            module, outside = self.modules[name], self.outside[name]
            self.total[name] = total = {
                net: pins + outside[net] if net in outside else pins for net, pins in module.pins.items()
            }
            for kind in dict.fromkeys(kind for kind, _ in module.inner):
                found, most = self.outside.setdefault(kind, {}), self.most.setdefault(kind, {})
                for instance in module.outside(total, kind, self.modules[kind]):
                    for net, pins in instance.items():
                        found[net] = found[net] | pins if net in found else pins
                        most[net] = max(most.get(net, 0), pins.loads.total())

    def loads(self, name: str, net: Bit) -> int:
        """Loads of a net that a primitive of this module drives, in the instance that has the most."""
        return self.modules[name].pins[net].loads.total() + self.most.get(name, {}).get(net, 0)


def unregistered_crossings(
    nets: Nets, blocks: Iterable[str] = FAR_BLOCKS, held: Iterable[str] = tuple(HANDSHAKES)
) -> list[Crossing]:
    """Ports of the blocks whose nets are not driven by a flip-flop, or loaded by anything but inputs of flip-flops.

    Both ends count wherever they are: in the block, or around it. The chip's ports end nets. Shift registers in LUTs,
    memories and DSPs are no registers here: they cannot be moved towards the net. What loads those `held` does not
    count.
    """
    bits: Counter[tuple[str, str]] = Counter()
    wrong: dict[tuple[str, str], set[str]] = {}
    for block in blocks:
        module = nets.modules[block]
        for net, ports in module.ports.items():
            within, around = module.pins[net], nets.outside[block].get(net, Pins())
            for port, _ in ports:
                if module.ways[port] == "output":
                    drivers, loads = within.drivers or +Counter({PASSED_ON: min(1, len(around.drivers))}), around.loads
                else:
                    drivers, loads = around.drivers, within.loads
                for end, pins, pin in (("driver", drivers, "Q"), ("loads", loads, "D")):
                    if end == "loads" and f"{block}.{port}" in held:
                        continue
                    if drivers and loads and (found := _not_registered(pins, pin)):
                        bits[f"{block}.{port}", end] += 1
                        wrong.setdefault((f"{block}.{port}", end), set()).update(found)
    return [Crossing(*key, tuple(sorted(pins)), bits[key]) for key, pins in sorted(wrong.items())]


def _not_registered(pins: Iterable[str], wanted: str) -> list[str]:
    """Those that are neither this pin of a flip-flop nor outside of the chip."""
    return [pin for pin in pins if pin != _CHIP and not re.fullmatch(rf"FD\w+\.{wanted}", pin)]


def fanouts(nets: Nets, bound: int = MAX_FANOUT) -> list[Fanout]:
    """Nets with more loads than the bound, but clocks; the largest first."""
    found = []
    for name, module in nets.modules.items():
        for net, (place, kind) in module.places.items():
            if (loads := nets.loads(name, net)) > bound:
                found.append(Fanout(plain(f"{name}:{place}"), kind, loads))
    top = next(reversed(nets.modules))
    for net, ports in nets.modules[top].ports.items():
        port, _ = ports[0]
        if nets.modules[top].ways[port] == "input" and (loads := nets.total[top][net].loads.total()) > bound:
            found.append(Fanout(f"{top}:{port}", _CHIP, loads))
    return sorted(found, key=lambda fanout: -fanout.loads)


def payload_resets(netlist: Netlist, bits: int = PAYLOAD_BITS, held: Iterable[str] = tuple(WIDE_STATE)) -> list[Reset]:
    """Registers of at least so many bits that the reset reaches, but those `held`."""
    found = []
    for name, module in netlist.modules.items():
        for register, width in _reset_registers(module).items():
            place = plain(f"{name}:{register}")
            if width >= bits and not any(fnmatch(place, pattern) for pattern in held):
                found.append(Reset(place, width))
    return found


def plain(name: str) -> str:
    """A name without the numbers that the next change may alter: `core.load$36:at[3]` is `core.load:at`."""
    return _NUMBER.sub("", name)


def _reset_registers(module: dict) -> Counter[str]:
    """Bits of the registers of a module whose reset input depends on the reset within a cycle: Yosys also uses that
    input for values that are 0 at times."""
    resets = {bit for name, port in module["ports"].items() if _RESET.search(name) for _, bit in _signals(port["bits"])}
    sources: dict[Bit, list[Bit]] = {}
    registers: list[tuple[str, Bit]] = []
    for cell in module["cells"].values():
        kind, net = cell["type"], cell.get("net") or "unnamed"
        if kind.startswith(("$lut", "LUT", "INV")):
            read = list(_pins(cell, "input"))
            sources |= dict.fromkeys(_pins(cell, "output"), read)
        elif kind.startswith("FD"):
            registers += [(net, bit) for pin in ("R", "S") for _, bit in _signals(cell["connections"].get(pin, ()))]
            if _RESET.search(net):
                resets.update(_pins(cell, "output"))

    def is_reset(bit: Bit) -> bool:
        seen, left = set(), [bit]
        while left:
            if (at := left.pop()) in resets:
                return True
            left += [source for source in sources.get(at, ()) if source not in seen]
            seen.update(left)
        return False

    reset = {bit: is_reset(bit) for bit in {bit for _, bit in registers}}
    return Counter(re.sub(r"\[\d+\]$", "", name) for name, bit in registers if reset[bit])


def _pins(cell: dict, way: str) -> Iterator[Bit]:
    """Nets at the inputs or outputs of a cell."""
    for port, bits in cell["connections"].items():
        if cell["port_directions"][port] == way:
            yield from (bit for _, bit in _signals(bits))


def _signals(bits: Iterable) -> Iterator[tuple[int, Bit]]:
    """(place, bit) of what is not a constant."""
    return ((place, bit) for place, bit in enumerate(bits) if not isinstance(bit, str))


@dataclass(frozen=True)
class Findings:
    """Everything that is above a bound."""

    crossings: list[Crossing]
    fanouts: list[Fanout]
    paths: list[Levels]
    resets: list[Reset]
    largest_fanout: int

    @property
    def figures(self) -> dict[str, int]:
        """What `alula info` says of it."""
        return {
            "unregistered_crossings": sum(crossing.bits for crossing in self.crossings),
            "largest_fanout": self.largest_fanout,
            "payload_resets": sum(reset.bits for reset in self.resets),
        }


def check(netlist: Netlist, blocks: Iterable[str] = FAR_BLOCKS) -> Findings:
    """Looks a whole netlist over. ValueError for a combinational loop."""
    nets = Nets(netlist)
    wide = fanouts(nets, 0)
    return Findings(
        unregistered_crossings(nets, blocks),
        [fanout for fanout in wide if fanout.loads > MAX_FANOUT],
        above(netlist, netlist.top, MAX_LUT_LEVELS),
        payload_resets(netlist),
        wide[0].loads if wide else 0,
    )
