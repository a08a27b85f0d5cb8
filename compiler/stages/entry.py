"""One entry of a program: phases with the tiles and orders that take the fewest cycles, emitted one after the other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hw.spec.errors import UserError
from hw.spec.weights import cache_slots

from ..graph.ir import Length
from ..integer import steps as s
from ..integer.integers import Integers
from ..kernels.builder import Builder
from .body import Body
from .emit import Arguments, Emitter
from .lower import PhaseLowering
from .memory import Cache, MemoryMap, Rows
from .moves import MOVES
from .phases import Phase, phases
from .place import DoesNotFitError, places
from .roll import MOST_PHASES
from .schedule import Scheduled, as_written, scheduled
from .state import State, only_read
from .table import lower_phase

Order = Callable[[Body], Scheduled]
ORDERS: tuple[Order, ...] = (*(partial(scheduled, ahead=ahead) for ahead in (0, 1, 2)), as_written)
"""The orders that are tried."""


@dataclass
class LoweredEntry:
    """Where an entry starts, the lengths it is started with, and where its values lie.

    rows: values in the auxiliary memory; caches: state by `Hold` step; tiles: rows of the largest tile of every phase.
    """

    integers: Integers
    arguments: Arguments
    rows: dict[str, Rows] = field(default_factory=dict)
    caches: dict[str, Cache] = field(default_factory=dict)
    tiles: list[int] = field(default_factory=list)
    start: int = 0
    """Its first instruction."""

    @property
    def own_scalars(self) -> bool:
        """Whether the sequencer looks at values: cycles depend on them then."""
        return bool(self.integers.of_kind(s.SelectRows) or self.integers.of_kind(s.GatherRows))

    def argument_values(self, lengths: Mapping[str, int]) -> tuple[int, ...]:
        """What the argument registers hold at the start."""
        return tuple(length.at(lengths) for length in self.arguments.names)


class EntryLowering:
    """The lowering of one entry. memory, state, builder: those of the whole program."""

    def __init__(self, integers: Integers, memory: MemoryMap, state: State, builder: Builder) -> None:
        self.integers, self.steps, self.memory, self.state = integers, integers.steps, memory, state
        self.config, self.builder = memory.config, builder
        self.arguments = Arguments(integers.graph.lengths)
        self.phases = phases(integers)
        self.found = LoweredEntry(integers, self.arguments)
        self.rows, self.caches = self.found.rows, self.found.caches

    def emit(self) -> list[int]:
        """Appends the entry's instructions; returns where its phases begin, its end among them."""
        self._check_lengths()
        self._allocate()
        self.builder.new_entry()
        emitter = Emitter(self.config, self.arguments, self.builder)
        for length in self._lengths():
            emitter.dim(length)
        starts, repeated = [], self._repeats()
        for phase in self.phases:
            starts.append(emitter.start_phase(repeated))
            if phase.move:
                MOVES[type(self.steps[phase.move])](emitter, self.memory, self.rows, self.steps, phase.move)
                continue
            body = self._fitting(phase)
            self.found.tiles.append(body.tile)
            emitter.phase(phase.rows, body)
        starts.append(emitter.start_phase(repeated))
        self.builder.halt()
        return starts

    def _repeats(self) -> bool:
        """Whether phases with the same kinds of steps follow each other, as those of layers do."""
        kinds = [(str(p.rows), *(type(self.steps[name]) for name in p.steps or [p.move])) for p in self.phases]
        sizes = range(1, min(MOST_PHASES, len(kinds) // 2) + 1)
        return any(
            kinds[at : at + n] == kinds[at + n : at + 2 * n] for n in sizes for at in range(len(kinds) - 2 * n + 1)
        )

    def _check_lengths(self) -> None:
        """UserError for rows of which there may be none: loops over tiles begin with one. Only a cache may be empty."""
        least = {symbol: limits.least for symbol, limits in self.integers.graph.lengths.items()}
        for step in self.steps.values():
            if not isinstance(step, s.Past) and isinstance(step.rows, Length) and step.rows.at(least) < 1:
                raise UserError(
                    f"the length {step.rows} may be {step.rows.at(least)}, and rows are computed of it: let it be 1 at "
                    "least; only a cache may be empty"
                )
            keys = getattr(step, "n_keys", 1)
            if isinstance(keys, Length) and keys.at(least) < 1:
                raise UserError(
                    f"attention over {keys} keys: there may be {keys.at(least)}, and nothing to attend to then: let it "
                    "be 1 at least"
                )

    def _lengths(self) -> list:
        """Every symbolic length that the program looks at, so that all argument registers are known from the start."""
        found: dict[str, Any] = {}
        for phase in self.phases:
            for name in phase.steps:
                step = self.steps[name]
                dims = [step.rows, getattr(step, "n_keys", 1)]
                if isinstance(step, s.Hold) and step.past:
                    dims.append(self.steps[step.past].rows)
                found |= {str(d): d for d in dims if not isinstance(d, int)}
        return list(found.values())

    # --- memory ------------------------------------------------------------------------------------------

    def _allocate(self) -> None:
        stored = {name for phase in self.phases for name in phase.stores}
        loaded = {name for phase in self.phases for name in phase.loads}
        for name, step in self.steps.items():
            most = self.arguments.most(step.rows)
            if isinstance(step, s.Mask):
                slots = cache_slots(self.arguments.most(step.keys_length), self.config.units)
                granules = slots * self.config.units * step.layout.groups
                self.rows[name] = Rows(self.memory.aux(most * granules), granules, step.layout, most)
            elif isinstance(step, s.Hold) or step in only_read(self.integers):
                self.caches[name] = self.state.cache(self.integers, step)
            elif name in self.state.kept(self.integers):
                self.rows[name] = self.state.rows(self.integers, step)
            elif name in stored | loaded or isinstance(step, s.Move) or self._moved(name):
                self.rows[name] = self.memory.rows(step.layout, most)

    def _moved(self, name: str) -> bool:
        return any(name in self.steps[phase.move].operands for phase in self.phases if phase.move)

    # --- tiles -------------------------------------------------------------------------------------------

    def _fitting(self, phase: Phase) -> Body:
        """The body whose tiles take the fewest cycles for the largest number of rows, of several orders with the
        largest tile that fits each: an order that overlaps more needs more buffers, and leaves room for fewer rows."""
        bodies: dict[int, Body] = {}
        found = [self._largest(phase, order, bodies) for order in ORDERS]
        fitting = [each for each in found if isinstance(each, Scheduled)]
        if not fitting:
            raise next(each for each in found if isinstance(each, DoesNotFitError))
        most = self.arguments.most(phase.rows)
        return min(fitting, key=lambda each: -(-most // each.body.tile) * each.cycles).body

    def _largest(self, phase: Phase, order: Order, bodies: dict[int, Body]) -> Scheduled | DoesNotFitError:
        """The body with the largest tile that fits the machine's buffers in that order. bodies: known ones by tile."""
        low, high = 1, self._bound(phase)
        best: Scheduled | None = None
        problem = DoesNotFitError("a phase without rows")
        tile = high
        while low <= high:
            if tile not in bodies:
                bodies[tile] = self._body(phase, tile)
            found = order(bodies[tile])
            try:
                places(found.body, self.config)
                best, low = found, tile + 1
            except DoesNotFitError as error:
                problem, high = error, tile - 1
            tile = (low + high) // 2
        return best or problem

    def _bound(self, phase: Phase) -> int:
        """Rows that the accumulators hold: of a product, or of the planes of a group of heads."""
        bound = self.arguments.most(phase.rows)
        for name in phase.steps:
            step = self.steps[name]
            if isinstance(step, s.Product):
                bound = min(bound, self.config.acc_rows)
            if isinstance(step, s.Attend):
                group = step.layout.groups // self.caches[step.keys].heads
                bound = min(bound, self.config.acc_rows // (2 * group))
        return max(1, bound)

    def _body(self, phase: Phase, tile: int) -> Body:
        lowering = PhaseLowering(phase, self.steps, self.memory, self.arguments, self.rows, self.caches, tile)
        return lower_phase(lowering)
