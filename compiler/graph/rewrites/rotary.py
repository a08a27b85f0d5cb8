"""Rotary positions: half-split, partial and interleaved, with tables of any expression."""

from ..edit import Editor
from ..ir import Node, Ref


def find_rotary(e: Editor) -> None:
    for node in e.device():
        if node.op == "add" and "alpha" not in node.arguments:
            _half(e, node)
        elif node.op == "reshape":
            _interleaved(e, node)
    e.graph.drop_dead()
    for node in e.device():
        if node.op == "cat":
            _partial(e, node)
    e.graph.drop_dead()


def _half(e: Editor, node: Node) -> None:
    """x * cos + cat(-x2, x1) * sin."""
    for one, other in ((node.arguments["x"], node.arguments["y"]), (node.arguments["y"], node.arguments["x"])):
        plain, turned = e.is_op(one, "mul"), e.is_op(other, "mul")
        if plain is None or turned is None:
            continue
        for x, cos in _pairs(plain):
            for rotated, sin in _pairs(turned):
                if _is_rotated(e, rotated, x):
                    _turn(e, node, x, cos, sin, "half")
                    return


def _pairs(node: Node) -> tuple[tuple[Ref, Ref], tuple[Ref, Ref]]:
    x, y = node.arguments["x"], node.arguments["y"]
    return (x, y), (y, x)


def _is_rotated(e: Editor, rotated: Ref, x: Ref) -> bool:
    """cat(-x[half:], x[:half]) over the channels."""
    cat = e.is_op(rotated, "cat")
    if cat is None or len(cat.arguments["parts"]) != 2 or cat.arguments["axis"] != len(cat.shape) - 1:
        return False
    negative, low = (e.of(part) for part in cat.arguments["parts"])
    if negative is None or low is None or negative.op != "scale" or negative.arguments["factor"] != -1.0:
        return False
    width = cat.shape[-1]
    return isinstance(width, int) and (
        _is_slice(e.of(negative.arguments["x"]), x, width // 2, width, 1) and _is_slice(low, x, 0, width // 2, 1)
    )


def _is_slice(node: Node | None, x: Ref, start: int, stop: int, step: int) -> bool:
    """x[..., start:stop:step]."""
    if node is None or node.op != "slice" or node.arguments["x"] != x:
        return False
    a = node.arguments
    return (a["axis"], a["start"], a["stop"], a["step"]) == (len(node.shape) - 1, start, stop, step)


def _turn(e: Editor, node: Node, x: Ref, cos: Ref, sin: Ref, style: str) -> None:
    """The node becomes a rope of [heads, n, d]; tables lose their axes of length 1."""
    source = e.graph.nodes[x.name]
    tables = [_table(e, node, ref) for ref in (cos, sin)]
    if any(table is None for table in tables):
        return
    rows = e.graph.nodes[tables[0].name].shape[0]  # type: ignore[union-attr]
    axis = next((i for i in range(len(source.shape) - 2, -1, -1) if source.shape[i] == rows), None)
    if axis is None:
        return
    width = int(source.shape[-1])
    a = {"cos": tables[0], "sin": tables[1], "style": style, "width": width}
    if axis == len(source.shape) - 2:
        e.turn(node, "rope", x=x, **a)
        return
    order = [*(i for i in range(len(source.shape) - 1) if i != axis), axis, len(source.shape) - 1]
    shape = [source.shape[i] for i in order]
    moved = e.insert(node, "heads", "permute", shape, x=x, order=order)
    turned = e.insert(node, "turned", "rope", shape, x=moved, **a)
    e.turn(node, "permute", x=turned, order=[order.index(i) for i in range(len(order))])


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


def _interleaved(e: Editor, node: Node) -> None:
    """stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)."""
    cat = e.is_op(node.arguments["x"], "cat")
    if cat is None or len(cat.arguments["parts"]) != 2 or cat.arguments["axis"] != len(cat.shape) - 1:
        return
    if cat.shape[-1] != 2 or node.shape[:-1] != cat.shape[:-2]:
        return
    rows = [e.of(e.of(part).arguments["x"]) for part in cat.arguments["parts"] if e.is_op(part, "reshape")]  # type: ignore[union-attr]
    if len(rows) != 2 or any(row is None or row.op != "add" for row in rows):
        return
    first, second = rows
    found = _terms(e, first, -1), _terms(e, second, 1)  # type: ignore[arg-type]
    for even, cos, odd, sin in found[0]:
        for other_odd, cos2, other_even, sin2 in found[1]:
            if (even, cos, odd, sin) == (other_even, cos2, other_odd, sin2):
                x = e.graph.nodes[even].arguments.get("x", Ref(even))
                width = int(node.shape[-1])
                if _is_slice(e.graph.nodes[even], x, 0, width, 2) and _is_slice(e.graph.nodes[odd], x, 1, width, 2):
                    _turn(e, node, x, Ref(cos), Ref(sin), "interleaved")
                    return


def _terms(e: Editor, add: Node, sign: int) -> list[tuple[str, str, str, str]]:
    """(a, b, c, d) of a * b + sign * c * d, in every order of the factors."""
    pairs = [(add.arguments["x"], add.arguments["y"])]
    if sign > 0:
        pairs.append(pairs[0][::-1])
    if float(add.arguments.get("alpha", 1)) != sign:
        return []
    found = []
    for left, right in pairs:
        one, other = e.is_op(left, "mul"), e.is_op(right, "mul")
        if one is not None and other is not None:
            found += [(a.name, b.name, c.name, d.name) for a, b in _pairs(one) for c, d in _pairs(other)]
    return found


def _partial(e: Editor, node: Node) -> None:
    """cat(rope(x[..., :p]), x[..., p:]) over the channels."""
    parts, last = node.arguments["parts"], len(node.shape) - 1
    if len(parts) != 2 or node.arguments["axis"] != last:
        return
    turned, rest = e.is_op(parts[0], "rope"), e.is_op(parts[1], "slice")
    if turned is None or rest is None or not e.single(turned):
        return
    x, width = rest.arguments["x"], turned.arguments["width"]
    if _is_slice(e.of(turned.arguments["x"]), x, 0, width, 1) and _is_slice(rest, x, width, int(node.shape[-1]), 1):
        e.turn(node, "rope", **(turned.arguments | {"x": x}))
