"""scaled_dot_product_attention of projected rows, over the rows themselves or a cache, becomes `attention`."""

import math
from dataclasses import dataclass

from .. import ir
from ..ir import unsupported
from .caches import PROJECTED, ROTATED
from .pattern import Optional, constant, find, op, value
from .tools import fuse

ATTEND = op(
    "scaled_dot_product_attention",
    query=value("query"),
    key=value("key"),
    value=value("value"),
    attn_mask=Optional(value("mask")),
    scale=constant("scale", None),
    enable_gqa=constant("grouped", False),
)
ATTENTION = op("merge", x=ATTEND.named("attend"))


@dataclass(frozen=True)
class _Heads:
    """An operand of attention: heads of a linear layer, rotated where there are tables, behind `past` if there is."""

    x: ir.Node
    linear: ir.Linear
    heads: int
    head_dim: int
    tables: dict[str, ir.Node]
    past: ir.Node | None = None


def fuse_attention(graph: ir.Graph) -> None:
    for node in list(graph.nodes.values()):
        if node.op == ATTEND.op and (
            find(graph, node, ATTEND) is None or [user.op for user in graph.users(node.name)] != ["merge"]
        ):
            raise unsupported(node, node.reason or "its heads have to end up side by side in rows, once")
    for node in list(graph.nodes.values()):
        if found := find(graph, node, ATTENTION):
            query, key, values = (
                _heads(graph, found["attend"], name, found[name]) for name in ("query", "key", "value")
            )
            if why := _obstacle(found, query, key, values):
                raise unsupported(found["attend"], why)
            past = {name: each.past for name, each in (("past_k", key), ("past_v", values)) if each.past is not None}
            fuse(
                graph,
                node,
                "attention",
                ir.Attention(
                    query.linear,
                    key.linear,
                    values.linear,
                    query.heads,
                    key.heads,
                    query.head_dim,
                    rope=bool(query.tables),
                    causal=bool(past),
                ),
                x=query.x,
                **query.tables,
                **past,
            )


def _heads(graph: ir.Graph, attend: ir.Node, name: str, node: ir.Node) -> _Heads:
    if node.op == "cached":
        operands = {which: graph.nodes[ref.name] for which, ref in node.arguments.items()}
        return _Heads(
            operands.pop("x"),
            node.fused.linear,
            node.fused.heads,
            node.fused.head_dim,
            past=operands.pop("past"),
            tables=operands,
        )
    for pattern in (ROTATED, PROJECTED):
        if found := find(graph, node, pattern):
            split = found["split"].fused
            tables: dict[str, ir.Node] = {which: found[which] for which in ("cos", "sin") if which in found}
            return _Heads(found["x"], found["linear"].fused, split.heads, split.head_dim, tables)
    raise unsupported(
        attend,
        f"its {name} is the result of {node.op}{f' ({node.reason})' if node.reason else ''}, it "
        "has to be the heads of a linear layer of the rows, rotated or not",
    )


def _obstacle(found: dict, query: _Heads, key: _Heads, values: _Heads) -> str:
    """What kernels cannot do about these operands; empty if they can."""
    scale, mask = found["scale"], found.get("mask")
    pairs = [
        *(("cos", t["cos"]) for t in (query.tables, key.tables) if t),
        *(("sin", t["sin"]) for t in (query.tables, key.tables) if t),
        *((name, each.past) for name, each in (("past_k", key), ("past_v", values)) if each.past is not None),
    ]
    others = [(name, node) for name, node in pairs if node.op != "input" or node.name != name]
    shape = (key.heads, key.head_dim)
    rules = (
        (query.x is key.x is values.x, "queries, keys and values are of different rows"),
        (
            scale is None or math.isclose(scale, query.head_dim**-0.5, rel_tol=1e-12),
            f"scale is {scale}, kernels divide by the root of head_dim {query.head_dim}",
        ),
        (
            bool(query.tables) == bool(key.tables) and not values.tables,
            "queries and keys have to be rotated, or neither, and values never",
        ),
        (
            not others,
            others
            and f"{others[0][0]} is {others[0][1].name} ({others[0][1].op}), it has to be the input "
            f"{others[0][0]} as it is",
        ),
        (
            query.past is None and (key.past is None) == (values.past is None),
            "keys and values have to lie behind a cache, or neither",
        ),
        (
            mask is None or mask.op == "causal",
            mask and f"its mask is the result of {mask.op}, it has to be tril(ones(seq, cache + seq), cache)",
        ),
        ((mask is None) == (key.past is None), "attention over a cache has to be causal, and no other"),
        (
            (values.heads, values.head_dim) == shape and query.head_dim == key.head_dim,
            f"keys are {shape} (heads, width), values {(values.heads, values.head_dim)}",
        ),
        (
            query.heads == key.heads or (found["grouped"] and query.heads % key.heads == 0),
            f"{query.heads} query heads do not share {key.heads} key heads",
        ),
    )
    return next((str(why) for holds, why in rules if not holds), "")


__all__ = ["fuse_attention"]
