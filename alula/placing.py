"""Which operator and which layer of the model each event of a trace works for.

Layers are a loop of the program, which runs as often as the host says, so that an event's pc does not tell its layer.
Each pass of the loop's body is one layer. A unit takes its instructions in the order of the program, so passes are told
apart by an instruction that every pass has exactly once. Where a unit has no such instruction, a pass begins where the
pcs go back to an earlier part of the body; that is believed only if it makes as many passes as another unit has. What
is left has no layer, rather than a guessed one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from compiler.layout import Layout
from compiler.program import Program
from hw.spec.isa import Instruction, Op, Unit
from hw.spec.run import Event
from sim.trace import chrome

_BRANCHES = (Op.BEQ, Op.BNE, Op.BLTU, Op.BGEU)


@dataclass(frozen=True)
class Place:
    """What an event works for."""

    operator: str
    occurrence: int
    """How often the instruction has run, this time included."""
    layer: int | None = None
    """Number of the layer, from 0; None: it belongs to none, or it cannot be told."""
    layer_pass: int | None = None
    """Number of the pass of the loop over layers, from 0."""

    @property
    def name(self) -> str:
        return self.operator if self.layer is None else f"{self.operator}, layer {self.layer}"


class Places:
    """The place of every event of one run, or of runs behind each other that end in the same layers.

    layers: by entry ("lm", "vision"), how many layers a run goes through from the first one on; an entry that is not
    there, or whose passes do not fit, has no layers told. pairs: operators whose weights are read together, by the name
    of what reads them (`joint_names`).
    """

    def __init__(
        self,
        program: Program,
        events: Iterable[Event],
        layers: Mapping[str, int],
        pairs: Mapping[str, str] | None = None,
    ) -> None:
        self.program, self._pairs = program, pairs or {}
        ordered = sorted(events)
        counts: dict[int, int] = {}
        self._passes: dict[Event, int] = {}
        self._layers = dict(layers)
        for first, end in program.layer_loops:
            body = _Body(program.words, first, end)
            found = body.passes([event for event in ordered if first <= event.tag < end])
            self._passes |= found
            entry = self._entry(first)
            if found and entry in self._layers and (max(found.values()) + 1) % self._layers[entry]:
                del self._layers[entry]
        self._places: dict[Event, Place] = {}
        for event in ordered:
            counts[event.tag] = counts.get(event.tag, 0) + 1
            self._places[event] = self._place(event, counts[event.tag])

    def __getitem__(self, event: Event) -> Place:
        return self._places[event]

    def arguments(self, event: Event) -> dict:
        """What a trace's viewer shows of an event beside its name."""
        place = self[event]
        told = {"layer": place.layer, "layer_pass": place.layer_pass}
        known = {key: value for key, value in told.items() if value is not None}
        return {"operator": place.operator, "occurrence": place.occurrence} | known

    def _place(self, event: Event, occurrence: int) -> Place:
        operator = self.program.operators.get(event.tag, "program")
        if event.unit == Unit.RD:
            operator = self._pairs.get(operator, operator)
        ahead, at = event.tag in self.program.ahead, self._passes.get(event)
        count = self._layers.get(self._entry(event.tag))
        layer = None
        if count and at is not None:
            layer = min(at % count + ahead, count - 1)
        elif count and ahead and not any(first <= event.tag < end for first, end in self.program.layer_loops):
            layer = 0
        return Place(operator, occurrence, layer, at)

    def _entry(self, pc: int) -> str:
        """The entry that an instruction belongs to."""
        before = [(entry["entry"], name) for name, entry in self.program.entries.items() if entry["entry"] <= pc]
        return max(before, default=(0, ""))[1]

    def layer_window(self) -> tuple[int, int, int | None] | None:
        """First and last cycle of a layer in the middle of the run, and its number; None where layers cannot be told.

        A layer lasts from its first vector or matrix instruction to that of the next pass, the last one to its end.
        """
        passes = max((self._events_by_pass(*loop) for loop in self.program.layer_loops), key=len, default={})
        if not passes:
            return None
        at = sorted(passes)[(len(passes) - 1) // 2]
        first = min(passes[at])
        end = min(passes[at + 1]).start if at + 1 in passes else max(event.end for event in passes[at])
        return first.start, end, self[first].layer

    def _events_by_pass(self, first: int, end: int) -> dict[int, list[Event]]:
        """Vector and matrix instructions of every pass of a loop that work for its layer."""
        found: dict[int, list[Event]] = {}
        for event, at in self._passes.items():
            if first <= event.tag < end and event.unit in (Unit.MX, Unit.VU) and event.tag not in self.program.ahead:
                found.setdefault(at, []).append(event)
        return found


class _Body:
    """The body of a loop: instructions `first` to `end` - 1. Its parts are instructions and inner loops."""

    def __init__(self, words: Sequence[int], first: int, end: int) -> None:
        code = {pc: Instruction.decode(words[pc]) for pc in range(first, end)}
        loops = [(pc, i.imm) for pc, i in code.items() if i.op == Op.LOOP]
        loops += [(i.imm, pc) for pc, i in code.items() if i.op in _BRANCHES and i.imm <= pc]
        skipped = [(pc + 1, i.imm - 1) for pc, i in code.items() if i.op in _BRANCHES and i.imm > pc]
        self.once = set(code) - _members(loops) - _members(skipped)
        """pcs that every pass goes through exactly once."""
        self.part = dict(zip(sorted(code), _parts(sorted(code), loops), strict=True))
        self.repeats = _members(loops)

    def passes(self, events: Sequence[Event]) -> dict[Event, int]:
        """Number of the pass of every event that can be told. events: in order, all those of the body."""
        sure: dict[Unit, list[int]] = {}
        likely: dict[Unit, list[int]] = {}
        by_unit = {unit: [event for event in events if event.unit == unit] for unit in Unit}
        for unit, mine in by_unit.items():
            anchor = next((event.tag for event in mine if event.tag in self.once), None)
            if anchor is not None:
                sure[unit] = _by_anchor(mine, anchor)
            elif mine:
                likely[unit] = self._by_return(mine)
        last = {numbers[-1] for numbers in sure.values()}
        if len(last) != 1:
            return {}
        sure |= {unit: numbers for unit, numbers in likely.items() if {numbers[-1]} == last}
        return {event: at for unit, numbers in sure.items() for event, at in zip(by_unit[unit], numbers, strict=True)}

    def _by_return(self, events: Sequence[Event]) -> list[int]:
        """A pass begins where an event lies in an earlier part than the one before, or is the same instruction again
        outside every inner loop."""
        numbers = [0]
        for before, event in pairwise(events):
            there, here = self.part[before.tag], self.part[event.tag]
            again = there == here and event.tag not in self.repeats
            numbers.append(numbers[-1] + (here < there or again))
        return numbers


def _by_anchor(events: Sequence[Event], anchor: int) -> list[int]:
    """Passes by an instruction that each of them has exactly once."""
    seen, numbers = 0, []
    for event in events:
        seen += event.tag == anchor
        numbers.append(seen - (event.tag >= anchor))
    return numbers


def _members(ranges: Iterable[tuple[int, int]]) -> set[int]:
    """Every number in ranges that hold both of their ends."""
    return {pc for first, last in ranges for pc in range(first, last + 1)}


def _parts(pcs: Sequence[int], loops: Iterable[tuple[int, int]]) -> list[int]:
    """Number of each instruction's part; one loop, with the loops in it or crossing it, is one part."""
    inside = _members((first + 1, last) for first, last in loops)
    numbers, at = [], -1
    for pc in pcs:
        at += pc not in inside
        numbers.append(at)
    return numbers


def joint_names(layout: Layout) -> dict[str, str]:
    """Names of linear layers that share a weight stream -> the name of the pair: "mlp.gate_proj + up_proj"."""
    towers = [] if layout.model.vision is None else [layout.tower.layer]
    pairs: dict[str, str] = {}
    for stream in [stream for ops in (*towers, layout.model.text.layer) for stream in layout.geo.streams(ops)]:
        if len(stream) > 1:
            together = " + ".join([stream[0].name, *(op.name.rpartition(".")[2] for op in stream[1:])])
            pairs |= {op.name: together for op in stream}
    return pairs


@dataclass(frozen=True)
class Run:
    """A part of a trace: events whose first cycle is cycle `begin` of the whole, and the layers they go through."""

    events: Sequence[Event]
    layers: Mapping[str, int]
    begin: int = 0


def trace_json(layout: Layout, program: Program, runs: Iterable[Run], process: str) -> str:
    """A trace of runs for Chrome's and Perfetto's viewer, with operators and layers; process: what its title says."""
    pairs, named = joint_names(layout), dict[Event, tuple[str, dict]]()
    for run in runs:
        places = Places(program, run.events, run.layers, pairs)
        for event in run.events:
            later = replace(event, start=event.start + run.begin, end=event.end + run.begin)
            named[later] = places[event].name, places.arguments(event)
    return chrome(named, layout.config.clock_hz, lambda event: named[event][0], process, lambda event: named[event][1])


def layers_by_entry(layout: Layout, layers: int, reduced: bool = False) -> dict[str, int]:
    """Layers that a run goes through, for `Places`. reduced: visual tokens are dropped, so that layers come in
    segments and a pass's layer is not told."""
    tower = layout.model.vision
    return ({} if tower is None else {"vision": tower.n_layers}) | ({} if reduced else {"lm": layers})
