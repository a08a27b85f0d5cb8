"""One entry of a module: a method that can be called by itself, with its graph and its integers."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from keyword import iskeyword
from operator import index
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor, nn

from alula.module_case import Case, outputs
from compiler.graph import capture, constants, forward_is, values_of
from compiler.integer import rules  # noqa: F401  # fills the table of rules
from compiler.integer.errors import operator_errors
from compiler.integer.feed import feed
from compiler.integer.integers import Form, Integers
from compiler.integer.interpret import interpret
from compiler.integer.plan import make_plan
from compiler.integer.translate import Translator
from hw.spec.errors import UserError, first_line

Array = np.ndarray
Lengths = Mapping[str, int]
ONLY = "forward"
"""The name of a module's entry where it has but one."""


@dataclass(frozen=True)
class Entry:
    """One way to call a module.

    inputs: example tensors, by the names of the method's parameters, or in their order. dynamic, lengths: as for
    `alula.compile`. method: by default the one that is called like the entry, else `forward`. takes: inputs that are
    rows which another entry has left in the machine: the input, and the entry whose result it is ("encode", or
    "encode.1" for the second of several).
    """

    inputs: Mapping[str, Tensor] | Sequence[Tensor]
    dynamic: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    lengths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    method: str = ""
    takes: Mapping[str, str] = field(default_factory=dict)


RESERVED = ("self", "last", "memory", "entry", "inputs")
"""What lengths may not be called: `verify` and others have arguments of these names."""


def check_entries(entries: Any) -> None:
    """UserError for entries of other kinds than `Entry` and the docs say."""
    if not isinstance(entries, Mapping) or not all(isinstance(name, str) for name in entries):
        raise UserError("entries is no dict of names and alula.Entry objects: see docs/reference/api.md")
    for name, entry in entries.items():
        if not isinstance(entry, Entry):
            raise UserError(f"entry {name} is a {type(entry).__name__}: give an alula.Entry")
        if not isinstance(entry.inputs, Mapping | Sequence) or not isinstance(entry.method, str):
            raise UserError(f"entry {name}: inputs are tensors by name, a method is a name: see docs/reference/api.md")
        _check_lengths(f"entry {name}", entry)
        if not isinstance(entry.takes, Mapping) or not all(isinstance(text, str) for text in entry.takes.values()):
            raise UserError(f'entry {name}: takes must be a dict of inputs and entries, as {{"visual": "encode"}}')


def _check_lengths(where: str, entry: Entry) -> None:
    """UserError for axes or lengths of other kinds."""
    axes, lengths = entry.dynamic, entry.lengths
    if not isinstance(axes, Mapping) or not all(
        isinstance(each, Mapping) and all(isinstance(i, int) and isinstance(name, str) for i, name in each.items())
        for each in axes.values()
    ):
        raise UserError(f'{where}: dynamic must give names to axes of inputs, as {{"x": {{0: "seq"}}}}')
    if not isinstance(lengths, Mapping) or not all(
        isinstance(each, Sequence) and len(each) == 2 and all(isinstance(n, int) for n in each)
        for each in lengths.values()
    ):
        raise UserError(f'{where}: lengths must give the least and the largest value of each, as {{"seq": (1, 64)}}')
    for name in {name for each in axes.values() for name in each.values()}:
        if not name.isidentifier() or iskeyword(name) or name in RESERVED:
            raise UserError(f"{where}: a length is called {name!r}: give it a name of letters that means nothing else")


def places_taken(entries: Mapping[str, Entry]) -> dict[str, dict[str, str]]:
    """By entry: its inputs that others leave, with the place, "encode.0". UserError for a place that there is not."""
    found: dict[str, dict[str, str]] = {}
    for name, entry in entries.items():
        found[name] = {}
        for taken, source in entry.takes.items():
            giver, dot, number = source.partition(".")
            if giver not in entries or giver == name or (dot and not number.isdecimal()):
                others = ", ".join(other for other in entries if other != name) or "none"
                raise UserError(
                    f"entry {name} takes {taken!r} from {source!r}: give another entry ({others}), and the number of "
                    "its result where it has several, as in encode.1"
                )
            found[name][taken] = f"{giver}.{int(number or 0)}"
    return found


