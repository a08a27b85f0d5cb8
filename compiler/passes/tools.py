"""What passes share: matching operands and replacing nodes by fused ones."""

from typing import Any

from .. import ir
from ..capture import unsupported


def path(weight: str | None) -> str:
    """A parameter's path without its leaf: what fused operators are called."""
    return (weight or "").rsplit(".", 1)[0].removeprefix("embeddings.")


def producer(graph: ir.Graph, node: ir.Node, operand: int, op: str | None = None) -> Any:
    """The ir.Node behind an operand if it has that op, else None."""
    if operand >= len(node.inputs):
        return None
    found = graph.nodes[node.inputs[operand]]
    return found if op is None or found.op == op else None


def fuse(graph: ir.Graph, node: ir.Node, op: str, inputs: tuple[str, ...], fused=None, **attributes) -> None:
    """Turn `node` into `op` over `inputs`; what only it needed goes."""
    node.op, node.inputs, node.attributes = op, inputs, {"fused": fused, **attributes}
    graph.drop_dead()


def linear_of(graph: ir.Graph, node: ir.Node) -> ir.Linear:
    """The Linear of a `linear` node."""
    weight = graph.nodes[node.inputs[1]]
    if weight.weight is None:
        raise unsupported(node)
    n_out, n_in = weight.attributes.get("matrix", weight.shape)
    return ir.Linear(path(weight.weight), n_in, n_out, len(node.inputs) > 2)
