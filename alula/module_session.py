"""A session: runs of a program's entries one after the other, on one machine whose memory stays."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alula.cross import CrossBackend, Outcome, executors
from alula.module_case import Case
from alula.module_entry import CompiledEntry, as_tensor, entry_of
from alula.module_host import Host, image
from compiler.graph.ir import Dim, Length
from compiler.integer import steps as s
from compiler.stages.program import Lowered
from compiler.stages.state import require_only_attention
from hw.spec.errors import InternalError, UserError
from hw.spec.memory import MemoryModel


@dataclass(frozen=True)
class Run:
    """results: what the method returns, state left out, as real numbers. cycles: None without a cycle simulator."""

    results: list[np.ndarray]
    cycles: int | None


@dataclass
class _There:
    """What is in the machine, by the name of a state or of a place: integers, and torch's own numbers."""

    integers: dict[str, Any] = field(default_factory=dict)
    floats: dict[str, Tensor] = field(default_factory=dict)

    def rows(self, name: str) -> int:
        """Rows of a state, or of what an entry left."""
        value = self.integers[name]
        return len(value.rows if isinstance(value, s.Held) else value)


class Session:
    """Of a program with these entries. last: the last executor of every run; memory: the model of it."""

    def __init__(
        self, lowered: Lowered, entries: Mapping[str, CompiledEntry], last: str, memory: MemoryModel | None
    ) -> None:
        self.lowered, self.entries, self.image, self.there = lowered, entries, image(lowered), _There()
        self.backend = CrossBackend(executors(last), model=memory or MemoryModel.of(lowered.config))
        self.runs = 0
        for name, entry in self.entries.items():
            for state in entry.integers.held():
                require_only_attention(name, entry.integers, state)

    def run(self, entry: str, inputs: Mapping[str, Tensor] | None = None, **lengths: int) -> Run:
        """One run of an entry; see docs/reference/api.md. InternalError where executors disagree."""
        found = self._entry(entry)
        case, outcome = self.step(entry, inputs, **lengths)
        if not outcome.bit_exact:
            raise InternalError(f"entry {entry}, {case.name}: {outcome.first_difference}")
        results = found.outputs(case, case.values)
        order = [output for output in found.graph.outputs if output in results]
        return Run([results[output].copy() for output in order], outcome.cycles_simulated)

    def step(self, entry: str, inputs: Mapping[str, Tensor] | None = None, **lengths: int) -> tuple[Case, Outcome]:
        """One run: the golden model's, and how the executors agreed with it."""
        found, inputs = self._entry(entry), {name: as_tensor(name, value) for name, value in (inputs or {}).items()}
        sources = {name: source for name, source in _sources(found).items() if source in self.there.integers}
        nodes = {found.integers.steps[name].nodes_brought[0]: source for name, source in sources.items()}
        if twice := [name for name in inputs if name in nodes]:
            raise UserError(f"entry {entry}: {twice[0]} is in the machine already: leave it out, or begin a session")
        chosen = self._lengths(found, sources, inputs, lengths)
        self._require_state(found, sources, inputs, chosen)
        given = inputs | {name: self.there.floats[source] for name, source in nodes.items()}
        there = {name: self.there.integers[source] for name, source in sources.items()}
        case = found.case(chosen, given, there, f"run {self.runs + 1}, {entry}")
        case.in_session = True
        host = Host(self.lowered, entry)
        host.put(self.image, {name: value for name, value in case.feed.items() if name not in there}, chosen)
        self.backend.run(self.lowered.config, self.image, host.invocation(chosen))
        self._keep(found, case)
        self.runs += 1
        return case, self.backend.check(case.name, host.pieces(case.values))

    def _entry(self, name: str) -> CompiledEntry:
        found = next(iter(self.entries.values()))
        return entry_of(self.entries, name, found.module_name)

    def _lengths(
        self, entry: CompiledEntry, sources: Mapping[str, str], inputs: Mapping[str, Tensor], lengths: Mapping[str, int]
    ) -> dict[str, int]:
        """Lengths of the run: what is in the machine has its own; then those asked for, those of the inputs, those of
        the examples. A state that is not there yet is as short as it may be."""
        found = entry.example_lengths()
        found |= {symbol: entry.graph.lengths[symbol].least for symbol in _symbols(entry, _sources(entry))}
        for name, tensor in inputs.items():
            axes = entry.dynamic.get(name, {})
            found |= {symbol: tensor.shape[axis] for axis, symbol in axes.items() if axis < tensor.ndim}
        found |= lengths
        there = {name: self.there.rows(source) for name, source in sources.items()}
        for name, rows in there.items():
            wanted = entry.integers.steps[name].rows
            if wanted in entry.graph.lengths and lengths.get(str(wanted), rows) == rows:
                found[str(wanted)] = rows
            elif (has := _at(wanted, found)) != rows:
                raise UserError(
                    f"entry {entry.name}: the machine has {rows:,} rows of {sources[name]}, the entry takes {has:,}: "
                    "run the entry before it with lengths that fit"
                )
        try:
            return entry.check_lengths(found)
        except UserError as error:
            raise UserError(f"entry {entry.name}, run {self.runs + 1} of the session: {error}") from None

    def _require_state(
        self, entry: CompiledEntry, sources: Mapping[str, str], inputs: Mapping[str, Tensor], lengths: Mapping[str, int]
    ) -> None:
        """UserError for state that is neither in the machine nor given; a cache without rows needs neither."""
        for name, source in _sources(entry).items():
            step = entry.integers.steps[name]
            if name in sources or step.nodes_brought[0] in inputs:
                continue
            if isinstance(step, s.Kept) or _at(step.rows, lengths):
                raise UserError(
                    f"entry {entry.name}: {step.nodes_brought[0]} is not in the machine: run the entry that leaves or "
                    f"returns {source}, or give it"
                )

    def _keep(self, entry: CompiledEntry, case: Case) -> None:
        """What the run leaves in the machine. A cache that the entry does not return is as long as it was before."""
        integers = entry.integers
        names = {holds[0].name: name for name, holds in integers.held().items()}
        for output, hold in integers.states.items():
            if hold in names:
                self.there.integers[names[hold]] = case.values[hold]
                self.there.floats[names[hold]] = torch.from_numpy(case.expected[output])
        for place, step in integers.left.items():
            self.there.integers[place] = case.values[step]
            output = entry.graph.outputs[int(place.rpartition(".")[2])]
            self.there.floats[place] = torch.from_numpy(case.expected[output])


def _sources(entry: CompiledEntry) -> dict[str, str]:
    """Steps whose values may be in the machine already, with the state or the place that they are."""
    found = {}
    for step in entry.integers.steps.values():
        if isinstance(step, s.Past):
            found[step.name] = step.node
        elif isinstance(step, s.Kept):
            found[step.name] = step.place
    return found


def _symbols(entry: CompiledEntry, sources: Mapping[str, str]) -> list[str]:
    """Symbolic lengths of state."""
    rows = [entry.integers.steps[name].rows for name in sources if isinstance(entry.integers.steps[name], s.Past)]
    return [str(each) for each in rows if each in entry.graph.lengths]


def _at(rows: Dim, lengths: Mapping[str, int]) -> int:
    return rows.at(lengths) if isinstance(rows, Length) else rows
