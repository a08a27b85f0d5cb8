"""Attention: torch's operator, and written out with softmax and products."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..edit import Editor
from ..ir import Dim, Graph, Length, Node, Ref
from ..meaning import values_of

SMALL_LENGTHS = ((1, 0), (3, 0), (5, 7), (2, 9))
"""Symbolic lengths, in turn, at which a mask is compared with a causal one; the largest ones come besides."""
MASK_PLACES = 1 << 26
"""Places of the largest mask that is looked at. A window shows in masks that are wider than it."""


@dataclass
class _Found:
    q: Ref
    k: Ref
    v: Ref
    scale: float
    mask: Ref | None = None
    causal: bool = False
    softcap: float | None = None


def find_attention(e: Editor) -> None:
    for node in e.device():
        found = None
        if node.op == "scaled_dot_product_attention":
            found = _own(e, node)
        elif node.op in ("matmul", "bmm"):
            found = _written_out(e, node)
        if found is not None:
            _Normal(e, node, found).turn()
    e.graph.drop_dead()


def _own(e: Editor, node: Node) -> _Found | None:
    a = node.arguments
    if a.get("dropout_p"):
        return None
    q = e.graph.nodes[a["query"].name]
    scale = 1 / math.sqrt(int(q.shape[-1])) if a.get("scale") is None else float(a["scale"])
    return _Found(a["query"], a["key"], a["value"], scale, a.get("attn_mask"), bool(a.get("is_causal")))


def _written_out(e: Editor, node: Node) -> _Found | None:
    """softmax(mask(cap(q k^T scale))) v."""
    probabilities, v = list(node.arguments.values())[:2]
    softmax = e.is_op(probabilities, "softmax")
    if softmax is None or e.is_constant(v):
        return None
    scores, mask = _without_mask(e, softmax.arguments["x"])
    softcap, scale = None, 1.0
    scores, scale = _without_factors(e, scores)
    capped = e.is_op(scores, "activation")
    if capped is not None and capped.arguments["function"] == "tanh":
        softcap = scale
        scores, scale = _without_factors(e, capped.arguments["x"])
        scale *= softcap
    product = e.is_op(scores, "matmul", "bmm")
    if product is None:
        return None
    q, k_t = list(product.arguments.values())[:2]
    q, factor = _without_factors(e, q)
    k_t, factor_k = _without_factors(e, k_t)
    turned = e.is_op(k_t, "permute")
    if turned is None:
        return None
    k, factor_k2 = _without_factors(e, _turned_back(e, node, turned))
    return _Found(q, k, v, scale * factor * factor_k * factor_k2, mask, softcap=softcap)


def _turned_back(e: Editor, before: Node, turned: Node) -> Ref:
    """A permutation's operand with the last two axes of the result exchanged once more."""
    order, shape = list(turned.arguments["order"]), list(turned.shape)
    for axes in (order, shape):
        axes[-1], axes[-2] = axes[-2], axes[-1]
    if order == sorted(order):
        return turned.arguments["x"]
    return e.insert(before, "keys", "permute", shape, x=turned.arguments["x"], order=order)


def _without_mask(e: Editor, scores: Ref) -> tuple[Ref, Ref | None]:
    """Scores ahead of masked_fill(~mask, -inf), where(mask, x, -inf), or the sum with a mask."""
    node = e.graph.nodes[scores.name]
    if node.op == "masked_fill" and _is_low(e, node.arguments["value"]):
        hidden = node.arguments["mask"]
        shape = e.graph.nodes[hidden.name].shape
        seen = e.insert(node, "seen", "logical_not", shape, "host", torch.logical_not, input=hidden)
        return node.arguments["self"], seen
    if node.op == "where" and _is_low(e, node.arguments["other"]):
        return node.arguments["self"], node.arguments["condition"]
    if node.op == "add" and node.target is None and "alpha" not in node.arguments:
        for x, y in ((node.arguments["x"], node.arguments["y"]), (node.arguments["y"], node.arguments["x"])):
            other = e.graph.nodes[y.name]
            if other.kind != "device" or other.op == "input" or _from_input(e, other):
                return x, y
    return scores, None


def _from_input(e: Editor, node: Node) -> bool:
    """Whether it is an input, seen through views."""
    while node.op in ("reshape", "permute", "slice", "expand"):
        node = e.graph.nodes[node.inputs[0]]
    return node.op == "input"


def _is_low(e: Editor, value) -> bool:
    """A number far below every score."""
    if isinstance(value, Ref):
        node = e.graph.nodes[value.name]
        if not e.is_constant(value):
            return False
        value = float(values_of(e.graph, [node.name], {}, {})[node.name])
    return float(value) < -1e4


