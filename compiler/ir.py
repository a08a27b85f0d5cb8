"""The compiler's IR: the captured graph (nodes with symbolic shapes), and the fused operators made from it.

A captured `Graph` mirrors what torch.export saw. Passes replace nodes by fused operators, whose meaning is in
`compiler.meaning`, until its `fused` list describes a layer entirely. Kernels are selected by the fused operators'
types, and read nothing but their attributes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import torch
from torch import nn

from hw.spec.errors import InternalError, UserError


class Length(str):
    """A symbolic length: the name of a symbol, or an expression of several, as in "seq + cache"."""

    def at(self, lengths: Mapping[str, int]) -> int:
        """Its value where every symbol has the given one."""
        return int(eval(self, {"__builtins__": {}, "Max": max, "Min": min}, dict(lengths)))


Dim = int | Length
"""A constant or a symbolic length."""
Shape = tuple[Dim, ...]


@dataclass(frozen=True)
class Ref:
    """An operand that is a tensor: the name of the node that makes it."""

    name: str


@dataclass
class Node:
    """One operation.

    op: what torch calls it (`target` is its callable), the fused operator's name, "input" or "parameter". arguments:
    by name, those left out that say nothing but the default; tensors are `Ref`s, lengths `Length`s. fused: what a pass
    has made of it. weight: the state name of a parameter. module: the path of the module that it comes from.
    """

    name: str
    op: str
    arguments: dict[str, Any] = field(default_factory=dict)
    shape: Shape = ()
    target: Callable | None = None
    fused: Any = None
    weight: str | None = None
    module: str = ""
    reason: str = ""
    """Why passes that looked at it left it alone."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors it reads, in the order of the arguments."""
        return tuple(ref.name for argument in self.arguments.values() for ref in references(argument))


def references(argument: Any) -> Iterator[Ref]:
    """The tensors in an argument, lists included."""
    if isinstance(argument, Ref):
        yield argument
    elif isinstance(argument, list | tuple):
        for part in argument:
            yield from references(part)


@dataclass
class Graph:
    """Nodes in execution order. `fused` grows as passes recognise operators; `source` is the module that was captured,
    None for a graph that was made by hand."""

    name: str
    nodes: dict[str, Node] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    fused: list = field(default_factory=list)
    source: nn.Module | None = None

    def add(self, node: Node) -> Node:
        self.nodes[node.name] = node
        return node

    def arguments(self) -> list[Node]:
        """The module's inputs in order, without parameters."""
        return [node for node in self.nodes.values() if node.op == "input"]

    def users(self, name: str) -> list[Node]:
        return [n for n in self.nodes.values() if name in n.inputs]

    def network(self) -> nx.DiGraph:
        """The data-flow graph, for order, liveness and drawing."""
        graph = nx.DiGraph()
        for node in self.nodes.values():
            graph.add_node(node.name, op=node.op, shape=node.shape)
            graph.add_edges_from((source, node.name) for source in node.inputs)
        return graph

    def drop_dead(self) -> None:
        """Remove nodes that no output depends on, except the module's inputs."""
        network, keep = self.network(), set(self.outputs) | {node.name for node in self.arguments()}
        for output in self.outputs:
            keep |= nx.ancestors(network, output)
        self.nodes = {name: node for name, node in self.nodes.items() if name in keep}

    def check(self) -> None:
        """Every operand is defined before its use; outputs exist."""
        seen: set[str] = set()
        for node in self.nodes.values():
            for source in node.inputs:
                if source not in seen:
                    raise InternalError(f"IR of {self.name}: {node.name} uses {source} before its definition")
            seen.add(node.name)
        if missing := [o for o in self.outputs if o not in seen]:
            raise InternalError(f"IR of {self.name}: outputs {missing} are not defined")


def unsupported(node: Node, reason: str = "") -> UserError:
    """The message for an operator that no kernel takes."""
    shape = " x ".join(str(d) for d in node.shape) or "unknown"
    why = reason or node.reason
    return UserError(
        f"module {node.module or 'model'}: operator {node.op} with result shape [{shape}] has no kernel"
        f"{f' ({why})' if why else ''}: express it with supported operators, or add a pass in "
        "compiler/passes and a kernel in compiler/kernels"
    )


