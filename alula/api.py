"""What people import: `alula.compile` makes a `Program` of any torch module."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from alula.cross import CrossBackend, Outcome, executors
from alula.module_case import Case
from alula.module_entry import ONLY, CompiledEntry, Entry, compile_entries, entry_of, require_known
from alula.module_file import save
from alula.module_host import Host, image
from alula.module_report import report
from alula.module_session import Run, Session
from compiler.graph.ir import Length
from compiler.stages.program import Lowered, lower
from hw.spec.config import Config
from hw.spec.errors import InternalError, UserError
from hw.spec.machine import resolve
from hw.spec.memory import MemoryModel
from hw.spec.run import Result


def compile(
    module: nn.Module,
    inputs: Mapping[str, Tensor] | Sequence[Tensor] | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    lengths: Mapping[str, tuple[int, int]] | None = None,
    config: str | Config = "tiny",
    entries: Mapping[str, Entry] | None = None,
) -> "Program":
    """The program of a module on a machine.

    inputs: example tensors, by the names of `forward`'s parameters, or in their order. dynamic: axes with a symbolic
    length, as {"x": {0: "seq"}}. lengths: the least and the largest value of every symbolic length, as
    {"seq": (1, 616)}; one program serves all of them. config: a machine's name, a TOML file, or a configuration.
    entries: instead of inputs, dynamic and lengths, for a module that is called in several ways.

    UserError, one line, for a module that torch cannot export, an operator that has no rule (it names module, operator,
    shape and line), or a machine that is too small.
    """
    if (inputs is None) == (entries is None):
        raise UserError(f"module {type(module).__name__}: give either inputs or entries")
    if entries is None:
        assert inputs is not None
        entries = {ONLY: Entry(inputs, dynamic or {}, lengths or {})}
    elif not entries or dynamic is not None or lengths is not None:
        raise UserError(
            f"module {type(module).__name__}: give one entry at least, with dynamic and lengths of its own, if any"
        )
    machine, compiled = resolve(config), compile_entries(module, entries)
    program = Program(type(module).__name__, machine, compiled)
    for each in compiled.values():
        each.check()
    return program


class Program:
    """A compiled module: its entries with their graphs and integers, and its instructions. Made by `compile`."""

    def __init__(self, name: str, config: Config, entries: Mapping[str, CompiledEntry]) -> None:
        self.name, self.config, self.entries = name, config, dict(entries)
        self.lowered: Lowered = lower({name: entry.integers for name, entry in entries.items()}, config)

    @property
    def words(self) -> list[int]:
        """The encoded instructions."""
        return self.lowered.words

    def entry(self, name: str | None = None) -> CompiledEntry:
        """An entry by its name, which may be left out where there is but one; UserError for others."""
        return entry_of(self.entries, name, self.name)

    # --- running -----------------------------------------------------------------------------------------

    def run(self, backend: CrossBackend, entry: str, case: Case) -> Result:
        """One run of the machine on a case, from the beginning."""
        host, memory = Host(self.lowered, entry), image(self.lowered)
        host.put(memory, case.feed, case.lengths)
        return backend.run(self.config, memory, host.invocation(case.lengths))

    def verify(
        self,
        last: str = "rtl",
        memory: MemoryModel | None = None,
        entry: str | None = None,
        **lengths: int | Iterable[int],
    ) -> dict[str, Any]:
        """Golden model, functional simulator, cycle simulator and RTL on the same program; see docs/reference/api.md.

        last: the last executor (functional, cycle or rtl). lengths: a number, or several, for every symbolic length;
        by default the smallest ones, and those of the examples. memory: by default the configuration's. entry: only
        this one; by default all, each by itself, and then one after the other with the state that they leave. A run
        that does not fit behind the ones before is left out, with the reason in `left_out`.
        """
        chosen = list(self.entries.values()) if entry is None else [self.entry(entry)]
        require_known(lengths, [symbol for each in chosen for symbol in each.example_lengths()])
        found: list[tuple[CompiledEntry, Case, Outcome]] = []
        for each in chosen:
            own = {name: value for name, value in lengths.items() if name in each.example_lengths()}
            label = each.name if len(self.entries) > 1 else ""
            cases = [each.case(at, name=label) for at in each.cases(own)]
            found += [(each, case, self._outcome(each, case, last, memory)) for case in cases]
        left_out: list[str] = []
        if len(chosen) > 1:
            session = Session(self.lowered, self.entries, last, memory)
            for each in (*chosen, chosen[-1]):
                try:
                    found.append((each, *session.step(each.name)))
                except UserError as error:  # its examples do not fit behind what the runs before have left
                    left_out.append(str(error))
        return report(self.name, self.lowered, found, last) | {"left_out": left_out}

    def _outcome(self, entry: CompiledEntry, case: Case, last: str, memory: MemoryModel | None) -> Outcome:
        backend = CrossBackend(executors(last), model=memory or MemoryModel.of(self.config))
        self.run(backend, entry.name, case)
        return backend.check(case.name, Host(self.lowered, entry.name).pieces(case.values))

    def simulate(self, memory: MemoryModel | None = None, entry: str | None = None, **lengths: int) -> Result:
        """The cycle simulator's run: cycles, traffic counters and the trace of every instruction.

        Inputs matter only where the program chooses rows by their values; they are those of the examples.
        """
        found = self.entry(entry)
        chosen, model = found.check_lengths(lengths), memory or MemoryModel.of(self.config)
        if self.lowered.entries[found.name].own_scalars:
            return self.run(CrossBackend(("cycle",), model=model), found.name, found.case(chosen))
        backend = CrossBackend(("cycle",), with_data=False, model=model)
        return backend.run(self.config, image(self.lowered), Host(self.lowered, found.name).invocation(chosen))

    def session(self, last: str = "functional", memory: MemoryModel | None = None) -> Session:
        """A machine whose memory stays from run to run: entries find the state that others left."""
        return Session(self.lowered, self.entries, last, memory)

    def save(self, path: str | Path) -> dict[str, Any]:
        """Writes program, weights and memory map to a file; returns its manifest. See docs/reference/api.md."""
        return save(self.name, self.lowered, Path(path))


__all__ = ["Case", "CompiledEntry", "Entry", "InternalError", "Length", "Program", "Run", "Session", "compile"]