def _without_factors(e: Editor, ref: Ref) -> tuple[Ref, float]:
    """A value ahead of its multiplications by numbers, and their product."""
    factor = 1.0
    node = e.graph.nodes[ref.name]
    while node.op == "scale":
        factor *= float(node.arguments["factor"])
        node = e.graph.nodes[node.arguments["x"].name]
    return Ref(node.name), factor


class _Normal:
    """An attention in the normal form of the graph level: [heads, n, d], one mask for all heads."""

    def __init__(self, e: Editor, node: Node, found: _Found) -> None:
        self.e, self.node, self.found = e, node, found
        self.q, self.k, self.v = (self._plain(ref) for ref in (found.q, found.k, found.v))

    def turn(self) -> None:
        e, node, found = self.e, self.node, self.found
        q, k, v = (e.graph.nodes[ref.name] for ref in (self.q, self.k, self.v))
        if any(len(x.shape) < 2 for x in (q, k, v)):
            return
        n, m = q.shape[-2], k.shape[-2]
        mask = found.mask if found.mask is None else self._mask(found.mask)
        if found.causal and found.mask is None and str(n) != str(m):
            mask = self._upper_left(n, m)
        causal = (found.causal and mask is None) or (mask is not None and self._is_causal(mask, n, m))
        batch = [d for d in q.shape[:-3] if d != 1]
        if batch:
            _Batched(self, q, k, v, batch, causal, mask).turn()
            return
        refs = [self._three(ref) for ref in (self.q, self.k, self.v)]
        heads = e.graph.nodes[refs[0].name].shape[0]
        shape = (heads, n, v.shape[-1])
        a = {"scale": found.scale, "mask": None if causal else mask, "softcap": found.softcap} | (
            {"causal": True} if causal else {}
        )
        names = dict(zip("qkv", refs, strict=True))
        if tuple(node.shape) == shape:
            e.turn(node, "attention", **names, **a)
            return
        a = {key: value for key, value in a.items() if value is not None}
        made = e.insert(node, "heads", "attention", shape, **names, **a)
        e.turn(node, "reshape", x=made, shape=list(node.shape))

    # --- operands ----------------------------------------------------------------------------------------

    def _plain(self, ref: Ref) -> Ref:
        """Keys and values ahead of their repetition for every head of a group."""
        e, node = self.e, self.e.graph.nodes[ref.name]
        if node.op == "repeat_interleave":
            axis = int(node.arguments.get("dim", 0)) % len(node.shape)
            return node.arguments["self"] if axis == len(node.shape) - 3 else ref
        if node.op == "reshape":
            expanded = e.is_op(node.arguments["x"], "expand")
            inner = None if expanded is None else e.is_op(expanded.arguments["x"], "reshape")
            if expanded is not None and inner is not None and len(expanded.shape) == len(node.shape) + 1:
                source = e.graph.nodes[inner.inputs[0]]
                at = len(source.shape) - 2
                added = (*source.shape[:at], 1, *source.shape[at:])
                if (
                    tuple(inner.shape) == added
                    and expanded.shape[at] != 1
                    and _but(expanded.shape, at) == _but(added, at)
                ):
                    return Ref(source.name)
        return ref

    def _three(self, ref: Ref) -> Ref:
        """[1, heads, n, d] and [n, d] as [heads, n, d]."""
        node = self.e.graph.nodes[ref.name]
        shape = [*([1] * (3 - len(node.shape))), *node.shape][-3:]
        if list(node.shape) == shape:
            return ref
        return self.e.insert(self.node, "three", "reshape", shape, x=ref, shape=shape)

    # --- masks -------------------------------------------------------------------------------------------

    def _mask(self, ref: Ref) -> Ref:
        """[n, m], without the axes of length 1 in front."""
        node = self.e.graph.nodes[ref.name]
        shape = list(node.shape)[-2:]
        if len(node.shape) == 2 or any(d != 1 for d in node.shape[:-2]):
            return ref
        target = lambda x, shape: x.reshape(shape)  # noqa: E731
        return self.e.insert(self.node, "mask", "mask", shape, node.kind, target, x=ref, shape=shape)

    def _upper_left(self, n: Dim, m: Dim) -> Ref:
        """torch's is_causal: query i sees keys up to i, however many keys there are."""
        target = lambda n, m: torch.ones(n, m, dtype=torch.bool).tril()  # noqa: E731
        return self.e.insert(self.node, "causal", "causal", (n, m), "host", target, n=n, m=m)

    def _is_causal(self, mask: Ref, n: Dim, m: Dim) -> bool:
        """Whether the mask is that of a causal attention, at every length that it is looked at."""
        graph = self.e.graph
        node = graph.nodes[mask.name]
        if _needs_input(graph, mask.name):
            return False
        largest = 0
        for lengths in _looked_at(graph):
            shape = [d.at(lengths) if isinstance(d, Length) else int(d) for d in (n, m)]
            if shape[0] * shape[1] > MASK_PLACES:
                continue
            value = values_of(graph, [node.name], {}, lengths)[node.name]
            if not isinstance(value, Tensor) or not _same(value, shape):
                return False
            largest = max(largest, shape[1])
        most = (
            m.at({symbol: limits.most for symbol, limits in graph.lengths.items()}) if isinstance(m, Length) else int(m)
        )
        return largest == most


