"""Attention: torch's operator, and written out with softmax and products. `heads` makes the normal form of it."""

import math

import torch

from ..edit import Editor
from ..ir import ON_DEVICE, Node, Ref
from .heads import Found, turn
from .masks import LOW, Mask


def find_attention(e: Editor) -> None:
    """In the order of execution: an attention tells which inputs are masks of those behind it."""
    for node in e.device():
        found = None
        if node.op == "scaled_dot_product_attention":
            found = _own(e, node)
        elif node.op in ("matmul", "bmm"):
            found = _written_out(e, node)
        if found is not None:
            turn(e, node, found)
    e.graph.drop_dead()


def _own(e: Editor, node: Node) -> Found | None:
    a = node.arguments
    if a.get("dropout_p"):
        return None
    q = e.graph.nodes[a["query"].name]
    scale = 1 / math.sqrt(int(q.shape[-1])) if a.get("scale") is None else float(a["scale"])
    masks = [] if a.get("attn_mask") is None else [Mask(a["attn_mask"])]
    return Found(a["query"], a["key"], a["value"], scale, masks, bool(a.get("is_causal")))


def _written_out(e: Editor, node: Node) -> Found | None:
    """softmax(mask(cap(q k^T scale))) v."""
    probabilities, v = list(node.arguments.values())[:2]
    weights = e.of(probabilities)
    while weights is not None and e.form(weights, "reshape") and weights.shape[-2:] == _source(e, weights).shape[-2:]:
        weights = _source(e, weights)
    softmax = e.form(weights, "softmax")
    if softmax is None or e.is_constant(v):
        return None
    layers = _Layers(e, softmax.arguments["x"])
    product = e.is_op(layers.ref, "matmul", "bmm")
    if product is None:
        return None
    q, k_t = list(product.arguments.values())[:2]
    q, factor = _without_factors(e, q)
    k_t, factor_k = _without_factors(e, k_t)
    k, factor_k2 = _without_factors(e, _turned(e, node, k_t))
    return Found(q, k, v, layers.scale * factor * factor_k * factor_k2, layers.masks, softcap=layers.softcap)


def _source(e: Editor, node: Node) -> Node:
    return e.graph.nodes[node.inputs[0]]


class _Layers:
    """What lies between the product of queries and keys (`ref`, in the end) and the softmax, from the outside in."""

    def __init__(self, e: Editor, ref: Ref) -> None:
        self.e, self.ref = e, ref
        self.factor = 1.0
        self.softcap: float | None = None
        self.masks: list[Mask] = []
        while self._peel():
            pass

    @property
    def scale(self) -> float:
        """Of the product: with a cap, cap * tanh(product * scale / cap)."""
        return self.factor * (1.0 if self.softcap is None else self.softcap)

    def _peel(self) -> bool:
        node = self.e.graph.nodes[self.ref.name]
        if node.target is not None and node.op not in ("where", "masked_fill"):
            return False
        if node.op == "scale":
            self.factor *= float(node.arguments["factor"])
            self.ref = node.arguments["x"]
        elif node.op == "activation" and node.arguments["function"] == "tanh" and self.softcap is None:
            self.softcap, self.factor = self.factor, 1.0
            self.ref = node.arguments["x"]
        elif node.op == "reshape" and self._keeps_rows(node):
            self.ref = node.arguments["x"]
        else:
            found = None if self.softcap is not None else _mask(self.e, node, self.factor)
            if found is None:
                return False
            self.ref, mask = found
            self.masks.append(mask)
        return True

    def _keeps_rows(self, node: Node) -> bool:
        """A reshape of the axes in front, which no mask outside of it has."""
        source = self.e.graph.nodes[node.inputs[0]]
        shapes = [self.e.graph.nodes[mask.ref.name].shape for mask in self.masks]
        return source.shape[-2:] == node.shape[-2:] and all(d == 1 for shape in shapes for d in shape[:-2])


def _mask(e: Editor, node: Node, factor: float) -> tuple[Ref, Mask] | None:
    """(scores, mask) of masked_fill(hidden, -inf), where(mask, scores, -inf), where(hidden, -inf, scores), or the sum
    with a mask; factor: what the scores are multiplied by afterwards."""
    a = node.arguments
    if node.op == "masked_fill" and factor > 0 and _is_low(e, a["value"], factor):
        return a["self"], Mask(_inverted(e, node, a["mask"]))
    if node.op == "where" and factor > 0 and len(a) == 3:
        if _is_low(e, a["other"], factor) and isinstance(a["self"], Ref):
            return a["self"], Mask(a["condition"])
        if _is_low(e, a["self"], factor) and isinstance(a["other"], Ref):
            return a["other"], Mask(_inverted(e, node, a["condition"]))
    if node.op == "add" and node.target is None and "alpha" not in a:
        for x, y in ((a["x"], a["y"]), (a["y"], a["x"])):
            if _is_table(e, y, x) and e.graph.nodes[x.name].shape == node.shape:
                return x, Mask(y, factor)
    return None


def _inverted(e: Editor, before: Node, hidden: Ref) -> Ref:
    node = e.graph.nodes[hidden.name]
    return e.insert(before, "seen", "logical_not", node.shape, node.kind, torch.logical_not, input=hidden)


def _is_table(e: Editor, ref: Ref, scores: Ref) -> bool:
    """Whether it is no activation."""
    if e.graph.nodes[ref.name].kind != ON_DEVICE:
        return True
    return e.may_be_table(ref, scores)


def _is_low(e: Editor, value, factor: float) -> bool:
    """A number so far below every score that what has it has no weight."""
    known = e.number_of(value)
    return known is not None and known * factor < LOW


def _without_factors(e: Editor, ref: Ref) -> tuple[Ref, float]:
    """A value ahead of its multiplications by numbers, and their product."""
    factor = 1.0
    node = e.graph.nodes[ref.name]
    while node.op == "scale":
        factor *= float(node.arguments["factor"])
        node = e.graph.nodes[node.arguments["x"].name]
    return Ref(node.name), factor


def _turned(e: Editor, before: Node, keys: Ref) -> Ref:
    """A value with its last two axes exchanged; a permutation that did that is left out."""
    node = e.graph.nodes[keys.name]
    order: list = list(range(len(node.shape)))
    shape, x = list(node.shape), keys
    if node.op == "permute" and node.target is None:
        order, x = list(node.arguments["order"]), node.arguments["x"]
    for axes in (order, shape):
        axes[-1], axes[-2] = axes[-2], axes[-1]
    if order == sorted(order):
        return x
    return e.insert(before, "keys", "permute", shape, x=x, order=order)
