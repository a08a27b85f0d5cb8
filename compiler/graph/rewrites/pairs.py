"""What rotary positions are made of: products in any order, and every second channel."""

from ..edit import Editor
from ..ir import Node, Ref


def pairs(node: Node) -> tuple[tuple[Ref, Ref], tuple[Ref, Ref]]:
    """Both operands of a product, in both orders."""
    x, y = node.arguments["x"], node.arguments["y"]
    return (x, y), (y, x)


def terms(add: Node, e: Editor, sign: int) -> list[tuple[Ref, Ref, Ref, Ref]]:
    """(a, b, c, d) of a * b + sign * c * d, in every order of the factors, and of the summands where sign is 1."""
    x, y = add.arguments["x"], add.arguments["y"]
    if float(add.arguments.get("alpha", 1)) != sign:
        return []
    found = []
    for left, right in ((x, y), (y, x)) if sign > 0 else ((x, y),):
        one, other = e.form(left, "mul"), e.form(right, "mul")
        if one is not None and other is not None:
            found += [(*a, *b) for a in pairs(one) for b in pairs(other)]
    return found


def is_slice(node: Node | None, x: Ref, start: int, stop: int, step: int) -> bool:
    """x[..., start:stop:step]."""
    if node is None or node.op != "slice" or node.target is not None or node.arguments["x"] != x:
        return False
    a = node.arguments
    return (a["axis"], a["start"], a["stop"], a["step"]) == (len(node.shape) - 1, start, stop, step)


def column(e: Editor, node: Node, at: int) -> Ref | None:
    """x of x[..., at::2], also written as x.view(.., 2)[..., at]; at: 0 or 1."""
    if node.op == "slice" and node.target is None:
        x = node.arguments["x"]
        width = e.graph.nodes[x.name].shape[-1]
        return x if isinstance(width, int) and is_slice(node, x, at, width, 2) else None
    one = e.form(node.arguments["x"], "slice") if e.form(node, "reshape") else None
    if one is None or not is_slice(one, one.arguments["x"], at, at + 1, 1) or tuple(node.shape) != one.shape[:-1]:
        return None
    twos = e.graph.nodes[one.inputs[0]]
    if twos.shape[-1] != 2 or not isinstance(twos.shape[-2], int):
        return None
    flat = (*twos.shape[:-2], 2 * twos.shape[-2])
    source = e.graph.nodes[twos.inputs[0]] if twos.op == "reshape" and twos.target is None else None
    if source is not None and tuple(source.shape) == flat:
        return Ref(source.name)
    known = [u for u in e.graph.users(twos.name) if u.op == "reshape" and tuple(u.shape) == flat]
    if known:
        return Ref(known[0].name)
    return e.insert_behind(twos, "joined", "reshape", flat, x=Ref(twos.name), shape=list(flat))
