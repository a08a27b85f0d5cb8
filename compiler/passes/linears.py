"""linear becomes `linear_op`: rows times a parameter, which may be a flattened one, and a bias."""

from math import prod

from .. import ir
from ..ir import unsupported
from .pattern import Optional, either, find, op, parameter, value
from .tools import fuse, path_of

LINEAR = op(
    "linear",
    input=value("x"),
    bias=Optional(parameter("bias")),
    weight=either(parameter("weight"), op("flatten", self=parameter("weight"), start_dim=1)),
)


def fuse_linears(graph: ir.Graph) -> None:
    for node in list(graph.nodes.values()):
        if node.op != "linear":
            continue
        found = find(graph, node, LINEAR)
        if found is None or len(node.shape) != 2:
            raise unsupported(node, node.reason or "it has to multiply rows [rows, width] by a parameter")
        n_out, *rest = found["weight"].shape
        name = path_of(node, found["weight"], found.get("bias"))
        fuse(graph, node, "linear_op", ir.Linear(name, prod(rest), n_out, "bias" in found), x=found["x"])
