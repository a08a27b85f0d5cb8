"""Nodes that say nothing go; what is computed twice is computed once."""

from typing import Any

import torch

from ..edit import Editor, number
from ..ir import ON_DEVICE, Node, Ref

NOISE = (
    "dropout",
    "feature_dropout",
    "alias",
    "contiguous",
    "clone",
    "detach",
    "detach_",
    "lift_fresh_copy",
    "identity",
    "to",
    "_to_copy",
    "type_as",
    "float",
)
"""Operators that give their first operand, if both are of a floating type (or of the same one)."""


def drop_noise(e: Editor) -> None:
    """Copies, dropout in evaluation, casts between floating types, and what nobody reads."""
    for node in list(e.graph.nodes.values()):
        if node.op in ("view", "_unsafe_view") and "size" in node.arguments:
            # What it reads may have been contiguous only because of a copy that goes.
            node.op, node.target = "reshape", torch.ops.aten.reshape.default
            node.arguments = {"self": node.arguments["self"], "shape": node.arguments["size"]}
        if node.op in NOISE and node.inputs and not node.arguments.get("train"):
            source = e.graph.nodes[node.inputs[0]]
            both = [t for t in (node.dtype, source.dtype) if t is not None]
            if len(set(both)) < 2 or all(t.is_floating_point for t in both):
                e.bypass(node, source)
    e.graph.drop_dead()


LIKE = {"zeros_like": 0.0, "new_zeros": 0.0, "zero": 0.0, "ones_like": 1.0, "new_ones": 1.0}
NAMED = {"full_like": "fill_value", "new_full": "fill_value"}
"""Operators that make a tensor of one value, and take nothing but the type from their operand."""


def drop_zeros(e: Editor) -> None:
    """Sums that begin with zeros begin with their first summand; other tensors of one value are the host's."""
    for node in e.device():
        value = LIKE[node.op] if node.op in LIKE else node.arguments.get(NAMED.get(node.op, ""))
        known = number(value)
        if known is None:
            continue
        e.fill(node, known, node.dtype)
        if known == 0:
            for user in [u for u in e.graph.users(node.name) if u.op in ("add", "add_") and "alpha" not in u.arguments]:
                others = [e.graph.nodes[n] for n in user.inputs if n != node.name]
                if len(others) == 1 and others[0].shape == user.shape:
                    e.bypass(user, others[0])
    e.graph.drop_dead()


def drop_neutral(e: Editor) -> None:
    """Sums with 0 and products with 1."""
    for node in e.device():
        if (node.op, node.arguments.get("factor")) == ("scale", 1) or (node.op, node.arguments.get("value")) == (
            "offset",
            0,
        ):
            e.bypass(node, e.graph.nodes[node.inputs[0]])
    e.graph.drop_dead()


def merge_views(e: Editor) -> None:
    """Reshapes of reshapes, permutations of permutations, and views that change nothing."""
    for node in e.device():
        source = e.operand(node, "x")
        if source is None or node.op not in ("reshape", "permute", "expand"):
            continue
        if node.op == "permute":
            source = _merge_permutation(e, node, source)
        if node.op == "reshape" and source.op == "reshape":
            source = e.graph.nodes[source.inputs[0]]
            node.arguments["x"] = Ref(source.name)
        if node.op in ("reshape", "expand") and source.shape == node.shape:
            e.bypass(node, source)
    e.graph.drop_dead()


def _merge_permutation(e: Editor, node: Node, source: Node) -> Node:
    """A permutation behind another one, or one that moves axes of 1 alone; returns what the node reads then."""
    order = list(node.arguments["order"])
    if source.op == "permute" and source.kind == ON_DEVICE:
        before = source.arguments["order"]
        node.arguments = {"x": source.arguments["x"], "order": [before[i] for i in order]}
        source, order = e.graph.nodes[node.inputs[0]], node.arguments["order"]
    if order == sorted(order):
        e.bypass(node, source)
    elif _only_ones_move(source, order):
        e.turn(node, "reshape", x=Ref(source.name), shape=list(node.shape))
    return source


def _only_ones_move(source: Node, order: list[int]) -> bool:
    """Whether the axes longer than 1 keep their order."""
    kept = [i for i in order if source.shape[i] != 1]
    return kept == sorted(kept)


def share_equal_nodes(e: Editor) -> None:
    """Of nodes with the same operator and arguments, the first one remains."""
    seen: dict[Any, Node] = {}
    for node in list(e.graph.nodes.values()):
        if node.op in ("input", "parameter"):
            continue
        key = (node.op, str(node.target), repr(sorted(node.arguments.items(), key=lambda item: item[0])))
        if key in seen and node.name not in e.graph.outputs:
            e.bypass(node, seen[key])
        else:
            seen.setdefault(key, node)
    e.graph.drop_dead()
