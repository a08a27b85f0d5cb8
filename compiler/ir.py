"""The compiler's IR: the captured graph (nodes with symbolic shapes), and the fused operators made from it.

A captured `Graph` mirrors what torch.export saw; passes rewrite it until its `fused` list describes a layer entirely.
Kernels are selected by the fused operators' types, and read nothing but their attributes.
"""

from dataclasses import dataclass, field

import networkx as nx

from hw.spec.errors import InternalError

Dim = int | str
"""A constant or the name of a symbolic length."""
Shape = tuple[Dim, ...]


@dataclass
class Node:
    """One operation; `inputs` are node names, `weight` the parameter a placeholder stands for."""

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: Shape
    attributes: dict = field(default_factory=dict)
    weight: str | None = None
    module: str = ""


@dataclass
class Graph:
    """Nodes in execution order. `fused` grows as passes recognise operators."""

    name: str
    nodes: dict[str, Node] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    fused: list = field(default_factory=list)

    def add(self, node: Node) -> Node:
        self.nodes[node.name] = node
        return node

    def users(self, name: str) -> list[Node]:
        return [n for n in self.nodes.values() if name in n.inputs]

    def network(self) -> nx.DiGraph:
        """The data-flow graph, for order, liveness and drawing."""
        graph = nx.DiGraph()
        for node in self.nodes.values():
            graph.add_node(node.name, op=node.op, shape=node.shape)
            graph.add_edges_from((source, node.name) for source in node.inputs)
        return graph

    def live_peak(self) -> int:
        """Largest number of computed values alive at once in execution order."""
        order = {name: at for at, name in enumerate(self.nodes)}
        last = {name: max((order[u.name] for u in self.users(name)), default=at) for name, at in order.items()}
        return max((sum(order[n] <= at <= last[n] for n in order if not self.nodes[n].weight)
                    for at in order.values()), default=0)

    def drop_dead(self) -> None:
        """Remove nodes no output depends on."""
        network, keep = self.network(), set(self.outputs)
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


Fused = Norm | Linear | Attention | Residual | GatedMlp | PlainMlp


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
