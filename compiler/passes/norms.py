"""rms_norm and layer_norm with their weights become `norm`."""

from .. import ir
from .tools import path


def fuse_norms(graph: ir.Graph) -> None:
    for node in list(graph.nodes.values()):
        if node.op in ("rms_norm", "layer_norm"):
            width, *rest = node.attributes["constants"]
            epsilon = next(c for c in rest if isinstance(c, float))
            weight = graph.nodes[node.inputs[1]].weight
            kind = "rms" if node.op == "rms_norm" else "layer"
            node.attributes["fused"] = ir.Norm(path(weight), kind, width, epsilon)
            node.op, node.inputs = "norm", node.inputs[:1]
    graph.drop_dead()
