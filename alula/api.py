"""What people import: `alula.compile` makes a `Program` of any torch module."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alula.cross import CrossBackend, Outcome, executors
from alula.module_case import Case, outputs
from alula.module_file import save
from alula.module_host import Host
from alula.module_report import report
from compiler.graph import capture, constants, values_of
from compiler.graph.ir import Graph, Length
from compiler.integer import rules  # noqa: F401  # fills the table of rules
from compiler.integer.errors import operator_errors
from compiler.integer.feed import feed
from compiler.integer.integers import Integers
from compiler.integer.interpret import interpret
from compiler.integer.plan import make_plan
from compiler.integer.translate import Translator
from compiler.stages.program import Lowered, lower
from hw.spec.config import Config
from hw.spec.errors import InternalError, UserError, first_line
from hw.spec.machine import resolve
from hw.spec.memory import MemoryModel
from hw.spec.run import Result

Array = np.ndarray
Lengths = Mapping[str, int]


def compile(
    module: nn.Module,
    inputs: Mapping[str, Tensor] | Sequence[Tensor],
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    lengths: Mapping[str, tuple[int, int]] | None = None,
    config: str | Config = "tiny",
) -> "Program":
    """The program of a module on a machine.

    inputs: example tensors, by the names of `forward`'s parameters, or in their order. dynamic: axes with a symbolic
    length, as {"x": {0: "seq"}}. lengths: the least and the largest value of every symbolic length, as
    {"seq": (1, 616)}; one program serves all of them. config: a machine's name, a TOML file, or a configuration.

    UserError, one line, for a module that torch cannot export, an operator that has no rule (it names module, operator,
    shape and line), or a machine that is too small.
    """
    machine = resolve(config)
    examples = _named(module, inputs)
    graph = capture(module, examples, dynamic or {}, lengths or {})
    program = Program(type(module).__name__, graph, machine, examples, dynamic or {})
    program.check()
    return program


def _named(module: nn.Module, inputs: Mapping[str, Tensor] | Sequence[Tensor]) -> dict[str, Tensor]:
    """Inputs by the names of `forward`'s parameters."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    import inspect

    names = list(inspect.signature(module.forward).parameters)
    if len(inputs) > len(names):
        raise UserError(
            f"module {type(module).__name__}: {len(inputs)} inputs were given, `forward` takes {len(names)}"
        )
    return dict(zip(names, inputs, strict=False))