def parameter_name(weight: str) -> str:
    """A parameter's state name as fused operators and checkpoints have it."""
    return weight.removeprefix("embeddings.")


def parameter_path(weight: str) -> str:
    """A parameter's path without its leaf: what fused operators are called."""
    return parameter_name(weight).rpartition(".")[0]


def torch_operator(op: str) -> Callable:
    """torch's operator of that name."""
    return getattr(torch.ops.aten, op).default


# --- fused operators -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Norm:
    """kind 'rms' or 'layer' over `width`; `name` is the weight's path without `.weight`."""

    name: str
    kind: str
    width: int
    epsilon: float = 1e-5


@dataclass(frozen=True)
class Linear:
    """float[rows, n_in] -> [rows, n_out]; `name` is the weight's path without `.weight`."""

    name: str
    n_in: int
    n_out: int
    bias: bool = False


@dataclass(frozen=True)
class Attention:
    """q, k, v projections of the normalised rows, optional RoPE, causal or not; leaves heads side by side."""

    q: Linear
    k: Linear
    v: Linear
    heads: int
    kv_heads: int
    head_dim: int
    rope: bool
    causal: bool


@dataclass(frozen=True)
class Residual:
    """rows += linear(quantised rows)."""

    linear: Linear


@dataclass(frozen=True)
class GatedMlp:
    """silu(gate(x)) * up(x)."""

    gate: Linear
    up: Linear


@dataclass(frozen=True)
class PlainMlp:
    """func(fc(x)), func 'gelu' or 'quick_gelu'."""

    fc: Linear
    func: str


@dataclass(frozen=True)
class Tokens:
    """A class token ahead of the patches' rows, and a position's row added to each; both are parameters' names."""

    first: str
    positions: str


# Steps on the way to those above: none is left when the passes are done, but for `Cached`, the grown caches.


@dataclass(frozen=True)
class Split:
    """float[rows, heads * head_dim] -> [heads, rows, head_dim]."""

    heads: int
    head_dim: int


@dataclass(frozen=True)
class Merge:
    """float[heads, rows, head_dim] -> [rows, heads * head_dim]."""


@dataclass(frozen=True)
class Rope:
    """The pairs (i, i + head_dim / 2) of float[heads, rows, head_dim] rotated: x * cos + (-high, low) * sin."""


@dataclass(frozen=True)
class CausalMask:
    """bool[seq, cache + seq], True where a query may look: the last query sees every key."""


@dataclass(frozen=True)
class Cached:
    """Keys or values float[heads, cache + seq, head_dim]: the past ones, and behind them those of the linear layer."""

    linear: Linear
    heads: int
    head_dim: int
    rope: bool


Fused = Norm | Linear | Attention | Residual | GatedMlp | PlainMlp | Tokens | Split | Merge | Rope | CausalMask | Cached


def linears(ops: list) -> list[Linear]:
    """Linear layers of fused operators, in the order of their weight streams."""
    found: list[Linear] = []
    for op in ops:
        match op:
            case Attention():
                found += [op.k, op.v, op.q]
            case Residual():
                found.append(op.linear)
            case GatedMlp():
                found += [op.gate, op.up]
            case PlainMlp():
                found.append(op.fc)
            case Linear():
                found.append(op)
    return found


def streams(ops: list, lanes: int) -> list[tuple[Linear, ...]]:
    """Linear layers by the weight stream that holds their rows, in order.

    gate and up share one, so that up's rows fill gate's last step; gate's must end with a vector word.
    """
    joint = {op.gate: op.up for op in ops if isinstance(op, GatedMlp) and op.gate.n_out % lanes == 0}
    return [(op, joint[op]) if op in joint else (op,) for op in linears(ops) if op not in joint.values()]


def norms(ops: list) -> list[Norm]:
    return [op for op in ops if isinstance(op, Norm)]
