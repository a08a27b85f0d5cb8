"""silu(linear) * linear becomes `gated`; (quick) gelu of a linear becomes `plain`."""

from .. import ir
from .tools import fuse, linear_of, producer

QUICK_GELU = 1.702


def fuse_mlp(graph: ir.Graph) -> None:
    for node in list(graph.nodes.values()):
        if node.name not in graph.nodes:
            continue
        if node.op == "gelu" and (fc := producer(graph, node, 0, "linear")) and not node.attributes.get("approximate"):
            fuse(graph, node, "mlp", fc.inputs[:1], ir.PlainMlp(linear_of(graph, fc), "gelu"))
        elif node.op == "mul":
            _gated(graph, node) or _quick_gelu(graph, node)


def _gated(graph: ir.Graph, node: ir.Node) -> bool:
    silu, up = producer(graph, node, 0, "silu"), producer(graph, node, 1, "linear")
    gate = producer(graph, silu, 0, "linear") if silu else None
    if gate is None or up is None or gate.inputs[0] != up.inputs[0]:
        return False
    fuse(graph, node, "mlp", gate.inputs[:1], ir.GatedMlp(linear_of(graph, gate), linear_of(graph, up)))
    return True


def _quick_gelu(graph: ir.Graph, node: ir.Node) -> bool:
    fc, sigmoid = producer(graph, node, 0, "linear"), producer(graph, node, 1, "sigmoid")
    scaled = producer(graph, sigmoid, 0, "mul") if sigmoid else None
    if fc is None or scaled is None or scaled.inputs != (fc.name,) or scaled.attributes["constants"] != (QUICK_GELU,):
        return False
    fuse(graph, node, "mlp", fc.inputs[:1], ir.PlainMlp(linear_of(graph, fc), "quick_gelu"))
    return True
