"""Small modules made of functions, and what a graph consists of, for the tests of the graph level."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from compiler.graph import capture, export
from compiler.graph.check import Checker
from compiler.graph.edit import Editor, classify
from compiler.graph.ir import Graph, Node
from compiler.graph.rewrites import REWRITES

WIDTH, HEADS, SIZE = 32, 2, 16
SEQ = {"x": {0: "seq"}}
LENGTHS = {"seq": (1, 40)}
VIEWS = ("reshape", "permute", "slice", "expand")


class Of(nn.Module):
    """A module of a function of (module, x). tensors: parameters, buffers and submodules, by name."""

    def __init__(self, function: Callable, **tensors) -> None:
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            buffer = isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter)
            (self.register_buffer if buffer else self.__setattr__)(name, tensor)

    def forward(self, x: Tensor):
        return self.function(self, x)


class OfThree(Of):
    """The same of (module, q, k, v)."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor):
        return self.function(self, q, k, v)


class OfMasked(Of):
    """The same of (module, q, k, v, mask)."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor):
        return self.function(self, q, k, v, mask)


class Rotating(Of):
    """The same of (module, x, cos, sin)."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor):
        return self.function(self, x, cos, sin)


def linear(n_in: int = WIDTH, n_out: int = WIDTH, bias: bool = True) -> nn.Linear:
    return nn.Linear(n_in, n_out, bias)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def graph_of(function: Callable, shape=(5, WIDTH), dynamic=SEQ, lengths=LENGTHS, **tensors) -> Graph:
    """The graph of a function of rows float[seq, WIDTH], or of a tensor of another shape."""
    torch.manual_seed(0)
    return capture(Of(function, **tensors), {"x": torch.randn(shape)}, dynamic, lengths)


def fixed(function: Callable, *shape: int, **tensors) -> Graph:
    """The graph of a function of a tensor whose lengths are all fixed."""
    return graph_of(function, shape, {}, {}, **tensors)


def operators(graph: Graph) -> list[str]:
    """What the machine computes, views aside."""
    return [n.op for n in graph.device() if n.op not in VIEWS]


def functions(graph: Graph) -> list[str]:
    return [n.arguments["function"] for n in graph.device() if n.op == "activation"]


def only(graph: Graph, op: str) -> Node:
    """The one node of that operator."""
    (node,) = (n for n in graph.device() if n.op == op)
    return node


def heads(x: Tensor) -> Tensor:
    return x.view(x.shape[0], HEADS, SIZE).transpose(0, 1)


def finished(module: nn.Module) -> tuple[Checker, Editor]:
    """A module's finished graph, and what checks it."""
    torch.manual_seed(0)
    inputs = {"x": torch.randn(5, WIDTH)}
    graph = export(module, inputs, SEQ, LENGTHS)
    classify(graph)
    checker, editor = Checker(graph, inputs, SEQ), Editor(graph)
    for rewrite in REWRITES:
        rewrite(editor)
        classify(graph)
        checker.check(rewrite.__name__)
    return checker, editor
