"""The check of the graph level: after every rewrite, the graph still computes what the module does."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import cycle
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hw.spec.errors import InternalError, UserError, first_line

from .ir import Graph, Length, Ref
from .meaning import node_value

TOLERANCE = 1e-9
"""Of the largest magnitude of a result's row. Another order of summation changes 1e-14 of it."""
SMALL = 0.02
"""Magnitude of the rows of one of the checks: at it, the epsilon of a norm shows."""
HUGE = 1e4
"""Inputs with larger values are masks that are added to scores: they are checked with the values of the example."""
MANY = 1 << 22
"""Elements of all matrices together beyond which they are stretches of one random sequence."""
PERIOD = 1_048_573
"""Length of that sequence, a prime, repeated: no two rows are equal."""
STEP = 8191
"""From where one matrix begins in it to where the next one does."""
SIZES = ((0, 0, 0, 0), (2, 3, 5, 7), (13, 9, 11, 4), (29, 41, 37, 23))
"""Values of symbolic lengths, in turn: the least, and larger ones without a common divisor."""
FEW_SIZES = (*SIZES[:2], (6, 5, 7, 4))
"""Those for large modules, of which every row costs as much as many of a small one."""
Lengths = Mapping[str, int]


@dataclass(frozen=True)
class _Case:
    """The module's results at some lengths. given: its inputs, float64 where they are floats."""

    lengths: Lengths
    given: Mapping[str, Tensor]
    results: tuple[Tensor, ...]
    known: dict[Hashable, Any] = field(default_factory=dict)
    """Values of nodes by what they compute, with a number each: a rewrite costs what it changed."""
    compared: set[tuple[int, Hashable]] = field(default_factory=set)
    """Results that were found equal, by the numbers of their values."""


class Checker:
    """Of one graph: the module's results at some lengths, computed once in float64 with random weights."""

    def __init__(self, graph: Graph, inputs: Mapping[str, Tensor], dynamic: Mapping[str, Mapping[int, str]]) -> None:
        assert graph.module is not None
        self.graph, self.module, self.seen = graph, graph.module, ""
        large = _elements(self.module) > MANY
        self.lengths = _bindings(graph, FEW_SIZES if large else SIZES)
        self.inputs = [
            _inputs(inputs, dynamic, lengths, SMALL if number == 1 else 1.0)
            for number, lengths in enumerate(self.lengths)
        ]
        for drawn in (_random_weights, _own_weights):
            weights = drawn(self.module)
            self.state = dict(graph.state) | weights
            self.products: AbstractContextManager = _Products(weights) if large else nullcontext()
            self.cases = [
                _Case(lengths, given, self._results(weights, lengths, given))
                for lengths, given in zip(self.lengths, self.inputs, strict=True)
            ]
            if all(bool(r.isfinite().all()) for case in self.cases for r in case.results):
                break  # weights of its own for a module that takes the logarithm of one, for instance
        self._require_repeatable(weights)

    def check(self, rewrite: str) -> None:
        """InternalError if the graph gives other results; rewrite: the name of what changed it last."""
        self.graph.check()
        if self.seen == (seen := repr((self.graph.nodes, self.graph.outputs))):
            return
        self.seen = seen
        graph = replace(self.graph, state=self.state)
        for case in self.cases:
            where = f"at {dict(case.lengths)}" if case.lengths else "at its only lengths"
            try:
                with self.products:
                    values, numbers = _evaluate(graph, case)
            except Exception as error:  # operands that do not fit together, whatever torch says of it
                raise InternalError(f"after {rewrite}: the graph cannot be run {where}: {first_line(error)}") from None
            for at, (name, want) in enumerate(zip(graph.outputs, case.results, strict=True)):
                if (at, numbers[name]) not in case.compared:
                    _compare(values[name], want, f"after {rewrite}: result {name} {where}")
                    case.compared.add((at, numbers[name]))
            self._check_shapes(values, case.lengths, f"after {rewrite}: the shape of")

    def check_result(self, run: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor], what: str) -> None:
        """InternalError if another form of the module gives another first result. run: weights, inputs -> result."""
        for case in self.cases:
            try:
                with torch.no_grad(), self.products:
                    found = run(self.state, case.given)
            except Exception as error:  # operands that do not fit together
                raise InternalError(f"{what} cannot be run at {dict(case.lengths)}: {first_line(error)}") from None
            _compare(found, case.results[0], f"{what} at {dict(case.lengths)}: its result")

    def _check_shapes(self, values: Mapping[str, Any], lengths: Lengths, what: str) -> None:
        """InternalError for a device node whose declared shape is not that of its value."""
        for node in self.graph.device():
            value, shape = values[node.name], [d.at(lengths) if isinstance(d, Length) else d for d in node.shape]
            if isinstance(value, Tensor) and list(value.shape) != shape:
                raise InternalError(f"{what} {node.op} {node.name} is {shape}, its value has {list(value.shape)}")

    def _results(self, weights: Mapping[str, Tensor], lengths: Lengths, given: Mapping[str, Tensor]) -> tuple:
        try:
            with torch.no_grad(), self.products, _InDouble():
                owned = {name: weights[name] for name in _owned(self.module)}
                found = torch.func.functional_call(self.module, owned, (), dict(given), tie_weights=False)
        except Exception as error:  # whatever the user's module makes of these lengths
            raise UserError(
                f"module {type(self.module).__name__}: it fails at {dict(lengths)} ({type(error).__name__}: "
                f"{first_line(error)}): it has to run at every length in 'lengths'"
            ) from None
        return tuple(pytree.tree_leaves(found))

    def _require_repeatable(self, weights: Mapping[str, Tensor]) -> None:
        """UserError for a module that draws numbers: there is nothing to compare with."""
        case = self.cases[-1]
        again = self._results(weights, case.lengths, case.given)
        if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(case.results, again, strict=True)):
            raise UserError(
                f"module {type(self.module).__name__}: it gives other results for the same inputs: leave out what is "
                "random, such as dropout while training"
            )


