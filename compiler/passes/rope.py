"""x * cos + cat(-high, low) * sin, of the halves of x's last axis, becomes `rope`."""

from .. import ir
from .pattern import constant, find, op, value
from .tools import fuse, same_axes

HALVES = op("chunk", self=value("x"), chunks=2, dim=constant("split", 0)).named("halves")
TURNED = op(
    "cat",
    tensors=[op("neg", self=op("getitem", source=HALVES, index=1)), op("getitem", source=HALVES, index=0)],
    dim=constant("join", 0),
).named("turned")
ROPE = op("add", self=op("mul", self=value("x"), other=value("cos")), other=op("mul", self=TURNED, other=value("sin")))


def fuse_rope(graph: ir.Graph) -> None:
    for node in list(graph.nodes.values()):
        if node.name not in graph.nodes or not (found := find(graph, node, ROPE)):
            continue
        x, tables = found["x"], (found["cos"], found["sin"])
        last = {len(x.shape) - 1}
        if (
            len(x.shape) == 3
            and same_axes(x, (found["split"],), last)
            and same_axes(x, (found["join"],), last)
            and all(table.shape == x.shape[1:] for table in tables)
        ):
            fuse(graph, node, "rope", ir.Rope(), x=x, cos=found["cos"], sin=found["sin"])
