"""Rotary positions: half-split, partial and interleaved, with tables of any expression."""

from collections.abc import Sequence

import torch

from ..edit import Editor
from ..ir import HOST, Dim, Node, Ref
from .pairs import column, is_slice, pairs, terms


def find_rotary(e: Editor) -> None:
    """Every form of a rotation of pairs of channels by tables; those of a part of the channels come last."""
    for node in e.device():
        if node.op == "add" and node.arguments.get("alpha", 1) in (1, -1):
            _half(e, node)
        elif node.op == "reshape":
            _interleaved(e, node)
    for node in e.device():
        if node.op == "cat":
            _halves(e, node)
    e.graph.drop_dead()
    for node in e.device():
        if node.op == "cat":
            _partial(e, node)
    e.graph.drop_dead()


# --- x * cos + rotated(x) * sin -------------------------------------------------------------------------


def _half(e: Editor, node: Node) -> None:
    """x * cos + rotated * sin; rotated: cat(-x2, x1), or its opposite; or the same of neighbours."""
    x, y, alpha = node.arguments["x"], node.arguments["y"], node.arguments.get("alpha", 1)
    for one, other in ((x, y), (y, x)) if alpha == 1 else ((x, y),):
        plain, turned = e.form(one, "mul"), e.form(other, "mul")
        if plain is None or turned is None:
            continue
        for source, cos in pairs(plain):
            for rotated, sin in pairs(turned):
                if sign := _rotated(e, rotated, source):
                    _turn(e, node, source, cos, _signed(e, node, sin, sign * alpha), "half")
                    return
                if sign := _swapped_neighbours(e, rotated, source):
                    _turn(e, node, source, cos, _signed(e, node, sin, sign * alpha), "neighbours")
                    return


def _signed(e: Editor, before: Node, table: Ref, sign: float) -> Ref:
    if sign == 1:
        return table
    return e.insert(before, "negative", "scale", e.graph.nodes[table.name].shape, x=table, factor=-1.0)


