"""What passes share: replacing nodes by fused operators, parameters and axes."""

from typing import Any

from .. import ir
from ..ir import Ref, unsupported


def fuse(graph: ir.Graph, node: ir.Node, op: str, fused: Any, **operands: ir.Node) -> None:
    """`node` becomes the fused operator `op` over those operands; what only it needed goes."""
    node.op, node.fused, node.target = op, fused, None
    node.arguments = {name: Ref(operand.name) for name, operand in operands.items()}
    graph.drop_dead()


def path_of(node: ir.Node, weight: ir.Node, bias: ir.Node | None = None) -> str:
    """The path of an operator's parameters; UserError where they are not `path.weight` and `path.bias`."""
    path, leaf = ir.parameter_path(weight.weight or ""), (weight.weight or "").rpartition(".")[2]
    if leaf != "weight" or not path:
        raise unsupported(node, f"its weight is the parameter {weight.weight}, which has to be called <path>.weight")
    if bias is not None and bias.weight != (weight.weight or "").removesuffix("weight") + "bias":
        raise unsupported(node, f"its bias {bias.weight} is not beside its weight {weight.weight}")
    return path


def same_axes(node: ir.Node, found: tuple[int, ...], wanted: set[int]) -> bool:
    """Whether axes of the node's result, counted from either end, are those."""
    return {axis % len(node.shape) for axis in found} == wanted
