"""Phases: which steps run together in one loop over tiles of rows.

Steps that need their own row only share a loop, and what is between them stays on the chip. A step that needs other
rows, such as attention over all keys, has to wait until these are there: it belongs to a later phase. What crosses
from one phase to another goes through the auxiliary memory.

    phase 0, rows of x    norm, q, k, v, rotate; keys and values to the channels, q to memory
    phase 1, rows of x    attention of q, output layer, MLP

Row scalars and int8 rows never cross: a later phase makes them again from the wide rows, which costs a pass or two.
A move through memory (`steps.Move`) is a phase of its own: what it reads and what it makes lies in memory as a whole.
"""

from dataclasses import dataclass, field

from ..graph.ir import Dim
from ..integer import steps as s
from ..integer.integers import Integers
from ..integer.steps import Step


@dataclass
class Phase:
    """One loop over tiles of `rows` rows. loads: wide values that come from memory; stores: those that go there."""

    level: int
    rows: Dim
    steps: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    stores: list[str] = field(default_factory=list)
    move: str = ""
    """The move that this phase is, instead of steps."""


def phases(integers: Integers) -> list[Phase]:
    """The phases of a module, in the order in which they run."""
    return _Split(integers).run()


def in_memory(step: Step) -> bool:
    """Whether the value is in memory before the program starts."""
    return isinstance(step, s.Input | s.Table | s.Mask | s.Past | s.Kept)


class _Split:
    def __init__(self, integers: Integers) -> None:
        self.integers, self.steps = integers, integers.steps
        self.readers: dict[str, list[Step]] = {name: [] for name in self.steps}
        for step in self.steps.values():
            for operand in step.operands:
                self.readers[operand].append(step)
        self.level: dict[str, int] = {}
        self.found: dict[tuple[int, str], Phase] = {}

    def run(self) -> list[Phase]:
        for step in self.steps.values():
            self.level[step.name] = self._level(step)
        for step in self.steps.values():
            if isinstance(step, s.Move):
                self._phase(step)
                for operand in step.operands:
                    self._store(operand)
            elif not in_memory(step) and not self._remade(step):
                self._need(self._phase(step), step)
        for view in self.integers.results.values():
            self._store(view.base)
        order = {name: at for at, name in enumerate(self.steps)}
        for phase in self.found.values():
            phase.steps.sort(key=order.__getitem__)
        return sorted(self.found.values(), key=lambda p: p.level)

    def _level(self, step: Step) -> int:
        """Behind everything that it needs; one later where it needs other rows than its own."""
        level = 0
        for name in step.operands:
            operand = self.steps[name]
            if in_memory(operand):
                continue
            apart = isinstance(operand, s.Hold | s.Move) or isinstance(step, s.Move)
            apart |= str(operand.rows) != str(self._tiled(step))
            level = max(level, self.level[name] + apart)
        return level

    def _remade(self, step: Step) -> bool:
        """Whether it is made wherever it is read: row scalars, int8 rows, and what only leads to int8 rows."""
        if isinstance(step, s.Reduction | s.ToInt8):
            return True
        readers = self.readers[step.name]
        return bool(readers) and all(isinstance(r, s.ToInt8) for r in readers) and not self._is_result(step.name)

    def _is_result(self, name: str) -> bool:
        return any(view.base == name for view in self.integers.results.values())

    def _phase(self, step: Step) -> Phase:
        rows, move = self._tiled(step), step.name if isinstance(step, s.Move) else ""
        key = (self.level[step.name], move or str(rows))
        return self.found.setdefault(key, Phase(key[0], rows, move=move))

    def _tiled(self, step: Step) -> Dim:
        """The rows over which the step's tiles go: of state, the new ones."""
        return self.steps[step.x].rows if isinstance(step, s.Hold) else step.rows

    def _need(self, phase: Phase, step: Step) -> None:
        """The step is computed in the phase, with all that it needs."""
        if step.name in phase.steps:
            return
        phase.steps.append(step.name)
        for name in step.operands:
            operand = self.steps[name]
            if isinstance(operand, s.Mask | s.Past | s.Hold):
                continue
            if in_memory(operand) or isinstance(operand, s.Move):
                self._load(phase, name)
            elif self._remade(operand):
                self._need(phase, operand)
            elif self._phase(operand) is not phase:
                self._load(phase, name)
                self._store(name)

    def _load(self, phase: Phase, name: str) -> None:
        if name not in phase.loads:
            phase.loads.append(name)

    def _store(self, name: str) -> None:
        step = self.steps[name]
        if in_memory(step) or isinstance(step, s.Move):
            return
        phase = self._phase(step)
        self._need(phase, step)
        if name not in phase.stores:
            phase.stores.append(name)
