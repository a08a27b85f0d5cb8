"""The normal form of attention: q[h, n, d], k[g, m, d], v[g, m, e] and a mask [n, m], or [h, n, m]."""

from dataclasses import dataclass, field

import torch

from ..edit import Editor
from ..ir import CONSTANT, Dim, Node, Ref
from ..sizes import times
from .masks import Mask, combined, in_blocks, is_causal, upper_left, without_lead


@dataclass
class Found:
    """softmax(softcap(q k^T scale) + masks) v."""

    q: Ref
    k: Ref
    v: Ref
    scale: float
    masks: list[Mask] = field(default_factory=list)
    upper_left: bool = False
    softcap: float | None = None


def turn(e: Editor, node: Node, found: Found) -> None:
    """The node becomes an attention in its normal form, with views around it; it stays where it cannot be."""
    q, k, v = (e.graph.nodes[_ungrouped(e, ref).name] for ref in (found.q, found.k, found.v))
    if any(len(x.shape) < 2 for x in (q, k, v)) or not _fit(q, k, v):
        return
    _Normal(e, node, found, q, k, v).turn()


def _fit(q: Node, k: Node, v: Node) -> bool:
    """Whether heads and batches of queries, keys and values go together."""
    heads = [x.shape[-3] if len(x.shape) > 2 else 1 for x in (q, k, v)]
    if any(not isinstance(h, int) for h in heads) or heads[1] != heads[2] or int(heads[0]) % int(heads[1]):
        return False
    batches = [tuple(d for d in x.shape[:-3] if d != 1) for x in (q, k, v)]
    return batches[0] == batches[1] == batches[2]


def _ungrouped(e: Editor, ref: Ref) -> Ref:
    """Keys and values ahead of their repetition for every head of a group: [g, 1 -> r, n, d] as [g * r, n, d]."""
    node = e.graph.nodes[ref.name]
    expanded = e.form(node.arguments["x"], "expand") if node.op == "reshape" else None
    inner = None if expanded is None else e.form(expanded.arguments["x"], "reshape")
    if expanded is None or inner is None or len(expanded.shape) != len(node.shape) + 1:
        return ref
    source = e.graph.nodes[inner.inputs[0]]
    at = len(source.shape) - 2
    added = (*source.shape[:at], 1, *source.shape[at:])
    same = expanded.shape[:at] + expanded.shape[at + 1 :] == added[:at] + added[at + 1 :]
    joined = (*source.shape[: at - 1], times(expanded.shape[at - 1 : at + 1]), *source.shape[at:])
    fits = tuple(inner.shape) == added and same and tuple(node.shape) == joined
    return Ref(source.name) if fits and at > 0 else ref


class _Normal:
    """One attention, from how it was found to its normal form."""

    def __init__(self, e: Editor, node: Node, found: Found, q: Node, k: Node, v: Node) -> None:
        self.e, self.node, self.found, self.q, self.k, self.v = e, node, found, q, k, v
        self.n, self.m = q.shape[-2], k.shape[-2]
        self.heads = int(q.shape[-3]) if len(q.shape) > 2 else 1
        self.batch = times(q.shape[:-3])

    def turn(self) -> None:
        """One attention for all heads, or one for a whole batch."""
        e, node, found = self.e, self.node, self.found
        mask = combined(e, node, found.masks, tuple(self.q.shape[:-2]), self.n, self.m)
        causal = found.upper_left and mask is None and str(self.n) == str(self.m) and self.batch == 1
        if found.upper_left and mask is None and not causal:
            mask = upper_left(e, node, self.n, self.m)
        if self.batch != 1:
            self._batched(mask)
            return
        mask = None if mask is None else without_lead(e, node, mask, self.heads)
        if mask is not None and len(e.graph.nodes[mask.name].shape) == 2 and is_causal(e, mask, self.n, self.m):
            mask, causal = None, True
        refs = [self._three(x) for x in (self.q, self.k, self.v)]
        shape = (self.heads, self.n, self.v.shape[-1])
        if tuple(node.shape) == shape:
            e.turn(node, "attention", **dict(zip("qkv", refs, strict=True)), **self._attributes(mask, causal))
        else:
            e.turn(node, "reshape", x=self._made(refs, shape, mask, causal), shape=list(node.shape))

    def _attributes(self, mask: Ref | None, causal: bool) -> dict:
        a = {"scale": self.found.scale, "mask": mask, "softcap": self.found.softcap}
        return {name: value for name, value in a.items() if value is not None} | ({"causal": True} if causal else {})

    def _three(self, x: Node) -> Ref:
        """[1, heads, n, d] and [n, d] as [heads, n, d]."""
        shape = [*([1] * (3 - len(x.shape))), *x.shape][-3:]
        if list(x.shape) == shape:
            return Ref(x.name)
        return self.e.insert(self.node, "three", "reshape", shape, x=Ref(x.name), shape=shape)

    def _made(self, refs: list[Ref], shape: tuple, mask: Ref | None, causal: bool) -> Ref:
        """The attention ahead of the node."""
        operands = dict(zip("qkv", refs, strict=True))
        return self.e.insert(self.node, "heads", "attention", shape, **operands, **self._attributes(mask, causal))

    # --- batches -----------------------------------------------------------------------------------------

    def _batched(self, mask: Ref | None) -> None:
        """Attention in a batch: every query sees the keys of its own part only, which is a mask."""
        e, node, b = self.e, self.node, self.batch
        if not isinstance(b, int):
            return
        rows, columns = times((b, self.n)), times((b, self.m))
        refs = [self._flat(x, b, n) for x, n in ((self.q, self.n), (self.k, self.m), (self.v, self.m))]
        if mask is None:
            kind = CONSTANT if isinstance(rows, int) and isinstance(columns, int) else "host"
            blocks = e.insert(node, "parts", "parts", (rows, columns), kind, _parts, b=b, n=self.n, m=self.m)
        else:
            own = len(mask_shape := e.graph.nodes[mask.name].shape) > 2 and mask_shape[-3] != 1
            shape = [*([self.heads] if own else []), rows, columns]
            blocks = in_blocks(e, node, mask, b, self.n, self.m, shape)
        size = self.v.shape[-1]
        made = self._made(refs, (self.heads, rows, size), blocks, False)
        shape = [self.heads, b, self.n, size]
        split = e.insert(node, "split", "reshape", shape, x=made, shape=shape)
        back = e.insert(node, "back", "permute", (b, self.heads, self.n, size), x=split, order=[1, 0, 2, 3])
        e.turn(node, "reshape", x=back, shape=list(node.shape))

    def _flat(self, x: Node, b: int, rows: Dim) -> Ref:
        """[batch, heads, n, d] -> [heads, batch * n, d]."""
        e, node = self.e, self.node
        heads, size = x.shape[-3], x.shape[-1]
        ref = Ref(x.name)
        if len(x.shape) != 4:
            ref = e.insert(node, "four", "reshape", (b, heads, rows, size), x=ref, shape=[b, heads, rows, size])
        moved = e.insert(node, "moved", "permute", (heads, b, rows, size), x=ref, order=[1, 0, 2, 3])
        shape = [heads, times((b, rows)), size]
        return e.insert(node, "flat", "reshape", shape, x=moved, shape=shape)


def _parts(b: int, n: int, m: int) -> torch.Tensor:
    return torch.block_diag(*[torch.ones(n, m)] * b) > 0