class _InDouble(TorchFunctionMode):
    """All that the module computes becomes float64, also behind casts of its own, so that it is exact to `TOLERANCE`.

    Numbers that stand in its text are rounded to float32 first: so the exported graph has them.
    """

    CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)
    LITERALS = (torch.tensor, torch.as_tensor, Tensor.new_tensor)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        given = dict(kwargs or {})
        if func in self.LITERALS:
            if func is Tensor.new_tensor:
                given.setdefault("dtype", torch.float32)
            return _double(func(*args, **given))
        if func in self.CASTS:
            func = Tensor.double
        result = func(*pytree.tree_map(_wide, args), **pytree.tree_map(_wide, given))
        return _double(result) if isinstance(result, Tensor) else result


class _Products(TorchDispatchMode):
    """Computes each product with a matrix of a large module once, for the module and for all forms of its graph.

    Reading such a matrix is what a check takes its time for. Most rewrites leave the rows that reach it as they were,
    to the last bit; where they differ in one, the product is computed again.
    """

    PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.weights = dict(weights)
        self.held = {_memory(tensor) for tensor in weights.values()}
        """A weight is known by where it lies, which is its own as long as the weights are kept here."""
        self.known: dict[Hashable, Tensor] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func not in self.PRODUCTS or kwargs or _memory(args[-1]) not in self.held:
            return func(*args, **(kwargs or {}))
        key = func, *(self._identity(tensor) for tensor in args)
        if key not in self.known:
            self.known[key] = func(*args)
        return self.known[key].clone()

    def _identity(self, tensor: Tensor) -> Hashable:
        """Equal for equal values: where a weight lies and how often it was written to, the digest of anything else."""
        form = tensor.dtype, tensor.shape
        if _memory(tensor) in self.held:
            return *form, tensor.stride(), tensor.data_ptr(), tensor._version
        return *form, sha256(tensor.detach().cpu().numpy().tobytes()).digest()


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _wide(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return _double(argument)
    return torch.float64 if isinstance(argument, torch.dtype) and argument.is_floating_point else argument


# --- values ---------------------------------------------------------------------------------------------


def _evaluate(graph: Graph, case: _Case) -> tuple[dict[str, Any], dict[str, Hashable]]:
    """The value of every node, and its number; only those are computed that no graph before had."""
    values: dict[str, Any] = dict(case.given)
    numbers: dict[str, Hashable] = {name: name for name in case.given}
    with torch.no_grad():
        for node in graph.nodes.values():
            if node.name in values:
                continue
            key: Hashable = (node.op, node.target, node.weight, _frozen(node.arguments, numbers))
            try:
                known = key in case.known
            except TypeError:  # an argument that cannot be compared
                key, known = (object(),), False
            if not known:
                value = node_value(graph, node, values, case.lengths, torch.float64)
                case.known[key] = len(case.known), value
            numbers[node.name], values[node.name] = case.known[key]
    return values, numbers


def _frozen(argument: Any, numbers: Mapping[str, Hashable]) -> Hashable:
    """An argument that can be compared; tensors by the number of their value."""
    match argument:
        case Ref():
            return "value", numbers[argument.name]
        case dict():
            return tuple((name, _frozen(part, numbers)) for name, part in argument.items())
        case list() | tuple():
            return tuple(_frozen(part, numbers) for part in argument)
    return type(argument), argument


def _states(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under each of their names."""
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))


def _owned(module: nn.Module) -> list[str]:
    """Names of parameters and buffers, one for each place that holds them: of a submodule with two names, one."""
    return [
        f"{path}.{name}".lstrip(".")
        for path, part in module.named_modules()
        for name, held in (*part._parameters.items(), *part._buffers.items())
        if held is not None
    ]


def _own_weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: _double(tensor.detach()) for name, tensor in _states(module).items()}


def _random_weights(module: nn.Module) -> dict[str, Tensor]:
    """Vectors around 1, matrices that keep the magnitude of rows; buffers stay, they may be masks or tables.

    Modules that were just built have weights of 1 and biases of 0, which would hide that a rewrite loses them.
    """
    random = torch.Generator().manual_seed(3)
    drawn: dict[int, Tensor] = _stretches(module, random)
    for name, tensor in _states(module).items():
        statistic = name.endswith(("running_mean", "running_var"))
        changes = statistic or isinstance(tensor, nn.Parameter)
        if id(tensor) not in drawn:
            drawn[id(tensor)] = _draw(tensor, random) if changes and tensor.is_floating_point() else _double(tensor)
    return {name: drawn[id(tensor)].detach() for name, tensor in _states(module).items()}


def _draw(tensor: Tensor, random: torch.Generator) -> Tensor:
    if tensor.ndim < 2:
        return 0.5 + torch.rand(tensor.shape, generator=random, dtype=torch.float64)
    return torch.randn(tensor.shape, generator=random, dtype=torch.float64) / prod(tensor.shape[1:]) ** 0.5


def _elements(module: nn.Module) -> int:
    """Of all matrices."""
    return sum(tensor.numel() for tensor in module.parameters() if tensor.ndim > 1)


def _stretches(module: nn.Module, random: torch.Generator) -> dict[int, Tensor]:
    """Matrices of a large module by their identity, all in one stretch of memory: it costs no more than the largest of
    them. Their magnitude is that of the narrowest."""
    shapes = {id(tensor): tensor.shape for tensor in module.parameters() if tensor.ndim > 1}
    if _elements(module) <= MANY:
        return {}
    width = min(prod(shape[1:]) for shape in shapes.values())
    sequence = torch.randn(PERIOD, generator=random, dtype=torch.float64) / width**0.5
    sequence = sequence.repeat((max(map(prod, shapes.values())) + STEP * len(shapes)) // PERIOD + 1)
    return {key: sequence[STEP * at :][: prod(shape)].view(shape) for at, (key, shape) in enumerate(shapes.items())}


def _double(tensor: Tensor) -> Tensor:
    narrow = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.double() if narrow else tensor


def _compare(got: Any, want: Tensor, what: str) -> None:
    """InternalError unless both are equal up to rounding, rows of small magnitude as exactly as others."""
    if not isinstance(got, Tensor) or tuple(got.shape) != tuple(want.shape):
        shape = tuple(got.shape) if isinstance(got, Tensor) else None
        raise InternalError(f"{what} has the shape {shape}, the module's has {tuple(want.shape)}")
    if got.is_floating_point() != want.is_floating_point():
        raise InternalError(f"{what} is of {got.dtype}, the module's of {want.dtype}")
    if not want.numel():
        return
    got, want = got.double(), want.double()
    bound = TOLERANCE * want.abs().amax(-1, keepdim=True)
    if bool(bound.isfinite().all()) and bool(((got - want).abs() <= bound).all()):
        return
    same = (got == want) | (got.isnan() & want.isnan())
    size = want.nan_to_num(0.0, 0.0, 0.0).abs().amax(-1, keepdim=True).clamp_min(1e-30)
    worst = float(torch.where(same, 0.0, ((got - want).abs() / size).nan_to_num(torch.inf, torch.inf)).max())
    if worst > TOLERANCE:
        raise InternalError(f"{what} differs from the module's by {worst:.1e} of its row's largest magnitude")


def _bindings(graph: Graph, sets: Sequence[Sequence[int]]) -> list[dict[str, int]]:
    """Lengths to look at, of these sets, within their ranges; the next to the least ones besides."""
    found: list[dict[str, int]] = []
    next_to_least = tuple(limits.least + 1 for limits in graph.lengths.values())
    for sizes in (*sets[:2], next_to_least, *sets[2:]):
        lengths = {
            symbol: max(limits.least, min(size, limits.most))
            for (symbol, limits), size in zip(graph.lengths.items(), cycle(sizes), strict=False)
        }
        if lengths not in found:
            found.append(lengths)
    return found if len(found) > 1 else found * 2


def _inputs(inputs, dynamic, lengths: Lengths, size: float) -> dict[str, Tensor]:
    """Inputs of these lengths: new numbers of the magnitude of the examples; integers and masks as they are."""
    random = torch.Generator().manual_seed(5)
    found = {}
    for name, example in inputs.items():
        drawn = example.is_floating_point() and not bool((example.abs() > HUGE).any())
        shape = list(example.shape)
        for axis, symbol in dynamic.get(name, {}).items():
            shape[axis] = lengths[symbol]
            if not drawn:
                example = example.index_select(axis, torch.arange(shape[axis]) % max(1, example.shape[axis]))
        if drawn:
            deviation = float(example.std()) if example.numel() > 1 else 1.0
            scale = (deviation if deviation > 0 else 1.0) * size
            example = torch.randn(shape, generator=random, dtype=torch.float64) * scale
        found[name] = _double(_visible(example))
    return found


def _visible(example: Tensor) -> Tensor:
    """A mask of which every row has a True: attention that sees nothing means something else in each of its forms."""
    if example.dtype != torch.bool or not example.ndim or not example.shape[-1]:
        return example
    last = torch.arange(example.shape[-1]) == example.shape[-1] - 1
    return example | (~example.any(-1, keepdim=True) & last)
