"""reshape [seq, heads, hd] -> transpose becomes `split`, transpose -> reshape [seq, width] becomes `merge`."""

from .. import ir
from .tools import fuse, producer


def fuse_heads(graph: ir.Graph) -> None:
    for node in list(graph.nodes.values()):
        if node.name not in graph.nodes or "constants" not in node.attributes:
            continue
        before = producer(graph, node, 0)
        if node.op == "transpose" and before.op == "reshape" and len(before.shape) == 3:
            fuse(graph, node, "split", before.inputs, heads=node.shape[0], head_dim=node.shape[2])
        elif node.op == "reshape" and before.op == "transpose" and len(node.shape) == 2:
            fuse(graph, node, "merge", before.inputs)
