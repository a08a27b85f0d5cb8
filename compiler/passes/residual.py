"""x + linear(y) becomes `residual`, remaining linears become fused ones; class token and positions become `tokens`."""

from .. import ir
from .tools import fuse, linear_of, producer


def fuse_residual(graph: ir.Graph) -> None:
    for node in list(graph.nodes.values()):
        if node.name not in graph.nodes or node.op != "add":
            continue
        if branch := producer(graph, node, 1, "linear"):
            fuse(graph, node, "residual", (node.inputs[0], branch.inputs[0]), ir.Residual(linear_of(graph, branch)))
        elif (joined := producer(graph, node, 0, "cat")) and graph.nodes[node.inputs[1]].weight:
            fuse(graph, node, "tokens", (joined.inputs[-1],))
    for node in list(graph.nodes.values()):
        if node.op == "linear":
            fuse(graph, node, "linear_op", node.inputs[:1], linear_of(graph, node))