def _looked_at(graph: Graph) -> Iterator[dict[str, int]]:
    """Small lengths, and each with one symbol, or all, at their largest values."""
    ranges = graph.lengths
    for sizes in SMALL_LENGTHS:
        pairs = zip(ranges.items(), (*sizes, *([2] * len(ranges))), strict=False)
        yield {symbol: max(limits.least, min(size, limits.most)) for (symbol, limits), size in pairs}
    least = {symbol: limits.least for symbol, limits in ranges.items()}
    most = {symbol: limits.most for symbol, limits in ranges.items()}
    yield from (least | {symbol: most[symbol]} for symbol in ranges)
    yield most
    # As many keys as there can be, with as few queries as the module allows for them.
    yield from (most | {symbol: max(1, least[symbol])} for symbol in ranges)


def _same(value: Tensor, shape: list[int]) -> bool:
    seen = value if value.dtype == torch.bool else value > -1e4
    wanted = torch.ones(shape, dtype=torch.bool).tril(shape[1] - shape[0])
    exact = value.dtype == torch.bool or bool((value[wanted.expand(value.shape)] == 0).all())
    return exact and list(seen.shape[-2:]) == shape and bool((seen == wanted).all())


def _needs_input(graph, name: str) -> bool:
    import networkx as nx

    return any(graph.nodes[a].op == "input" for a in nx.ancestors(graph.network(), name) | {name})


def _but(shape: tuple, at: int) -> tuple:
    return (*shape[:at], *shape[at + 1 :])


class _Batched:
    """Attention in a batch: every query sees the keys of its own part only, which is a mask."""

    def __init__(
        self, normal: _Normal, q: Node, k: Node, v: Node, batch: list[Dim], causal: bool, mask: Ref | None
    ) -> None:
        self.normal, self.q, self.k, self.v, self.batch, self.causal, self.mask = normal, q, k, v, batch, causal, mask

    def turn(self) -> None:
        e, node = self.normal.e, self.normal.node
        lengths = [*self.batch, self.q.shape[-2], self.k.shape[-2]]
        if self.causal or self.mask is not None or any(not isinstance(d, int) for d in lengths):
            return
        b = math.prod(int(d) for d in self.batch)
        n, m = int(self.q.shape[-2]), int(self.k.shape[-2])
        refs = [self._flat(x, b, rows) for x, rows in ((self.q, n), (self.k, m), (self.v, m))]
        target = lambda b, n, m: torch.block_diag(*[torch.ones(n, m)] * b) > 0  # noqa: E731
        mask = e.insert(node, "parts", "parts", (b * n, b * m), "constant", target, b=b, n=n, m=m)
        heads, size = int(self.q.shape[-3]), int(self.v.shape[-1])
        names = dict(zip("qkv", refs, strict=True))
        a = {"scale": self.normal.found.scale, "mask": mask}
        if self.normal.found.softcap is not None:
            a["softcap"] = self.normal.found.softcap
        made = e.insert(node, "heads", "attention", (heads, b * n, size), **names, **a)
        split = e.insert(node, "split", "reshape", (heads, b, n, size), x=made, shape=[heads, b, n, size])
        back = e.insert(node, "back", "permute", (b, heads, n, size), x=split, order=[1, 0, 2, 3])
        e.turn(node, "reshape", x=back, shape=list(node.shape))

    def _flat(self, x: Node, b: int, rows: int) -> Ref:
        """[batch, heads, n, d] -> [heads, batch * n, d]."""
        e, node = self.normal.e, self.normal.node
        heads, size = int(x.shape[-3]), int(x.shape[-1])
        ref = Ref(x.name)
        if len(x.shape) != 4:
            ref = e.insert(node, "four", "reshape", (b, heads, rows, size), x=ref, shape=[b, heads, rows, size])
        moved = e.insert(node, "moved", "permute", (heads, b, rows, size), x=ref, order=[1, 0, 2, 3])
        return e.insert(node, "flat", "reshape", (heads, b * rows, size), x=moved, shape=[heads, b * rows, size])
