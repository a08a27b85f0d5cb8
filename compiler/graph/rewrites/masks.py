"""Masks of attention: computed by the host, brought to [queries, keys], compared with causal ones."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hw.spec.errors import UserError

from ..edit import Editor
from ..ir import HOST, Dim, Graph, Length, Node, Ref
from ..legal import described
from ..meaning import values_of
from ..sizes import minus, same

SMALL_LENGTHS = ((1, 0), (3, 0), (5, 7), (2, 9))
"""Symbolic lengths, in turn, at which a mask is compared with a causal one; the largest ones come besides."""
MASK_PLACES = 1 << 26
"""Places of the largest mask that is looked at. A window shows in masks that are wider than it."""
LOW = -1e4
"""Scores below it have no weight."""


@dataclass(frozen=True)
class Mask:
    """What is added to scores, times a factor, or True where a query may look."""

    ref: Ref
    factor: float = 1.0


def combined(e: Editor, before: Node, masks: list[Mask], lead: tuple[Dim, ...], n: Dim, m: Dim) -> Ref | None:
    """All masks as one of [*lead, n, m], where an axis of `lead` is 1 if no mask has it; None if there is none.

    lead: the axes of the scores ahead of queries and keys.
    """
    if not masks:
        return None
    shapes = [_aligned(e.graph.nodes[mask.ref.name].shape, len(lead) + 2) for mask in masks]
    wide = [size if any(shape[i] != 1 for shape in shapes) else 1 for i, size in enumerate(lead)]
    shape = [*wide, n, m]
    first = masks[0]
    if len(masks) == 1 and first.factor == 1:
        node = e.graph.nodes[first.ref.name]
        if tuple(map(str, node.shape)) == tuple(map(str, shape)):
            return first.ref
        return e.insert(before, "mask", "mask", shape, HOST, _spread, x=first.ref, shape=shape)
    refs, factors = [mask.ref for mask in masks], [mask.factor for mask in masks]
    return e.insert(before, "mask", "mask", shape, HOST, _sum, parts=refs, factors=factors, shape=shape)


def _aligned(shape: tuple[Dim, ...], rank: int) -> tuple[Dim, ...]:
    """A shape with axes of length 1 in front, without more of them than there are axes."""
    return ((1,) * rank + tuple(shape))[-rank:]


def _spread(x: Tensor, shape: list[int]) -> Tensor:
    return _fitting(x, len(shape)).expand(shape)


def _fitting(x: Tensor, rank: int) -> Tensor:
    return x.reshape(x.shape[x.ndim - rank :]) if x.ndim > rank else x


def _sum(parts: list[Tensor], factors: list[float], shape: list[int]) -> Tensor:
    total = torch.zeros(shape, dtype=next((p.dtype for p in parts if p.is_floating_point()), torch.float32))
    for part, factor in zip(parts, factors, strict=True):
        part = _fitting(part, len(shape))
        added = torch.zeros_like(total).masked_fill(~part, -torch.inf) if part.dtype == torch.bool else part * factor
        total = total + added
    return total


def without_lead(e: Editor, before: Node, mask: Ref, heads: Dim) -> Ref:
    """[1, .., heads or 1, n, m] as [heads, n, m], or as [n, m] where all heads share it."""
    node = e.graph.nodes[mask.name]
    lead = node.shape[:-2]
    shape = list(node.shape[-2:]) if all(d == 1 for d in lead) else [heads, *node.shape[-2:]]
    if list(node.shape) == shape:
        return mask
    return e.insert(before, "mask", "mask", shape, node.kind, torch.reshape, input=mask, shape=shape)


def in_blocks(e: Editor, before: Node, mask: Ref, b: int, n: Dim, m: Dim, shape: list[Dim]) -> Ref:
    """A mask [.., heads or 1, n, m] of a batch of attentions as one whose parts see nothing of each other."""
    a = {"x": mask, "b": b, "n": n, "m": m, "shape": shape}
    return e.insert(before, "blocks", "blocks", shape, HOST, _blocks, **a)


def _blocks(x: Tensor, b: int, n: int, m: int, shape: list[int]) -> Tensor:
    heads = 1 if len(shape) == 2 else shape[0]
    parts = x.reshape(-1, x.shape[-3] if heads > 1 else 1, n, m).expand(b, heads, n, m)
    nothing = False if x.dtype == torch.bool else -torch.inf
    whole = torch.full((heads, b * n, b * m), nothing, dtype=x.dtype)
    for at, part in enumerate(parts):
        whole[:, at * n : (at + 1) * n, at * m : (at + 1) * m] = part
    return whole.reshape(shape)


def upper_left(e: Editor, before: Node, n: Dim, m: Dim) -> Ref:
    """torch's is_causal: query i sees keys up to i, however many keys there are."""
    return e.insert(before, "causal", "causal", (n, m), HOST, _upper_left, n=n, m=m)


def _upper_left(n: int, m: int) -> Tensor:
    return torch.ones(n, m, dtype=torch.bool).tril()


# --- causal masks ---------------------------------------------------------------------------------------


def is_causal(e: Editor, mask: Ref, n: Dim, m: Dim) -> bool:
    """Whether query i sees the keys up to i + m - n, at every length that is looked at."""
    graph, node = e.graph, e.graph.nodes[mask.name]
    if _is_built_causal(graph, node, n, m):
        return True
    if e.has_parameters(node) or any(graph.nodes[name].op == "input" for name in graph.ancestors(node.name)):
        return False
    largest = 0
    for lengths in _looked_at(graph):
        shape = [d.at(lengths) if isinstance(d, Length) else int(d) for d in (n, m)]
        if shape[0] * shape[1] > MASK_PLACES:
            continue
        value = values_of(graph, [mask.name], {}, lengths)[mask.name]
        if not isinstance(value, Tensor):
            return False
        if _is_blind(value):
            raise UserError(f"{described(node)}: at {lengths} a query sees no key: let each query see one")
        if not _same(value, shape):
            return False
        largest = max(largest, shape[1])
    most = {symbol: limits.most for symbol, limits in graph.lengths.items()}
    return largest == (m.at(most) if isinstance(m, Length) else int(m))


def _is_built_causal(graph: Graph, node: Node, n: Dim, m: Dim) -> bool:
    """Whether it is torch's `tril` of Trues, from the diagonal that makes it causal: then it is so at all lengths."""
    while node.target in (_spread, torch.reshape):
        node = graph.nodes[node.inputs[0]]
    if node.op != "tril" or len(node.inputs) != 1:
        return False
    ones = graph.nodes[node.inputs[0]]
    square = tuple(map(str, node.shape)) == (str(n), str(m))
    whole = ones.op == "ones" and ones.arguments.get("dtype") == torch.bool
    return whole and square and same(node.arguments.get("diagonal", 0), minus(m, n))


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


def _is_blind(value: Tensor) -> bool:
    """Whether the mask hides all keys from some query."""
    seen = value if value.dtype == torch.bool else value > LOW
    return bool(value.numel()) and not bool(seen.any(-1).all())


def _same(value: Tensor, shape: list[int]) -> bool:
    """Whether the mask hides what a causal one hides, and changes no other score."""
    if list(value.shape) != shape:
        return False
    wanted = torch.ones(shape, dtype=torch.bool).tril(shape[1] - shape[0])
    if value.dtype == torch.bool:
        return bool((value == wanted).all())
    return bool((value[wanted] == 0).all()) and bool((value[~wanted] < LOW).all())
