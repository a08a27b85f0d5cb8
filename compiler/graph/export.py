"""torch.export of a module with symbolic lengths, read into nodes: still torch's own operators."""

import inspect
import logging
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim as TorchDim
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.experimental import _config as settings

from hw.spec.errors import UserError, first_line

from .ir import CONSTANT, Dim, Graph, Length, Node, Range, Ref

Dynamic = Mapping[str, Mapping[int, str]]
EXAMPLE_SIZES = (5, 7, 11, 13, 17, 19, 23)
"""Sizes of symbolic lengths while torch looks at the module: primes, so that no two lengths seem to belong together."""
LENGTH_OF_INPUT = re.compile(r"L\['(\w+)'\]\.size\(\)\[(\d+)\]")
"""How torch calls the length of an axis: the input's name and the axis."""


def export(
    module: nn.Module, inputs: Mapping[str, Tensor], dynamic: Dynamic, lengths: Mapping[str, tuple[int, int]]
) -> Graph:
    """The module's graph in torch's operators; UserError for what torch cannot export."""
    _check_names(module, inputs)
    ranges = _ranges(module, inputs, dynamic, lengths)
    examples, shapes = _examples(inputs, dynamic, ranges)
    try:
        # Without gradients, or torch keeps what a module does without them in a graph of its own.
        with torch.no_grad(), forward_is(module, _named_one_by_one(module, inputs)):
            exported = _exported(module, examples, shapes if ranges else None)
    except Exception as error:  # whatever a user's module and torch make of it
        raise UserError(
            f"module {type(module).__name__}: torch.export refuses it ({_reason(error, dynamic)}): its shapes may "
            f"depend on its symbolic lengths ({', '.join(ranges) or 'none are declared'}) and on nothing else"
        ) from None
    return _Reader(module, exported, inputs, dynamic, ranges).read()


@contextmanager
def forward_is(module: nn.Module, function: Callable) -> Iterator[None]:
    """While this lasts, calling the module calls that function; torch.export knows no other way."""
    own = vars(module).get("forward")
    module.forward = function
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _named_one_by_one(module: nn.Module, inputs: Mapping[str, Tensor]) -> Callable:
    """`forward`, with what it takes as `**others` as parameters of their own: torch knows no lengths of others."""
    forward = module.forward
    if not any(p.kind == p.VAR_KEYWORD for p in inspect.signature(forward).parameters.values()):
        return forward

    def named(**given: Tensor) -> Any:
        return forward(**given)

    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in inputs]
    named.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return named


def _reason(error: Exception, dynamic: Dynamic) -> str:
    """What torch says, in one line; conditions on lengths in the user's names."""
    condition = re.search(r"generated guard (.*?)\.?$", str(error), re.MULTILINE)
    if condition is None:
        return f"{type(error).__name__}: {first_line(error)}"

    def symbol(found: re.Match) -> str:
        return dynamic.get(found[1], {}).get(int(found[2]), found[0])

    return f"it only holds for {LENGTH_OF_INPUT.sub(symbol, condition[1])}"


def _exported(
    module: nn.Module, examples: dict[str, Tensor], shapes: dict[str, Any] | None
) -> torch.export.ExportedProgram:
    """torch's exported program, in which every operator has a result of its own.

    torch asks whether a length such as seq - 1 is 1 and then refuses to answer for all lengths. Where that is the only
    obstacle, it is told that no symbolic length is; the check at the least lengths shows whether that was right.
    """
    try:
        with _quietly():
            found = torch.export.export(module, (), examples, dynamic_shapes=shapes)
    except Exception as error:
        if "Constraints violated" not in str(error):
            raise
        with _quietly(), settings.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            found = torch.export.export(module, (), examples, dynamic_shapes=shapes)
    if any(_is_mutable(node) for node in found.graph.nodes):
        found = found.run_decompositions({})  # takes no operator apart
    return found


@contextmanager
def _quietly() -> Iterator[None]:
    """Without torch's log: what it has to say is in its exception."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _is_mutable(node: torch.fx.Node) -> bool:
    """Whether an operator writes into one of its operands; detaching writes nothing."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and not schema.name.endswith("::detach_")


