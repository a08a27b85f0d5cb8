"""The check of the graph level: after every rewrite, the graph still computes what the module does."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from hw.spec.errors import InternalError

from .ir import Graph
from .meaning import evaluate

TOLERANCE = 2e-6
"""Of the largest magnitude of a result's row. The graph does not repeat casts to float32 in the module's own text."""
SMALL = 0.02
"""Magnitude of the rows of one of the checks: at it, the epsilon of a norm shows."""


class Checker:
    """Of one graph: the module's results at some lengths, computed once in float64."""

    def __init__(self, graph: Graph, inputs: Mapping[str, Tensor], dynamic: Mapping[str, Mapping[int, str]]) -> None:
        self.graph = graph
        module = copy.deepcopy(graph.module)
        assert module is not None
        module = module.double().eval()
        self.cases = []
        for number, lengths in enumerate(_bindings(graph)):
            given = _inputs(inputs, dynamic, lengths, SMALL if number == 1 else 1.0)
            doubled = {name: t.double() if t.is_floating_point() else t for name, t in given.items()}
            with torch.no_grad():
                results = module(**doubled)
            self.cases.append((lengths, given, results if isinstance(results, tuple | list) else (results,)))

    def check(self, rewrite: str) -> None:
        """InternalError if the graph gives other results; rewrite: the name of what changed it last."""
        self.graph.check()
        for lengths, given, results in self.cases:
            values = evaluate(self.graph, given, lengths, torch.float64)
            for name, want in zip(self.graph.outputs, results, strict=True):
                self._compare(values[name], want, f"after {rewrite}: result {name} at {dict(lengths)}")

    def _compare(self, got: Tensor, want: Tensor, what: str) -> None:
        if tuple(got.shape) != tuple(want.shape):
            raise InternalError(f"{what} has the shape {tuple(got.shape)}, the module's has {tuple(want.shape)}")
        if not want.numel():
            return
        got, want = got.double(), want.double()
        limit = TOLERANCE * want.abs().amax(-1, keepdim=True).clamp_min(1e-30)
        if bool(((got - want).abs() > limit).any()):
            worst = float(((got - want).abs() / limit).max()) * TOLERANCE
            raise InternalError(f"{what} differs from the module's by {worst:.1e} of its row's largest magnitude")


def _bindings(graph: Graph) -> list[dict[str, int]]:
    """Lengths to look at: the least ones, small ones, and larger ones that have no common divisor."""
    found: list[dict[str, int]] = []
    for sizes in ((0, 0, 0, 0), (2, 3, 5, 7), (13, 9, 11, 4), (29, 41, 37, 23)):
        lengths = {
            symbol: max(limits.least, min(size, limits.most))
            for (symbol, limits), size in zip(graph.lengths.items(), sizes * 4, strict=False)
        }
        if lengths not in found:
            found.append(lengths)
    return found if len(found) > 1 else found * 2


def _inputs(inputs, dynamic, lengths: Mapping[str, int], size: float) -> dict[str, Tensor]:
    """Inputs of these lengths: new numbers of the magnitude of the examples, integers as they are."""
    random = torch.Generator().manual_seed(5)
    found = {}
    for name, example in inputs.items():
        shape = list(example.shape)
        for axis, symbol in dynamic.get(name, {}).items():
            shape[axis] = lengths[symbol]
            if not example.is_floating_point():
                example = example.index_select(axis, torch.arange(shape[axis]) % example.shape[axis])
        if example.is_floating_point():
            deviation = float(example.std()) if example.numel() > 1 else 1.0
            example = torch.randn(shape, generator=random) * (deviation if deviation > 0 else 1.0) * size
        found[name] = example
    return found
