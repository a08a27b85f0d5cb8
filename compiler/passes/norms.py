"""rms_norm and layer_norm of whole rows, with their parameters, become `norm`."""

from .. import ir
from ..ir import unsupported
from .pattern import constant, find, op, parameter, value
from .tools import fuse, path_of

SHAPE = {"input": value("x"), "normalized_shape": [constant("width")], "weight": parameter("weight")}
RMS = op("rms_norm", **SHAPE, eps=constant("epsilon"))
LAYER = op(
    "layer_norm", **SHAPE, bias=parameter("bias"), eps=constant("epsilon", 1e-5), cudnn_enable=constant("how", True)
)  # which library computes it


def fuse_norms(graph: ir.Graph) -> None:
    for node in list(graph.nodes.values()):
        for kind, pattern in (("rms", RMS), ("layer", LAYER)):
            if node.op != pattern.op:
                continue
            found = find(graph, node, pattern)
            if found is None:
                raise unsupported(node, node.reason)
            if len(node.shape) != 2 or found["weight"].shape != (found["width"],):
                raise unsupported(node, "a norm goes over whole rows [rows, width]")
            name = path_of(node, found["weight"], found.get("bias"))
            fuse(graph, node, "norm", ir.Norm(name, kind, found["width"], found["epsilon"]), x=found["x"])
