"""Sums and products: add, mul, scale, offset, softmax."""

from collections.abc import Callable
from typing import Any

import torch

from ..edit import Editor, axis_of, number
from ..ir import HOST, ON_DEVICE, Length, Node, Ref
from ..sizes import times


def find_means(e: Editor) -> None:
    """A sum over axes that is divided by their size is a mean."""
    for node in e.device():
        if node.op not in ("div", "mul") or node.target is None or "rounding_mode" in node.arguments:
            continue
        total, divisor = e.is_op(node.arguments["self"], "sum"), node.arguments["other"]
        if total is None or total.target is None or not total.arguments.get("dim") or "dtype" in total.arguments:
            continue
        source = e.graph.nodes[total.inputs[0]]
        size = times(source.shape[int(axis)] for axis in total.arguments["dim"])
        value = number(divisor)
        if node.op == "mul":
            equal = isinstance(size, int) and value == 1 / size
        else:
            equal = value == size if isinstance(size, int) else divisor == size
        if equal:
            node.op, node.target, node.arguments = "mean", torch.ops.aten.mean.dim, dict(total.arguments)
    e.graph.drop_dead()


def find_arithmetic(e: Editor) -> None:
    """Sums and products with numbers, lengths and tensors; softmax over any axis."""
    for node in e.device():
        if node.target is not None and node.op.removesuffix("_") in FORMS:
            FORMS[node.op.removesuffix("_")](e, node)
    e.graph.drop_dead()


def put_tables_second(e: Editor) -> None:
    """What is no activation is the second operand of a sum or product."""
    for node in e.device():
        if node.op not in ("add", "mul") or node.target is not None:
            continue
        x, y = node.arguments["x"], node.arguments["y"]
        if e.graph.nodes[x.name].kind == ON_DEVICE:
            continue
        alpha = node.arguments.get("alpha", 1)
        if alpha != 1:
            y = e.insert(node, "scaled", "scale", e.graph.nodes[y.name].shape, x=y, factor=float(alpha))
        e.turn(node, node.op, x=y, y=x)


def _add(e: Editor, node: Node) -> None:
    a = node.arguments
    _sum(e, node, a["self"], a["other"], float(a.get("alpha", 1)))


def _sub(e: Editor, node: Node) -> None:
    a = node.arguments
    _sum(e, node, a["self"], a["other"], -float(a.get("alpha", 1)))


def _rsub(e: Editor, node: Node) -> None:
    """other - alpha * self."""
    a = node.arguments
    negative = e.insert(node, "negative", "scale", _shape(e, a["self"]), x=a["self"], factor=-float(a.get("alpha", 1)))
    _sum(e, node, negative, a["other"], 1.0)


def _sum(e: Editor, node: Node, x: Any, y: Any, alpha: float) -> None:
    known_x, known_y = e.number_of(x), e.number_of(y)
    if known_y is not None:
        e.turn(node, "offset", x=x, value=alpha * known_y)
    elif known_x is not None:
        scaled = y if alpha == 1 else e.insert(node, "scaled", "scale", node.shape, x=y, factor=alpha)
        e.turn(node, "offset", x=scaled, value=known_x)
    else:
        e.turn(node, "add", x=_tensor(e, node, x), y=_tensor(e, node, y), **({} if alpha == 1 else {"alpha": alpha}))


def _mul(e: Editor, node: Node) -> None:
    x, y = node.arguments["self"], node.arguments["other"]
    if e.number_of(x) is not None:
        x, y = y, x
    known = e.number_of(y)
    if known is not None:
        e.turn(node, "scale", x=x, factor=known)
    else:
        e.turn(node, "mul", x=_tensor(e, node, x), y=_tensor(e, node, y))


def _div(e: Editor, node: Node) -> None:
    """A product with the inverse of a number, of a length, or of what is no activation."""
    x, y = node.arguments["self"], node.arguments["other"]
    if "rounding_mode" in node.arguments or not isinstance(x, Ref):
        return
    known = e.number_of(y)
    if known is not None:
        e.turn(node, "scale", x=x, factor=1 / known)
        return
    y = _tensor(e, node, y)
    divisor = e.graph.nodes[y.name]
    if divisor.kind != ON_DEVICE:
        inverse = e.insert(node, "inverse", "inverse", divisor.shape, divisor.kind, torch.reciprocal, input=y)
        e.turn(node, "mul", x=x, y=inverse)


def _tensor(e: Editor, before: Node, value: Any) -> Ref:
    """An operand as a tensor: a length becomes one that the host computes."""
    if isinstance(value, Length):
        return e.insert(before, "length", "length", (), HOST, _as_tensor, value=value)
    assert isinstance(value, Ref), f"{before.name} has an operand that is no tensor and no number"
    return value


def _as_tensor(value: int) -> torch.Tensor:
    return torch.tensor(float(value))


def _shape(e: Editor, value: Any) -> tuple:
    return e.graph.nodes[value.name].shape


def _neg(e: Editor, node: Node) -> None:
    e.turn(node, "scale", x=Ref(node.inputs[0]), factor=-1.0)


def _softmax(e: Editor, node: Node) -> None:
    """Over the last axis; another one is moved there."""
    a = node.arguments
    x, last = a.get("self", a.get("input")), len(node.shape) - 1
    axis = axis_of(node.shape, int(a["dim"]))
    if axis == last:
        e.turn(node, "softmax", x=x)
        return
    order = [last if i == axis else axis if i == last else i for i in range(last + 1)]
    shape = [node.shape[i] for i in order]
    moved = e.insert(node, "moved", "permute", shape, x=x, order=order)
    e.turn(node, "permute", x=e.insert(node, "rows", "softmax", shape, x=moved), order=order)


def _addcmul(e: Editor, node: Node) -> None:
    """self + value * tensor1 * tensor2."""
    a = node.arguments
    x, y = a["tensor1"], a["tensor2"]
    shape = torch.broadcast_shapes(_plain(_shape(e, x)), _plain(_shape(e, y)))
    if _plain(node.shape) != tuple(shape):
        return
    product = e.insert(node, "product", "mul", node.shape, x=x, y=y)
    _sum(e, node, a["self"], product, float(a.get("value", 1)))


def _plain(shape: tuple) -> tuple[int, ...]:
    """A shape with a number of its own, and no small one, in place of each symbolic length."""
    return tuple(d if isinstance(d, int) else (1 << 32) + hash(str(d)) % (1 << 30) for d in shape)


def _lerp(e: Editor, node: Node) -> None:
    """self + weight * (end - self), of a number."""
    a = node.arguments
    if number(a["weight"]) is None or _shape(e, a["self"]) != node.shape or _shape(e, a["end"]) != node.shape:
        return
    difference = e.insert(node, "difference", "add", node.shape, x=a["end"], y=a["self"], alpha=-1.0)
    _sum(e, node, a["self"], difference, float(a["weight"]))


FORMS: dict[str, Callable[[Editor, Node], None]] = {
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "softmax": _softmax,
    "_softmax": _softmax,
    "addcmul": _addcmul,
    "lerp": _lerp,
}
