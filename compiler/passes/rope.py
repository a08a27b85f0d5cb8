"""x * cos + cat(-high, low) * sin becomes `rope`."""

from .. import ir
from .tools import fuse, producer


def fuse_rope(graph: ir.Graph) -> None:
    for node in list(graph.nodes.values()):
        if node.name in graph.nodes and node.op == "add" and (source := _rotated(graph, node)):
            fuse(graph, node, "rope", (source,))


def _rotated(graph: ir.Graph, node: ir.Node) -> str | None:
    """The value that `node` rotates, if it does."""
    plain, turned = producer(graph, node, 0, "mul"), producer(graph, node, 1, "mul")
    halves = producer(graph, turned, 0, "cat") if turned else None
    if plain is None or halves is None or len(plain.inputs) != 2:
        return None
    negated, low = producer(graph, halves, 0, "neg"), producer(graph, halves, 1, "getitem")
    high = producer(graph, negated, 0, "getitem") if negated else None
    chunks = [producer(graph, part, 0, "chunk") for part in (high, low) if part is not None]
    sources = {c.inputs[0] for c in chunks if c is not None} | {plain.inputs[0]}
    ordered = (high is not None and low is not None and high.attributes["constants"] == (1,)
               and low.attributes["constants"] == (0,))
    return plain.inputs[0] if len(chunks) == 2 and len(sources) == 1 and ordered else None