def _check_names(module: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """UserError for an input that is no tensor or that `forward` does not take, and for one that it does not get."""
    name, parameters = type(module).__name__, inspect.signature(module.forward).parameters
    for given, tensor in inputs.items():
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise UserError(
                f"module {name}: input {given} is of type {kind}: pass tensors, each under a name of its own"
            )
    open_ended = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    if unknown := [given for given in inputs if given not in parameters and not open_ended]:
        raise UserError(
            f"module {name}: inputs names {unknown[0]!r}, forward takes {', '.join(parameters)}: correct it"
        )
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD]
    if missing := [parameter for parameter in needed if parameter not in inputs]:
        raise UserError(f"module {name}: forward needs {missing[0]!r}, inputs has no such tensor: add an example of it")


def _ranges(module, inputs, dynamic: Dynamic, lengths) -> dict[str, Range]:
    """Every symbol with its range; UserError where the declarations do not fit together."""
    name = type(module).__name__
    symbols = {symbol: (which, axis) for which, axes in dynamic.items() for axis, symbol in axes.items()}
    for which in dynamic:
        if which not in inputs:
            raise UserError(
                f"module {name}: dynamic names {which!r}, its inputs are {', '.join(inputs)}: correct the name"
            )
    for which, axes in dynamic.items():
        if beyond := [axis for axis in axes if not 0 <= axis < inputs[which].ndim]:
            raise UserError(
                f"module {name}: dynamic names axis {beyond[0]} of {which!r}, which has {inputs[which].ndim} axes: "
                "count them from 0"
            )
    if unknown := [symbol for symbol in lengths if symbol not in symbols]:
        raise UserError(
            f"module {name}: lengths names {unknown[0]!r}, no axis in dynamic has it: add it or leave it out"
        )
    if missing := [symbol for symbol in symbols if symbol not in lengths]:
        raise UserError(
            f"module {name}: the length {missing[0]!r} has no range: give lengths={{{missing[0]!r}: (1, 64)}}"
        )
    for symbol, (least, most) in lengths.items():
        if not 0 <= least <= most:
            raise UserError(
                f"module {name}: the length {symbol!r} goes from {least} to {most}: give 0 <= least <= most"
            )
    return {symbol: Range(*lengths[symbol]) for symbol in symbols}