def _rotated(e: Editor, rotated: Ref, x: Ref) -> int:
    """1 for cat(-x[half:], x[:half]) over the channels, -1 for cat(x[half:], -x[:half]), 0 for anything else."""
    cat = e.form(rotated, "cat")
    if cat is None or len(cat.arguments["parts"]) != 2 or cat.arguments["axis"] != len(cat.shape) - 1:
        return 0
    width, (first, second) = cat.shape[-1], cat.arguments["parts"]
    if not isinstance(width, int) or width % 2:
        return 0
    for sign, high, low in ((1, _negated(e, first), e.of(second)), (-1, e.of(first), _negated(e, second))):
        if is_slice(high, x, width // 2, width, 1) and is_slice(low, x, 0, width // 2, 1):
            return sign
    return 0


def _negated(e: Editor, ref: Ref) -> Node | None:
    """x of -x."""
    node = e.form(ref, "scale")
    return e.of(node.arguments["x"]) if node is not None and node.arguments["factor"] == -1.0 else None


def _swapped_neighbours(e: Editor, rotated: Ref, x: Ref) -> int:
    """1 for stack(-odd, even) with the two of a pair side by side, -1 for stack(odd, -even), 0 for anything else."""
    flat = e.form(rotated, "reshape")
    found = None if flat is None else _two_columns(e, flat)
    if found is None:
        return 0
    first, second = found
    for sign, odd, even in ((1, _negated(e, first), e.of(second)), (-1, e.of(first), _negated(e, second))):
        if odd is not None and even is not None and column(e, odd, 1) == column(e, even, 0) == x:
            return sign
    return 0


def _two_columns(e: Editor, flat: Node) -> tuple[Ref, Ref] | None:
    """The operands of stack(.., -1).flatten(-2)."""
    cat = e.form(flat.arguments["x"], "cat")
    if cat is None or len(cat.arguments["parts"]) != 2 or cat.arguments["axis"] != len(cat.shape) - 1:
        return None
    if cat.shape[-1] != 2 or flat.shape[-1] != 2 * int(cat.shape[-2]) or _long(flat.shape) != _long(cat.shape[:-1]):
        return None
    found = [e.form(part, "reshape") for part in cat.arguments["parts"]]
    refs = [node.arguments["x"] for node in found if node is not None]
    if len(refs) != 2 or any(e.graph.nodes[ref.name].shape != cat.shape[:-1] for ref in refs):
        return None
    return refs[0], refs[1]


# --- written out by halves and by neighbours -----------------------------------------------------------------


def _halves(e: Editor, node: Node) -> None:
    """cat(low * cos - high * sin, high * cos + low * sin), each half with tables of its own."""
    parts = node.arguments["parts"]
    if len(parts) != 2 or node.arguments["axis"] != len(node.shape) - 1:
        return
    adds = [e.form(part, "add") for part in parts]
    if adds[0] is None or adds[1] is None:
        return
    width = node.shape[-1]
    for low, cos, high, sin in terms(adds[0], e, -1):
        source = e.graph.nodes[low.name].arguments.get("x")
        if not isinstance(source, Ref) or not isinstance(width, int) or e.graph.nodes[source.name].shape != node.shape:
            continue
        if not is_slice(e.of(low), source, 0, width // 2, 1) or not is_slice(e.of(high), source, width // 2, width, 1):
            continue
        for high2, cos2, low2, sin2 in terms(adds[1], e, 1):
            if (high2, low2) == (high, low):
                tables = [_joined(e, node, pair) for pair in ((cos, cos2), (sin, sin2))]
                _turn(e, node, source, tables[0], tables[1], "half")
                return


def _joined(e: Editor, before: Node, tables: tuple[Ref, Ref]) -> Ref:
    first = e.graph.nodes[tables[0].name]
    shape = [*first.shape[:-1], 2 * int(first.shape[-1])]
    return e.insert(before, "both", "both", shape, HOST, torch.cat, tensors=list(tables), dim=-1)


def _interleaved(e: Editor, node: Node) -> None:
    """stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)."""
    found = _two_columns(e, node)
    adds = [] if found is None else [e.form(ref, "add") for ref in found]
    if len(adds) != 2 or adds[0] is None or adds[1] is None:
        return
    for even, cos, odd, sin in terms(adds[0], e, -1):
        x = column(e, e.graph.nodes[even.name], 0)
        if x is None or column(e, e.graph.nodes[odd.name], 1) != x or (odd, cos, even, sin) not in terms(adds[1], e, 1):
            continue
        shape = e.graph.nodes[x.name].shape
        if shape == node.shape:
            _turn(e, node, x, cos, sin, "interleaved")
        elif _long(shape) == _long(node.shape):  # a permutation of axes of 1 was merged into the node
            flat = e.insert(node, "flat", "reshape", shape, x=node.arguments["x"], shape=list(shape))
            if _turn(e, e.graph.nodes[flat.name], x, cos, sin, "interleaved"):
                e.turn(node, "reshape", x=flat, shape=list(node.shape))
        return


def _long(shape: Sequence[Dim]) -> list[Dim]:
    """The axes in front of the last one, without those of 1."""
    return [size for size in shape[:-1] if size != 1]


def _partial(e: Editor, node: Node) -> None:
    """cat(rope(x[..., :p]), x[..., p:]) over the channels; the rope may stand between a permutation and its inverse."""
    parts, last = node.arguments["parts"], len(node.shape) - 1
    if len(parts) != 2 or node.arguments["axis"] != last:
        return
    back, rest = e.form(parts[0], "permute"), e.form(parts[1], "slice")
    turned = e.form(back.arguments["x"] if back is not None else parts[0], "rope")
    if turned is None or rest is None or not e.single(turned):
        return
    x, width = rest.arguments["x"], turned.arguments["width"]
    source = turned.arguments["x"]
    there = e.form(source, "permute") if back is not None else None
    if back is not None and (there is None or back.arguments["order"] != _inverse(there.arguments["order"])):
        return
    first = e.of(there.arguments["x"] if there is not None else source)
    if not is_slice(first, x, 0, width, 1) or not is_slice(rest, x, width, int(node.shape[-1]), 1):
        return
    if there is None or back is None:
        e.turn(node, "rope", **(turned.arguments | {"x": x}))
        return
    order = there.arguments["order"]
    shape = [node.shape[i] for i in order]
    moved = e.insert(node, "heads", "permute", shape, x=x, order=order)
    whole = e.insert(node, "turned", "rope", shape, **(turned.arguments | {"x": moved}))
    e.turn(node, "permute", x=whole, order=back.arguments["order"])


def _inverse(order: list[int]) -> list[int]:
    return [order.index(i) for i in range(len(order))]


# --- the normal form ------------------------------------------------------------------------------------


def _turn(e: Editor, node: Node, x: Ref, cos: Ref, sin: Ref, style: str) -> bool:
    """The node becomes a rope of [heads, n, d]; tables lose their axes of length 1. False if x has no such tables."""
    source = e.graph.nodes[x.name]
    if not e.may_be_table(cos, x) or not e.may_be_table(sin, x):
        return False
    axes = {_rows_axis(e, ref, len(source.shape)) for ref in (cos, sin)} - {None}
    tables = [_table(e, node, ref) for ref in (cos, sin)]
    if tables[0] is None or tables[1] is None or not isinstance(source.shape[-1], int) or len(axes) > 1:
        return False
    single = (i for i in range(len(source.shape) - 2, -1, -1) if source.shape[i] == 1)
    axis = axes.pop() if axes else next(single, None)
    if axis is None or axis < 0 or any(not isinstance(d, int) for i, d in enumerate(source.shape) if i != axis):
        return False
    width = int(source.shape[-1])
    a = {"cos": tables[0], "sin": tables[1], "style": style, "width": width}
    if axis == len(source.shape) - 2:
        e.turn(node, "rope", x=x, **a)
        return True
    order = [*(i for i in range(len(source.shape) - 1) if i != axis), axis, len(source.shape) - 1]
    shape = [source.shape[i] for i in order]
    moved = e.insert(node, "heads", "permute", shape, x=x, order=order)
    turned = e.insert(node, "turned", "rope", shape, x=moved, **a)
    e.turn(node, "permute", x=turned, order=_inverse(order))
    return True


def _rows_axis(e: Editor, ref: Ref, rank: int) -> int | None:
    """The axis of a tensor of that rank along which a table has its rows; None for a table of one row."""
    shape = e.graph.nodes[ref.name].shape
    long = [i for i, size in enumerate(shape[:-1]) if size != 1]
    return long[-1] + rank - len(shape) if long else None


def _table(e: Editor, before: Node, ref: Ref) -> Ref | None:
    """A table as [n, width], behind the reshapes that only add axes."""
    node = e.graph.nodes[ref.name]
    long = [d for d in node.shape if d != 1]
    shape = list(node.shape[-2:]) if len(node.shape) > 1 else [1, *node.shape]
    if len(long) == 2:
        shape = long
    elif len(long) != 1:
        return None
    if list(node.shape) == shape:
        return ref
    while node.op == "reshape" and node.target is None:
        source = e.graph.nodes[node.inputs[0]]
        if list(source.shape) == shape:
            return Ref(source.name)
        node = source
    return e.insert(before, "table", "reshape", shape, x=ref, shape=shape)
