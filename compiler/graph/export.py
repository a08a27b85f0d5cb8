"""torch.export of a module with symbolic lengths, read into nodes: still torch's own operators."""

import inspect
import operator
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim as TorchDim
from torch.export.graph_signature import InputKind, OutputKind

from hw.spec.errors import UserError

from ..capture import first_line
from .ir import CONSTANT, Dim, Graph, Length, Node, Range, Ref

Dynamic = Mapping[str, Mapping[int, str]]
EXAMPLE_SIZES = (5, 7, 11, 13, 17, 19, 23)
"""Sizes of symbolic lengths while torch looks at the module: primes, so that no two lengths seem to belong together."""


def export(
    module: nn.Module, inputs: Mapping[str, Tensor], dynamic: Dynamic, lengths: Mapping[str, tuple[int, int]]
) -> Graph:
    """The module's graph in torch's operators; UserError for what torch cannot export."""
    _check_names(module, inputs)
    ranges = _ranges(module, inputs, dynamic, lengths)
    examples, shapes = _examples(inputs, dynamic, ranges)
    name = type(module).__name__
    try:
        exported = torch.export.export(module.eval(), (), examples, dynamic_shapes=shapes)
    except Exception as error:  # whatever a user's module and torch make of it
        raise UserError(
            f"module {name}: torch.export refuses it ({type(error).__name__}: {first_line(error)}): its shapes may "
            f"depend on its symbolic lengths ({', '.join(ranges) or 'none are declared'}) and on nothing else"
        ) from None
    return _Reader(module, exported, inputs, dynamic, ranges).read()


def _check_names(module: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """UserError for an input that `forward` does not take, or that it needs and does not get."""
    name, parameters = type(module).__name__, inspect.signature(module.forward).parameters
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
    for (symbol, limits), prime in zip(ranges.items(), EXAMPLE_SIZES, strict=False):
        sizes[symbol] = max(2, min(max(prime, limits.least), limits.most))
    dims = {symbol: TorchDim(symbol, min=limits.least, max=max(limits.most, 3)) for symbol, limits in ranges.items()}
    examples, shapes = {}, {}
    for name, tensor in inputs.items():
        axes = dynamic.get(name, {})
        for axis, symbol in axes.items():
            if tensor.shape[axis] == 0:
                tensor = tensor.new_zeros([1 if i == axis else n for i, n in enumerate(tensor.shape)])
            tensor = tensor.index_select(axis, torch.arange(sizes[symbol]) % tensor.shape[axis])
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
        made = Node(self._named(node), "input", shape=self._shape(value), dtype=value.dtype, module=self.name)
        if node.name not in self.roles:
            made.op, made.kind, made.weight = "parameter", CONSTANT, self.weights[node.name]
        return made

    def _operator(self, node) -> None:
        schema = getattr(node.target, "_schema", None)
        op = schema.name.split("::")[-1] if schema else node.target.__name__
        if op.startswith(("_assert", "sym_constrain")):
            return
        value = node.meta.get("val")
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        self.graph.add(
            Node(
                self._named(node),
                op,
                self._arguments(node, schema),
                self._shape(value) if isinstance(value, Tensor) else (),
                target=_item if node.target is operator.getitem else node.target,
                dtype=value.dtype if isinstance(value, Tensor) else None,
                module=f"{self.name}.{stack[-1][0] if stack else ''}".rstrip("."),
                source=_source(node.meta.get("stack_trace") or ""),
            )
        )

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
            return self._dim(argument.meta["val"]) if _is_symbol(argument) else Ref(self._named(argument))
        return [self._value(part) for part in argument] if isinstance(argument, list | tuple) else argument

    def _dim(self, value) -> Dim:
        if isinstance(value, int):
            return value
        text = re.sub(r"[A-Za-z_]\w*", lambda found: self.symbols.get(found[0], found[0]), str(value))
        return int(text) if text.isdigit() else Length(text)

    def _shape(self, value: Tensor) -> tuple[Dim, ...]:
        return tuple(self._dim(d) for d in value.shape)


def _is_symbol(node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt | int)


def _source(trace: str) -> str:
    """File and line of the innermost place of the user's code in torch's stack trace."""
    found = re.findall(r'File "([^"]+)", line (\d+)', trace)
    own = [(path, line) for path, line in found if "/torch/" not in path]
    return f"{own[-1][0].rsplit('/', 1)[-1]}:{own[-1][1]}" if own else ""


def _item(source: Any, index: int) -> Any:
    return source[index]
