"""The fused operators in data-flow order; anything left over has no kernel."""

import networkx as nx

from .. import ir
from ..capture import unsupported

FUSED = ("norm", "attention", "mlp", "residual", "linear_op")


def schedule(graph: ir.Graph) -> None:
    for node in graph.nodes.values():
        if node.op not in (*FUSED, "input", "tokens"):
            raise unsupported(node)
    position = {name: at for at, name in enumerate(graph.nodes)}
    order = nx.lexicographical_topological_sort(graph.network(), key=position.__getitem__)
    graph.fused = [graph.nodes[name].attributes["fused"] for name in order if graph.nodes[name].op in FUSED]
    _require_chain(graph)


def _require_chain(graph: ir.Graph) -> None:
    """Kernels pass rows from operator to operator: each one must feed the next, residuals the one after the branch."""
    stream = next(n.name for n in graph.nodes.values() if n.op == "input" and not n.weight)
    last = stream
    for node in graph.nodes.values():
        if node.op in (*FUSED, "tokens"):
            expected = (stream, last) if node.op == "residual" else (last,)
            if tuple(node.inputs) != expected:
                raise unsupported(node)
            last = node.name
            if node.op == "residual":
                stream = node.name
