"""The graph level: the operators of one module, each executable in torch, with symbolic lengths.

A node is of one of three kinds, by what it depends on:

    constant    parameters and literals only         computed once, when the module is compiled
    host        lengths and tables too               computed by the host before every run (masks, rotary tables)
    device      rows of activations                  computed by the machine

Constant and host nodes keep torch's own operators: the machine never executes them, so any operator will do. A rotary
table, a mask and a `1 + weight` are such expressions. Device nodes are of the operators in `DEVICE`, and of no other.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
from torch import Tensor, nn

from hw.spec.errors import InternalError


class Length(str):
    """A symbolic length: the name of a symbol, or an expression of several, as in "seq + cache"."""

    def at(self, lengths: Mapping[str, int]) -> int:
        """Its value where every symbol has the given one."""
        return int(eval(self, {"__builtins__": {}, "Max": max, "Min": min}, dict(lengths)))


Dim = int | Length
"""A constant or a symbolic length."""


@dataclass(frozen=True)
class Ref:
    """An operand that is a tensor: the name of the node that makes it."""

    name: str


def references(argument: Any) -> Iterator[Ref]:
    """The tensors in an argument, lists included."""
    if isinstance(argument, Ref):
        yield argument
    elif isinstance(argument, list | tuple):
        for part in argument:
            yield from references(part)


CONSTANT, HOST, ON_DEVICE = "constant", "host", "device"

DEVICE: dict[str, str] = {
    "linear": "x[..., in], weight[out, in], bias[out] or absent",
    "norm": "x[..., c], weight[c], bias[c] or absent; kind 'rms' or 'layer', epsilon: over the last axis",
    "add": "x, y, alpha: x + alpha * y; y broadcasts as in torch, and may be constant or host",
    "mul": "x, y: x * y; y broadcasts as in torch, and may be constant or host",
    "scale": "x, factor: times a number",
    "offset": "x, value: plus a number",
    "activation": "x, function: a name of `meaning.FUNCTIONS`",
    "softmax": "x: over the last axis",
    "rope": "x[heads, n, d], cos, sin, style, width: rotates the first `width` channels, see `meaning.rope`",
    "attention": "q[h, n, d], k[g, m, d], v[g, m, e], mask[(h,) n, m] or absent; scale, causal, softcap: see `meaning`",
    "append": "past, new, axis: state that grows: past is an input, the result an output",
    "reshape": "x, shape",
    "permute": "x, order",
    "slice": "x, axis, start, stop, step",
    "expand": "x, shape",
    "cat": "parts, axis",
    "mean": "x, axes: these axes go",
    "sum": "x, axes: these axes go",
    "mix": "x, matrix[out, in], axis: the constant matrix times that axis (pooling, bilinear resizing)",
    "gather": "x, index[k], axis: index_select; the index is constant or host",
    "select_rows": "x[n, c], scores[n], k: the k rows with the largest scores, in their old order",
    "route": "x[..., experts], k: all but the k largest of the last axis become 0",
    "lookup": "table[v, c], index: rows of a constant table; the host brings them like an input",
    "argmax": "x: the index of the largest value of the last axis, ties to the lowest",
}
"""Operators of device nodes: operands (device unless said otherwise) and attributes, by name."""


@dataclass
class Node:
    """One operation.

    op: of `DEVICE`; "input"; "parameter"; or torch's name of the operator, whose callable is `target`. arguments: by
    name, tensors as `Ref`s, lengths as `Length`s, what is absent left out. kind: see the module. module, source: where
    it comes from, for messages: the path of the module, and file and line of the user's code.
    """

    name: str
    op: str
    arguments: dict[str, Any] = field(default_factory=dict)
    shape: tuple[Dim, ...] = ()
    kind: str = ON_DEVICE
    target: Callable | None = None
    weight: str = ""
    """Of a parameter: its name in the module's state."""
    dtype: Any = None
    module: str = ""
    source: str = ""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors it reads, in the order of the arguments."""
        return tuple(ref.name for argument in self.arguments.values() for ref in references(argument))

    def operand(self, name: str) -> str | None:
        """The node that an operand comes from; None where it is absent."""
        ref = self.arguments.get(name)
        return ref.name if isinstance(ref, Ref) else None


@dataclass(frozen=True)
class Range:
    """The values that a symbolic length may take."""

    least: int
    most: int


@dataclass
class Graph:
    """Nodes in execution order; inputs and outputs by the user's names."""

    nodes: dict[str, Node] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    lengths: dict[str, Range] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)
    """Parameters, buffers and lifted constants by name."""
    module: nn.Module | None = None

    def add(self, node: Node) -> Node:
        self.nodes[node.name] = node
        return node

    def users(self, name: str) -> list[Node]:
        """The nodes that read it; an output of the module counts as no node."""
        return [node for node in self.nodes.values() if name in node.inputs]

    def device(self) -> Iterator[Node]:
        """What the machine computes, in order."""
        return (n for n in self.nodes.values() if n.kind == ON_DEVICE and n.op not in ("input", "parameter"))

    def network(self) -> nx.DiGraph:
        """The data-flow graph."""
        graph = nx.DiGraph()
        for node in self.nodes.values():
            graph.add_node(node.name, op=node.op, kind=node.kind)
            graph.add_edges_from((source, node.name) for source in node.inputs)
        return graph

    def ancestors(self, name: str) -> set[str]:
        """The nodes that it depends on, itself among them."""
        found, waiting = {name}, [name]
        while waiting:
            new = [source for source in self.nodes[waiting.pop()].inputs if source not in found]
            found.update(new)
            waiting += new
        return found

    def drop_dead(self) -> None:
        """Remove nodes that no output depends on, except the module's inputs."""
        network, keep = self.network(), set(self.outputs) | set(self.inputs)
        for output in self.outputs:
            keep |= nx.ancestors(network, output)
        self.nodes = {name: node for name, node in self.nodes.items() if name in keep}

    def check(self) -> None:
        """Every operand is defined before its use; outputs exist."""
        seen: set[str] = set()
        for node in self.nodes.values():
            for source in node.inputs:
                if source not in seen:
                    raise InternalError(f"graph: {node.name} uses {source} before its definition")
            seen.add(node.name)
        if missing := [name for name in (*self.inputs, *self.outputs) if name not in seen]:
            raise InternalError(f"graph: {missing} are not defined")