def results_taken(places: Mapping[str, Mapping[str, str]]) -> dict[str, list[int]]:
    """By entry: the numbers of its results that others take. places: of `places_taken`."""
    found: dict[str, list[int]] = {name: [] for name in places}
    for place in sorted({place for taken in places.values() for place in taken.values()}):
        giver, _, number = place.rpartition(".")
        found[giver].append(int(number))
    return found


def compile_entries(module: nn.Module, entries: Mapping[str, Entry]) -> "dict[str, CompiledEntry]":
    """All entries of a module; those that only read state behind those that append to it."""
    check_entries(entries)
    places = places_taken(entries)
    wanted = results_taken(places)
    found = {name: CompiledEntry(name, module, entry) for name, entry in entries.items()}
    forms: dict[str, Form] = {}
    for name in _in_order(found):
        roles = {state: key for other, one in found.items() if other != name for state, key in one.read.items()}
        found[name].translate(places[name], wanted[name], forms, roles)
        forms |= found[name].integers.forms()
    for name, taken in places.items():
        _require_shapes(found, name, taken)
        _same_examples(found, name, taken)
    return found


def _require_shapes(entries: "Mapping[str, CompiledEntry]", name: str, taken: Mapping[str, str]) -> None:
    """UserError where an entry takes rows of another shape than they were left in."""
    for each, place in taken.items():
        giver, _, number = place.rpartition(".")
        graph = entries[giver].graph
        left, wanted = graph.nodes[graph.outputs[int(number)]].shape, entries[name].graph.nodes[each].shape
        sizes = [pair for pair in zip(left, wanted, strict=False) if all(isinstance(size, int) for size in pair)]
        if len(left) != len(wanted) or any(a != b for a, b in sizes):
            there, here = (" x ".join(map(str, shape)) for shape in (left, wanted))
            raise UserError(
                f"entry {giver} leaves [{there}], entry {name} takes {each!r} as [{here}]: let both have the same shape"
            )


def _same_examples(entries: "Mapping[str, CompiledEntry]", name: str, taken: Mapping[str, str]) -> None:
    """Inputs that are the same rows in the machine have the same example."""
    first: dict[tuple[str, str], str] = {}
    for each, place in taken.items():
        giver = place.rpartition(".")[0]
        one = first.setdefault((giver, entries[giver].integers.left[place]), each)
        entries[name].examples[each] = entries[name].examples[one]


def _in_order(entries: "Mapping[str, CompiledEntry]") -> list[str]:
    """Names of entries, who reads state behind all that append to it; UserError where that goes in a circle."""
    network = nx.DiGraph()
    network.add_nodes_from(entries)
    for reader, one in entries.items():
        writers = [name for name, other in entries.items() if other.appended & (set(one.examples) - one.appended)]
        network.add_edges_from((writer, reader) for writer in writers)
    try:
        return list(nx.topological_sort(network))
    except nx.NetworkXUnfeasible:
        circle = " and ".join(name for name, _ in nx.find_cycle(network))
        raise UserError(f"entries {circle} each read state that the other appends to: let one append to all") from None


def method_of(module: nn.Module, entry: str, given: str = "") -> str:
    """The name of an entry's method: the given one, the entry's own, or `forward`."""
    return given or (entry if hasattr(module, entry) or type(module).forward is nn.Module.forward else ONLY)


def _method(module: nn.Module, entry: str, name: str) -> Callable:
    """The method of that name; UserError for a submodule, and where there is none."""
    found, kind = getattr(module, name, None), type(module).__name__
    if isinstance(found, nn.Module):
        raise UserError(f"entry {entry}: {name!r} is a submodule of {kind}: name a method that calls it")
    if not callable(found) or getattr(found, "__func__", None) is nn.Module.forward:
        raise UserError(f"entry {entry}: module {kind} has no method {name!r}: name one of its methods")
    return found


def entry_of(entries: "Mapping[str, CompiledEntry]", name: str | None, module: str) -> "CompiledEntry":
    """An entry by its name, which may be left out where there is but one; UserError for others."""
    if name is None and len(entries) == 1:
        return next(iter(entries.values()))
    if name is None or name not in entries:
        what = "has several entries" if name is None else f"has no entry {name!r}"
        raise UserError(f"module {module} {what}: choose of {', '.join(entries)}")
    return entries[name]


