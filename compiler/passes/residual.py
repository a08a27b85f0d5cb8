"""x + linear(y) becomes `residual`."""

from .. import ir
from .pattern import find, op, value
from .tools import fuse

RESIDUAL = op("add", self=value("stream"), other=op("linear_op", x=value("x")).named("branch"))


def fuse_residual(graph: ir.Graph) -> None:
    for node in list(graph.nodes.values()):
        if node.name not in graph.nodes or not (found := find(graph, node, RESIDUAL)):
            continue
        if found["stream"].shape == found["branch"].shape == node.shape:
            fuse(graph, node, "residual", ir.Residual(found["branch"].fused), stream=found["stream"], x=found["x"])
