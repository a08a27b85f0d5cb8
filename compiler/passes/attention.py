"""scaled_dot_product_attention with its projections, rotation, cache and mask becomes `attention`."""

from .. import ir
from ..capture import unsupported
from .tools import fuse, linear_of, producer


def fuse_attention(graph: ir.Graph) -> None:
    for node in list(graph.nodes.values()):
        if node.op == "scaled_dot_product_attention":
            _fuse(graph, node)


def _fuse(graph: ir.Graph, node: ir.Node) -> None:
    query, key, value = (_projection(graph, node, operand) for operand in range(3))
    linears = [producer(graph, split, 0, "linear") for _, split in (query, key, value)]
    users = graph.users(node.name)
    if None in linears or len({n.inputs[0] for n in linears}) != 1 or [u.op for u in users] != ["merge"]:
        raise unsupported(node)
    if query[0] != key[0] or value[0]:
        raise unsupported(node)
    (q, k, v), split = (linear_of(graph, n) for n in linears), query[1]
    causal = len(node.inputs) > 3
    if causal and not _is_causal(graph, node):
        raise unsupported(node)
    fused = ir.Attention(q, k, v, split.attributes["heads"], key[1].attributes["heads"],
                         split.attributes["head_dim"], rope=query[0], causal=causal)
    graph.outputs = graph.outputs[:1]  # the grown caches live in memory
    fuse(graph, users[0], "attention", (linears[0].inputs[0],), fused)


def _projection(graph: ir.Graph, node: ir.Node, operand: int) -> tuple[bool, ir.Node]:
    """(rotated, split node) behind an operand, past the concatenation with the cache."""
    found = producer(graph, node, operand)
    if found.op == "cat":
        past, found = producer(graph, found, 0, "input"), producer(graph, found, 1)
        if past is None:
            raise unsupported(node)
    rotated = found.op == "rope"
    found = producer(graph, found, 0) if rotated else found
    if found.op != "split":
        raise unsupported(node)
    return rotated, found


def _is_causal(graph: ir.Graph, node: ir.Node) -> bool:
    """tril(ones(seq, keys), keys - seq): the last query sees every key."""
    mask = producer(graph, node, 3, "tril")
    return mask is not None and producer(graph, mask, 0, "ones") is not None and (
        mask.attributes["constants"] == ("cache",))
