"""cat(class token, rows) + positions becomes `tokens`."""

from .. import ir
from .pattern import constant, find, op, parameter, value
from .tools import fuse

TOKENS = op(
    "add",
    self=op(
        "cat", tensors=[op("unsqueeze", self=parameter("first"), dim=0), value("x")], dim=constant("axis", 0)
    ).named("rows"),
    other=parameter("positions"),
)


def fuse_tokens(graph: ir.Graph) -> None:
    for node in list(graph.nodes.values()):
        if node.name in graph.nodes and (found := find(graph, node, TOKENS)):
            rows, positions = found["rows"].shape, found["positions"]
            if found["axis"] in (0, -2) and len(rows) == 2 and positions.shape == rows:
                names = (ir.parameter_name(found[each].weight) for each in ("first", "positions"))
                fuse(graph, node, "tokens", ir.Tokens(*names), x=found["x"])
