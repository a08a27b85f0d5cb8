"""silu(linear) * linear becomes `mlp`, as do (quick) gelu of a linear."""

from .. import ir
from ..ir import unsupported
from .pattern import find, op, value
from .tools import fuse

QUICK_GELU = 1.702
FC = op("linear_op", x=value("x")).named("fc")
PATTERNS = {
    "gelu": op("gelu", self=FC),
    "quick_gelu": op("mul", self=FC, other=op("sigmoid", self=op("mul", self=FC, other=QUICK_GELU))),
}
GATED = op(
    "mul",
    self=op("silu", self=op("linear_op", x=value("x")).named("gate")),
    other=op("linear_op", x=value("x")).named("up"),
)


def fuse_mlp(graph: ir.Graph) -> None:
    for node in list(graph.nodes.values()):
        if node.name not in graph.nodes:
            continue
        if found := find(graph, node, GATED):
            _gated(graph, node, found)
            continue
        for func, pattern in PATTERNS.items():
            if found := find(graph, node, pattern):
                fuse(graph, node, "mlp", ir.PlainMlp(found["fc"].fused, func), x=found["x"])
                break


def _gated(graph: ir.Graph, node: ir.Node, found: dict) -> None:
    gate, up = found["gate"].fused, found["up"].fused
    if up.bias:
        raise unsupported(node, f"{up.name} has a bias; only the gate's layer may have one")
    if gate.n_out != up.n_out:
        raise unsupported(node, f"{gate.name} and {up.name} have {gate.n_out} and {up.n_out} outputs")
    fuse(graph, node, "mlp", ir.GatedMlp(gate, up), x=found["x"])
