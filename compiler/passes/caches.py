"""Past keys or values, and behind them the new ones, become `cached`; the mask that is causal behind them `causal`."""

import torch

from .. import ir
from ..capture import CACHE, SEQ
from .pattern import constant, either, find, op, value
from .tools import fuse, same_axes

PROJECTED = op("split", x=op("linear_op", x=value("x")).named("linear")).named("split")
ROTATED = op("rope", x=PROJECTED, cos=value("cos"), sin=value("sin"))
CACHED = op("cat", tensors=[value("past"), either(ROTATED, PROJECTED)], dim=constant("axis", 0))
WHERE = {"device": constant("device", None), "pin_memory": constant("pinned", False)}
MASK = op("tril", self=op("ones", size=constant("size"), dtype=torch.bool, **WHERE), diagonal=CACHE)


def fuse_caches(graph: ir.Graph) -> None:
    for node in list(graph.nodes.values()):
        if node.name not in graph.nodes:
            continue
        if (
            (found := find(graph, node, CACHED))
            and found["past"].op == "input"
            and same_axes(node, (found["axis"],), {1})
        ):
            tables = {name: found[name] for name in ("cos", "sin") if name in found}
            split = found["split"].fused
            cached = ir.Cached(found["linear"].fused, split.heads, split.head_dim, bool(tables))
            fuse(graph, node, "cached", cached, x=found["x"], past=found["past"], **tables)
        elif (found := find(graph, node, MASK)) and _is_square(node.shape):
            fuse(graph, node, "causal", ir.CausalMask())


def _is_square(shape: ir.Shape) -> bool:
    """[seq, seq + cache]."""
    return shape[0] == SEQ and set(str(shape[1]).split(" + ")) == {SEQ, CACHE}