def require_known(lengths: Iterable[str], known: Iterable[str]) -> None:
    """UserError for a length of another name."""
    known = list(dict.fromkeys(known))
    if unknown := [name for name in lengths if name not in known]:
        raise UserError(f"the module has no symbolic length {unknown[0]!r}: choose of {', '.join(known) or 'none'}")


class CompiledEntry:
    """An entry with its graph, its examples, and, once it is translated, its integers."""

    integers: Integers

    def __init__(self, name: str, module: nn.Module, entry: Entry) -> None:
        method = method_of(module, name, entry.method)
        with forward_is(module, _method(module, name, method)):
            self.examples = _named(module, method, entry.inputs)
            self.named = set(inspect.signature(module.forward).parameters)
            self.graph = capture(module, self.examples, entry.dynamic, entry.lengths)
        self._check_results(name, module)
        self.name, self.module_name, self.dynamic = name, type(module).__name__, entry.dynamic
        self.appended = {str(node.operand("past")) for node in self.graph.device() if node.op == "append"}
        """Inputs that it appends to."""
        self.read = dict(self._read())
        """Inputs that attention reads, with new rows or without, and whether they are keys there."""

    def _check_results(self, name: str, module: nn.Module) -> None:
        """UserError for a method without results, and for an input among `**others` that nothing reads."""
        if not self.graph.outputs:
            raise UserError(f"entry {name} of module {type(module).__name__} has no result: return tensors")
        used = {each for output in self.graph.outputs for each in self.graph.ancestors(output)}
        others = [each for each in self.examples if each not in self.named and each not in used]
        if others:
            raise UserError(
                f"entry {name} of module {type(module).__name__}: nothing reads {others[0]!r}: leave it out"
            )

    def _read(self) -> Iterator[tuple[str, bool]]:
        for node in self.graph.device():
            for operand in "kv" if node.op == "attention" else "":
                source = self.graph.nodes[node.arguments[operand].name]
                past = source.operand("past") if source.op == "append" else source.name
                if past in self.examples:
                    yield str(past), operand == "k"

    def translate(
        self, places: Mapping[str, str], wanted: Iterable[int], forms: Mapping[str, Form], roles: Mapping[str, bool]
    ) -> None:
        """Graph to integers. places: of rows that it takes from others, by input; wanted: numbers of its results that
        others take; forms: of state that others append to; roles: whether state that others read is keys."""
        if unknown := [taken for taken in places if taken not in self.examples]:
            raise UserError(
                f"entry {self.name} takes {unknown[0]!r}, its inputs are {', '.join(self.examples)}: correct it"
            )
        read = {name: form for name, form in forms.items() if name in self.examples and name not in self.appended}
        known = {key: value.numpy() for key, value in constants(self.graph).items()}
        plan, leaves = make_plan(self.graph, known, read, roles), self._leaves(wanted)
        translator = Translator(self.graph, plan, known, takes=places, leaves=leaves, forms=read, roles=roles)
        self.integers = translator.run()

    def _leaves(self, wanted: Iterable[int]) -> dict[str, str]:
        """Outputs that others take, by place."""
        found, results = {}, self.graph.outputs
        for number in wanted:
            if number >= len(results):
                raise UserError(
                    f"another entry takes result {number} of entry {self.name}, which has {len(results)}: count them "
                    "from 0"
                )
            found[f"{self.name}.{number}"] = results[number]
        return found

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
        require_known(lengths, found)
        found |= {name: _whole(name, value) for name, value in lengths.items()}
        for name, value in found.items():
            allowed = self.graph.lengths[name]
            if not allowed.least <= value <= allowed.most:
                raise UserError(
                    f"{name} = {value:,} is outside {allowed.least:,}..{allowed.most:,}, which was compiled"
                )
        return found

    def inputs_at(self, lengths: Lengths, given: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Inputs of these lengths: those that are given, others are the examples, cut or continued from their
        beginning. UserError for an input of another name or shape."""
        found, given = {}, {name: as_tensor(name, value) for name, value in (given or {}).items()}
        if unknown := [name for name in given if name not in self.examples]:
            raise UserError(f"no input is called {unknown[0]!r}: choose of {', '.join(self.examples)}")
        for name, example in self.examples.items():
            axes = self.dynamic.get(name, {})
            if name not in given:
                found[name] = self._stretched(name, example, lengths)
                continue
            shape = tuple(lengths[axes[at]] if at in axes else size for at, size in enumerate(example.shape))
            if tuple(given[name].shape) != shape:
                raise UserError(f"input {name} has the shape {tuple(given[name].shape)}: {shape} is needed")
            found[name] = given[name]
        return found

    def _stretched(self, name: str, example: Tensor, lengths: Lengths) -> Tensor:
        for axis, symbol in self.dynamic.get(name, {}).items():
            wanted, have = lengths[symbol], example.shape[axis]
            if wanted > have == 0:
                raise UserError(f"input {name}: the example has no rows on axis {axis}: give an example with some")
            example = example.index_select(axis, torch.arange(wanted) % max(have, 1))
        return example

    def cases(self, lengths: Mapping[str, int | Iterable[int]]) -> list[dict[str, int]]:
        """All combinations of the lengths asked for; without any, the least ones and those of the examples."""
        example = self.example_lengths()
        if not lengths and example:
            least = {name: min(max(1, self.graph.lengths[name].least), size) for name, size in example.items()}
            return [least, example] if least != example else [example]
        several = {name: _values(value) for name, value in lengths.items()}
        if empty := [name for name, values in several.items() if not values]:
            raise UserError(f"{empty[0]} has no value: give a number, or several")
        return [dict(zip(several, each, strict=True)) for each in product(*several.values())]

    # --- the golden model --------------------------------------------------------------------------------

    def case(
        self,
        lengths: Lengths,
        inputs: Mapping[str, Tensor] | None = None,
        there: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> Case:
        """The golden model's run and torch's. there: values of steps that are in the machine already."""
        chosen = self.check_lengths(lengths)
        given = self.inputs_at(chosen, inputs)
        try:
            nodes = values_of(self.graph, self._wanted(), given, chosen)
        except (IndexError, RuntimeError) as error:  # a list with a row that there is not, for example
            raise UserError(
                f"module {self.module_name}: it cannot run on these inputs ({first_line(error)}): give others"
            ) from None
        brought = feed(self.integers, lambda node: nodes[node].detach().numpy(), chosen) | dict(there or {})
        values = interpret(self.integers, brought, chosen)
        expected = {name: nodes[name].detach().numpy() for name in self.graph.outputs}
        return Case(chosen, given, brought, values, expected, name)

    def check(self) -> None:
        """InternalError where the integers of an operator are not those of what it means, at the examples' lengths."""
        case = self.case(self.example_lengths())
        operator_errors(self.integers, case.inputs, case.lengths, case.values)

    def _wanted(self) -> set[str]:
        """Nodes of the graph whose values are needed: what is brought, and torch's results to compare with."""
        brought = {name for step in self.integers.steps.values() for name in step.nodes_brought}
        return brought | set(self.graph.outputs)

    def outputs(self, case: Case, values: Mapping[str, Any]) -> dict[str, Array]:
        """Results as real numbers, in the shapes of the module's. values: of the steps, by name."""
        return outputs(self.integers, values, case.lengths)


def _values(value: Any) -> list[Any]:
    """One value, or several."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]


def _whole(name: str, value: Any) -> int:
    """A length as a number; UserError for anything else."""
    try:
        return index(value)
    except TypeError:
        raise UserError(f"the length {name} is {value!r}: give a whole number") from None


def as_tensor(name: str, value: Any) -> Tensor:
    """An input as a tensor; arrays of NumPy, as results are, become one."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value.astype(np.float32) if value.dtype.kind == "f" else value)
    if not isinstance(value, Tensor):
        raise UserError(f"input {name} is a {type(value).__name__}: give a tensor")
    return value


def _named(module: nn.Module, method: str, inputs: Mapping[str, Tensor] | Sequence[Tensor]) -> dict[str, Tensor]:
    """Inputs by the names of the method's parameters."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    names = list(inspect.signature(module.forward).parameters)
    if len(inputs) > len(names):
        raise UserError(
            f"module {type(module).__name__}: {len(inputs)} inputs were given, `{method}` takes {len(names)}"
        )
    return dict(zip(names, inputs, strict=False))