def _examples(inputs, dynamic: Dynamic, ranges: Mapping[str, Range]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of their own for every input, and torch's description of their axes."""
    sizes = {}
    for number, (symbol, limits) in enumerate(ranges.items()):
        prime = EXAMPLE_SIZES[number % len(EXAMPLE_SIZES)]
        sizes[symbol] = max(2, min(max(prime, limits.least), limits.most))
    dims = {symbol: TorchDim(symbol, min=limits.least, max=max(limits.most, 3)) for symbol, limits in ranges.items()}
    examples, shapes = {}, {}
    for name, tensor in inputs.items():
        axes = dynamic.get(name, {})
        for axis, symbol in axes.items():
            if tensor.shape[axis] == 0:
                tensor = tensor.new_zeros([1 if i == axis else n for i, n in enumerate(tensor.shape)])
            tensor = tensor.index_select(axis, torch.arange(sizes[symbol], device=tensor.device) % tensor.shape[axis])
        examples[name] = tensor.clone()
        shapes[name] = {axis: dims[symbol] for axis, symbol in axes.items()}
    return examples, shapes


class _Reader:
    """Nodes of an exported program as nodes of the graph."""

    def __init__(self, module: nn.Module, exported, inputs, dynamic: Dynamic, ranges: dict[str, Range]) -> None:
        self.module, self.exported, self.inputs = module, exported, inputs
        self.name = type(module).__name__
        signature = exported.graph_signature
        self.weights = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        if any(spec.kind != OutputKind.USER_OUTPUT for spec in signature.output_specs):
            raise UserError(f"module {self.name}: it changes a buffer or an input: return what is new instead")
        kinds = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR, InputKind.USER_INPUT}
        if any(spec.kind not in kinds for spec in signature.input_specs):
            raise UserError(f"module {self.name}: an input is no tensor: pass tensors only")
        users = [n for n in exported.graph.nodes if n.op == "placeholder" and n.name not in self.weights]
        self.roles = {node.name: role for node, role in zip(users, inputs, strict=True)}
        self.symbols = {
            str(node.meta["val"].shape[axis]): symbol
            for node, role in zip(users, inputs, strict=True)
            for axis, symbol in dynamic.get(role, {}).items()
        }
        self.graph = Graph(inputs=tuple(inputs), lengths=ranges, module=module, state=self._state())

    def _state(self) -> dict[str, Tensor]:
        return {**self.exported.state_dict, **self.exported.constants}

    def read(self) -> Graph:
        """The whole graph, without what no result depends on."""
        for node in self.exported.graph.nodes:
            if node.op == "placeholder":
                self.graph.add(self._placeholder(node))
            elif node.op == "call_function" and not _is_symbol(node):
                self._operator(node)
        (results,) = (node for node in self.exported.graph.nodes if node.op == "output")
        if any(not isinstance(result, torch.fx.Node) for result in results.args[0]):
            raise UserError(f"module {self.name}: a result is no tensor: return tensors only")
        self.graph.outputs = tuple(self._named(result) for result in results.args[0])
        self.graph.drop_dead()
        self.graph.check()
        return self.graph

    def _placeholder(self, node) -> Node:
        value = node.meta["val"]
        made = Node(self._named(node), "input", shape=self._shape(value, node), dtype=value.dtype, module=self.name)
        if node.name not in self.roles:
            made.op, made.kind, made.weight = "parameter", CONSTANT, self.weights[node.name]
        return made

    def _operator(self, node) -> None:
        schema = getattr(node.target, "_schema", None)
        op = schema.name.split("::")[-1] if schema else node.target.__name__
        if op.startswith(("_assert", "sym_constrain")):
            return
        if schema is None and node.target is not operator.getitem:
            raise self._refused(node, op, "it has a graph of its own", "straight code, without torch's control flow")
        value = node.meta.get("val")
        if any(isinstance(argument, torch.SymFloat) for argument in _symbols(node)):
            what = "it takes a number computed from activations, or a fraction computed from a length"
            raise self._refused(node, op, what, "take a tensor, or divide by the length itself")
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        self.graph.add(
            Node(
                self._named(node),
                op,
                self._arguments(node, schema),
                self._shape(value, node) if isinstance(value, Tensor) else (),
                target=_item if node.target is operator.getitem else node.target,
                dtype=value.dtype if isinstance(value, Tensor) else None,
                module=f"{self.name}.{stack[-1][0] if stack else ''}".rstrip("."),
                source=_source(node.meta.get("stack_trace") or ""),
            )
        )

    def _refused(self, node, op: str, what: str, accepted: str) -> UserError:
        where = _source(node.meta.get("stack_trace") or "")
        return UserError(f"module {self.name}: operator {op}{f', {where}' if where else ''}: {what}: {accepted}")

    def _named(self, node) -> str:
        """A node's name; those of inputs are taken."""
        if node.name in self.roles:
            return self.roles[node.name]
        return f"{node.name}_" if node.name in self.roles.values() else node.name

    def _arguments(self, node, schema) -> dict[str, Any]:
        """Arguments by name, without those that are as by default."""
        if schema is None:
            return dict(zip(("source", "index"), map(self._value, node.args), strict=True))
        given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
        defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        values = {name: self._value(argument) for name, argument in given.items()}
        return {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}

    def _value(self, argument: Any) -> Any:
        if isinstance(argument, torch.fx.Node):
            return self._dim(argument.meta["val"], argument) if _is_symbol(argument) else Ref(self._named(argument))
        return [self._value(part) for part in argument] if isinstance(argument, list | tuple) else argument

    def _dim(self, value, node: torch.fx.Node) -> Dim:
        if isinstance(value, int):
            return value
        names = set(re.findall(r"[A-Za-z_]\w*", str(value))) - {"Max", "Min"}
        if names - set(self.symbols):
            what = "its shape or a number in it depends on values of activations"
            raise self._refused(node, str(node.target), what, "shapes may depend on symbolic lengths only")
        text = re.sub(r"[A-Za-z_]\w*", lambda found: self.symbols.get(found[0], found[0]), str(value))
        return int(text) if text.isdigit() else Length(text)

    def _shape(self, value: Tensor, node: torch.fx.Node) -> tuple[Dim, ...]:
        return tuple(self._dim(d, node) for d in value.shape)


SYMBOLS = torch.SymInt | int | torch.SymFloat | float | torch.SymBool | bool


def _is_symbol(node) -> bool:
    return isinstance(node.meta.get("val"), SYMBOLS)


def _symbols(node: torch.fx.Node) -> list[Any]:
    """Values of the operands that are numbers computed from lengths."""
    return [source.meta["val"] for source in node.all_input_nodes if _is_symbol(source)]


def _source(trace: str) -> str:
    """File and line of the innermost place of the user's code in torch's stack trace."""
    found = re.findall(r'File "([^"]+)", line (\d+)', trace)
    own = [(path, line) for path, line in found if "/torch/" not in path]
    return f"{own[-1][0].rsplit('/', 1)[-1]}:{own[-1][1]}" if own else ""


def _item(source: Any, index: int) -> Any:
    return source[index]
