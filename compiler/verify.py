"""The verifier that runs after every pass."""

from hw.spec.errors import InternalError

from . import ir


def verify(graph: ir.Graph, after: str) -> None:
    """Definitions precede uses, weights have shapes, fused operators' widths agree with their nodes."""
    graph.check()
    for node in graph.nodes.values():
        fused = node.attributes.get("fused")
        expected = _width(fused)
        if expected is not None and node.shape and node.shape[-1] != expected:
            raise InternalError(f"after pass {after}: {node.name} of {graph.name} has width {node.shape[-1]}, its "
                                f"operator {expected}")


def _width(fused) -> int | None:
    match fused:
        case ir.Norm():
            return fused.width
        case ir.Linear():
            return fused.n_out
        case ir.Residual():
            return fused.linear.n_out
        case ir.Attention():
            return fused.heads * fused.head_dim
        case ir.GatedMlp():
            return fused.up.n_out
        case ir.PlainMlp():
            return fused.fc.n_out
    return None
