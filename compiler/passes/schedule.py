"""The fused operators in data-flow order; anything left over has no kernel."""

import networkx as nx

from hw.spec.errors import UserError

from .. import ir
from ..ir import unsupported

FUSED = ("norm", "attention", "mlp", "residual", "linear_op", "tokens")


def schedule(graph: ir.Graph) -> None:
    left = [node for node in graph.nodes.values() if node.op not in (*FUSED, "input", "parameter", "cached")]
    if left:
        raise unsupported(next((node for node in left if node.reason), left[0]))
    position = {name: at for at, name in enumerate(graph.nodes)}
    order = list(nx.lexicographical_topological_sort(graph.network(), key=position.__getitem__))
    graph.fused = [graph.nodes[name].fused for name in order if graph.nodes[name].op in FUSED]
    last = _require_chain(graph, order)
    _require_results(graph, last)
    _require_names(graph)


def _require_chain(graph: ir.Graph, order: list[str]) -> str:
    """Kernels pass rows from operator to operator: each one must feed the next, residuals the one after the branch.

    Returns the last one's name.
    """
    last = stream = graph.arguments()[0].name
    for name in order:
        node = graph.nodes[name]
        if node.op not in FUSED:
            continue
        if node.op == "residual" and node.arguments["stream"].name != stream:
            raise unsupported(
                node,
                f"it adds to {node.arguments['stream'].name}, kernels to the rows as they were "
                "after the residual before",
            )
        if node.arguments["x"].name != last:
            raise unsupported(node, f"it works on {node.arguments['x'].name}, kernels on what came before it, {last}")
        last = name
        stream = name if node.op == "residual" else stream
    return last


def _require_results(graph: ir.Graph, last: str) -> None:
    """Rows first; behind them nothing, or the grown caches of the attention."""
    if not graph.fused or graph.outputs[0] != last:
        raise UserError(f"module {graph.name}: its first result is not what its last operator gives: return that one")
    wanted: list[tuple] = []
    for node in graph.nodes.values():
        if node.op == "attention" and node.fused.causal:
            wanted += [(node.fused.k, node.arguments["past_k"]), (node.fused.v, node.arguments["past_v"])]
    caches = [graph.nodes[name] for name in graph.outputs[1:]]
    found = [(node.fused.linear, node.arguments["past"]) if node.op == "cached" else None for node in caches]
    if found and found != wanted:
        raise UserError(
            f"module {graph.name}: its results are {', '.join(graph.outputs)}: return the rows alone, or "
            "the rows, all keys and all values of its one attention"
        )


def _require_names(graph: ir.Graph) -> None:
    """Records hold a parameter once."""
    names = [op.name for op in ir.linears(graph.fused)] + [op.name for op in ir.norms(graph.fused)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"module {graph.name}: the parameters of {twice[0]} are used twice: give each use its own")
