"""reshape [rows, heads, hd] -> transpose becomes `split`, transpose -> reshape [rows, width] becomes `merge`."""

from .. import ir
from .pattern import constant, find, op, value
from .tools import fuse, same_axes

AXES = {"dim0": constant("a"), "dim1": constant("b")}
SPLIT = op("transpose", self=op("reshape", self=value("x"), shape=constant("_")).named("heads"), **AXES)
MERGE = op("reshape", self=op("transpose", self=value("x"), **AXES).named("rows"), shape=constant("_"))
"""A reshape's result is what its shape says: argument `shape` has nothing to add."""


def fuse_heads(graph: ir.Graph) -> None:
    for node in list(graph.nodes.values()):
        if node.name not in graph.nodes:
            continue
        if (found := find(graph, node, SPLIT)) and _splits(node, found):
            _, heads, head_dim = found["heads"].shape
            fuse(graph, node, "split", ir.Split(heads, head_dim), x=found["x"])
        elif (found := find(graph, node, MERGE)) and _merges(node, found):
            fuse(graph, node, "merge", ir.Merge(), x=found["x"])


def _splits(node: ir.Node, found: dict) -> bool:
    rows, heads = found["x"].shape, found["heads"].shape
    return (
        len(rows) == 2
        and len(heads) == 3
        and heads[0] == rows[0]
        and isinstance(heads[1], int)
        and isinstance(heads[2], int)
        and same_axes(node, (found["a"], found["b"]), {0, 1})
    )


def _merges(node: ir.Node, found: dict) -> bool:
    rows = found["rows"]
    return (
        len(node.shape) == 2
        and len(rows.shape) == 3
        and node.shape[0] == rows.shape[0]
        and same_axes(rows, (found["a"], found["b"]), {0, 1})
    )