class Program:
    """A compiled module: its graph, its integers, its instructions. Made by `compile`."""

    def __init__(
        self,
        name: str,
        graph: Graph,
        config: Config,
        examples: Mapping[str, Tensor],
        dynamic: Mapping[str, Mapping[int, str]],
    ) -> None:
        self.name, self.graph, self.config = name, graph, config
        self.examples, self.dynamic = dict(examples), dynamic
        known = {name: value.numpy() for name, value in constants(graph).items()}
        self.constants = known
        self.integers: Integers = Translator(graph, make_plan(graph, known), known).run()
        self.lowered: Lowered = lower(self.integers, config)
        self.host = Host(self.lowered)

    @property
    def words(self) -> list[int]:
        """The encoded instructions."""
        return self.lowered.words

    # --- lengths and inputs ------------------------------------------------------------------------------

    def example_lengths(self) -> dict[str, int]:
        """The symbolic lengths of the example inputs."""
        return {
            symbol: self.examples[name].shape[axis]
            for name, axes in self.dynamic.items()
            for axis, symbol in axes.items()
        }

    def check_lengths(self, lengths: Lengths) -> dict[str, int]:
        """All symbolic lengths, those of the examples where none is given; UserError for others or beyond the range."""
        found = self.example_lengths()
        for name, value in lengths.items():
            if name not in found:
                raise UserError(f"the module has no symbolic length {name!r}: choose of {', '.join(found) or 'none'}")
            found[name] = value
        for name, value in found.items():
            allowed = self.graph.lengths[name]
            if not allowed.least <= value <= allowed.most:
                raise UserError(
                    f"{name} = {value:,} is outside {allowed.least:,}..{allowed.most:,}, which was compiled"
                )
        return found

    def inputs_at(self, lengths: Lengths) -> dict[str, Tensor]:
        """Inputs of these lengths: the examples, cut or continued from their beginning."""
        found = {}
        for name, example in self.examples.items():
            for axis, symbol in self.dynamic.get(name, {}).items():
                wanted, have = lengths[symbol], example.shape[axis]
                if wanted > have == 0:
                    raise UserError(f"input {name}: the example has no rows on axis {axis}: give an example with some")
                example = example.index_select(axis, torch.arange(wanted) % max(have, 1))
            found[name] = example
        return found

    def case(self, lengths: Lengths, inputs: Mapping[str, Tensor] | None = None) -> Case:
        """The golden model's run and torch's."""
        chosen = self.check_lengths(lengths)
        given = self.inputs_at(chosen) if inputs is None else dict(inputs)
        try:
            nodes = values_of(self.graph, self.wanted(), given, chosen)
        except (IndexError, RuntimeError) as error:  # a list with a row that there is not, for example
            raise UserError(
                f"module {self.name}: it cannot run on these inputs ({first_line(error)}): give others"
            ) from None
        found = feed(self.integers, lambda name: nodes[name].detach().numpy(), chosen)
        values = interpret(self.integers, found, chosen)
        return Case(chosen, given, found, values, {name: nodes[name].detach().numpy() for name in self.graph.outputs})

    def check(self) -> None:
        """InternalError where the integers of an operator are not those of what it means, at the examples' lengths."""
        case = self.case(self.example_lengths())
        operator_errors(self.integers, case.inputs, case.lengths, case.values)

    def wanted(self) -> set[str]:
        """Nodes of the graph whose values the host needs: what it brings, and torch's results to compare with."""
        brought: set[str] = set(self.graph.outputs)
        for step in self.integers.steps.values():
            brought |= {name for name in (*getattr(step, "nodes", ()), getattr(step, "node", "")) if name}
        return brought

    def outputs(self, case: Case, values: Mapping[str, Any]) -> dict[str, Array]:
        """Results as real numbers, in the shapes of the module's. values: of the steps, by name."""
        return outputs(self.integers, values, case.lengths)

    # --- running -----------------------------------------------------------------------------------------

    def run(self, backend: CrossBackend, case: Case) -> Result:
        """One run of the machine on a case."""
        image = self.host.image()
        self.host.put(image, case.feed, case.lengths)
        return backend.run(self.config, image, self.host.invocation(case.lengths))

    def verify(
        self, last: str = "rtl", memory: MemoryModel | None = None, **lengths: int | Iterable[int]
    ) -> dict[str, Any]:
        """Golden model, functional simulator, cycle simulator and RTL on the same program; see docs/reference/api.md.

        last: the last executor (functional, cycle or rtl). lengths: a number, or several, for every symbolic length;
        by default the smallest ones, and those of the examples. memory: by default the configuration's.
        """
        cases = [self.case(each) for each in self.cases(lengths)]
        outcomes = [self._outcome(case, last, memory) for case in cases]
        return report(self.name, self.lowered, cases, outcomes, last)

    def cases(self, lengths: Mapping[str, int | Iterable[int]]) -> list[dict[str, int]]:
        """All combinations of the lengths asked for."""
        example = self.example_lengths()
        if not lengths and example:
            least = {name: max(1, self.graph.lengths[name].least) for name in example}
            return [least, example] if least != example else [example]
        several = {name: [value] if isinstance(value, int) else list(value) for name, value in lengths.items()}
        return [dict(zip(several, each, strict=True)) for each in product(*several.values())]

    def _outcome(self, case: Case, last: str, memory: MemoryModel | None) -> Outcome:
        backend = CrossBackend(executors(last), model=memory or MemoryModel.of(self.config))
        self.run(backend, case)
        return backend.check(case.name, self.host.pieces(case.values))

    def simulate(self, memory: MemoryModel | None = None, **lengths: int) -> Result:
        """The cycle simulator's run: cycles, traffic counters and the trace of every instruction.

        Inputs matter only where the program chooses rows by their values; they are those of the examples.
        """
        chosen = self.check_lengths(lengths)
        model = memory or MemoryModel.of(self.config)
        if self.lowered.own_scalars:
            return self.run(CrossBackend(("cycle",), model=model), self.case(chosen))
        backend = CrossBackend(("cycle",), with_data=False, model=model)
        return backend.run(self.config, self.host.image(), self.host.invocation(chosen))

    def save(self, path: str | Path) -> dict[str, Any]:
        """Writes program, weights and memory map to a file; returns its manifest. See docs/reference/api.md."""
        return save(self.name, self.lowered, Path(path))


__all__ = ["Case", "InternalError", "Length", "Program", "compile"]
