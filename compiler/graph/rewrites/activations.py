"""Functions of single values, by torch's names and written out."""

import math
from collections.abc import Callable
from typing import Any

from ..edit import Editor, axis_of, number
from ..ir import Node, Ref
from ..meaning import FUNCTIONS

QUICK = 1.702
CLOSE = 1e-9
"""Relative difference of numbers that people write out, such as sqrt(2 / pi), from what they stand for."""


def find_activations(e: Editor) -> None:
    """Functions of single values become one operator, or sums of ramps."""
    for node in e.device():
        if node.target is not None:
            _one(e, node)
    e.graph.drop_dead()


def _one(e: Editor, node: Node) -> None:
    values = list(node.arguments.values())
    name = node.op.removesuffix("_")
    if name in FUNCTIONS and len(node.arguments) == 1:
        e.turn(node, "activation", x=values[0], function=name)
    elif name == "gelu":
        tanh = node.arguments.get("approximate", "none") == "tanh"
        e.turn(node, "activation", x=values[0], function="gelu_tanh" if tanh else "gelu")
    elif node.op == "pow" and isinstance(values[0], Ref):
        _power(e, node, values[0], number(values[1]))
    elif node.op == "mul" and len(values) == 2:
        if values[0] == values[1]:
            e.turn(node, "activation", x=values[0], function="square")
        elif not _gate(e, node, values):
            _gelu(e, node)
    elif name in PIECES:
        PIECES[name](e, node)


def _power(e: Editor, node: Node, x: Ref, exponent: float | None) -> None:
    """Exponents 2, 3 and 4."""
    if exponent == 2:
        e.turn(node, "activation", x=x, function="square")
    elif exponent in (3, 4):
        square = _apply(e, node, x, "square")
        if exponent == 3:
            e.turn(node, "mul", x=square, y=x)
        else:
            e.turn(node, "activation", x=square, function="square")


def _gate(e: Editor, node: Node, values: list) -> bool:
    """x * sigmoid(x) and x * sigmoid(1.702 x)."""
    for x, factor in (values, values[::-1]):
        gate = e.is_op(factor, "sigmoid", "activation")
        if not isinstance(x, Ref) or gate is None or gate.arguments.get("function", "sigmoid") != "sigmoid":
            continue
        inner = next(iter(gate.arguments.values()))
        if inner == x:
            e.turn(node, "activation", x=x, function="silu")
            return True
        scaled = e.is_op(inner, "mul")
        if scaled is not None:
            operands = list(scaled.arguments.values())
            if x in operands and any(number(v) == QUICK for v in operands):
                e.turn(node, "activation", x=x, function="quick_gelu")
                return True
    return False


# --- GELU written out -----------------------------------------------------------------------------------


def _gelu(e: Editor, node: Node) -> None:
    """0.5 x (1 + erf(x / sqrt(2))) and 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3))), in any order of factors."""
    inside = _product_tree(e, Ref(node.name))
    for gate in inside:
        inner = _offset(e, gate, 1.0)
        turned = None if inner is None else e.is_op(inner, "erf", "tanh", "activation")
        if turned is None or turned.arguments.get("function", "tanh") != "tanh":
            continue
        argument = next(iter(turned.arguments.values()))
        for x in inside:
            factor, rest = _factors(e, Ref(node.name), x)
            if not _near(factor, 0.5) or rest not in ([x, gate], [gate, x]):
                continue
            if turned.op == "erf" and _is_scaled(e, argument, x, math.sqrt(0.5)):
                e.turn(node, "activation", x=x, function="gelu")
                return
            if turned.op != "erf" and _is_cubic(e, argument, x):
                e.turn(node, "activation", x=x, function="gelu_tanh")
                return


def _product_tree(e: Editor, ref: Ref) -> list[Ref]:
    """The tensors that a product is made of, products among them."""
    node, found = e.graph.nodes[ref.name], []
    for operand in node.arguments.values():
        if isinstance(operand, Ref):
            inner = e.graph.nodes[operand.name].op in ("mul", "div")
            found += [operand, *(_product_tree(e, operand) if inner else [])]
    return found


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= CLOSE * abs(b)


def _factors(e: Editor, ref: Any, x: Ref) -> tuple[float, list[Any]]:
    """(number, tensors) of a product that is taken apart as far as x; a square is two tensors."""
    if not isinstance(ref, Ref):
        return (1.0, [ref]) if number(ref) is None else (float(ref), [])
    node = e.graph.nodes[ref.name]
    a, parts = node.arguments, []
    power = 1
    if ref == x:
        return 1.0, [ref]
    if node.op == "mul":
        parts = list(a.values())
    elif node.op == "div" and number(a["other"]) is not None and "rounding_mode" not in a:
        factor, rest = _factors(e, a["self"], x)
        return factor / float(a["other"]), rest
    elif node.op == "activation" and a["function"] == "square":
        parts, power = [a["x"]], 2
    elif node.op == "pow" and number(a.get("exponent")) in (2, 3):
        parts, power = [a["self"]], int(a["exponent"])
    if not parts:
        return 1.0, [ref]
    found = [_factors(e, part, x) for part in parts]
    return math.prod(factor for factor, _ in found) ** power, [r for _, rest in found for r in rest] * power


def _offset(e: Editor, ref: Any, value: float) -> Any:
    """y of y + value, in either order."""
    node = e.is_op(ref, "add")
    if node is None or node.target is None or "alpha" in node.arguments:
        return None
    pair = [node.arguments["self"], node.arguments["other"]]
    return next((y for y, v in (pair, pair[::-1]) if number(v) == value and isinstance(y, Ref)), None)


def _is_scaled(e: Editor, ref: Any, x: Ref, wanted: float) -> bool:
    factor, rest = _factors(e, ref, x)
    return rest == [x] and _near(factor, wanted)


def _is_cubic(e: Editor, ref: Any, x: Ref) -> bool:
    """sqrt(2 / pi) (x + 0.044715 x**3), and sqrt(2 / pi) x (1 + 0.044715 x**2)."""
    factor, rest = _factors(e, ref, x)
    if not _near(factor, math.sqrt(2 / math.pi)):
        return False
    if len(rest) == 1:
        power, total = 3, e.is_op(rest[0], "add")
        pair = [] if total is None or "alpha" in total.arguments else list(total.arguments.values())
        inner = [y for y, z in (pair, pair[::-1]) if z == x] if len(pair) == 2 else []
    else:
        power, others = 2, [r for r in rest if r != x]
        inner = [_offset(e, r, 1.0) for r in others] if len(others) == 1 and len(rest) == 2 else []
    found = [_factors(e, y, x) for y in inner if y is not None]
    return any(_near(factor, 0.044715) and rest == [x] * power for factor, rest in found)


# --- functions of straight pieces -----------------------------------------------------------------------


def _apply(e: Editor, node: Node, x: Ref, function: str) -> Ref:
    return e.insert(node, function, "activation", e.graph.nodes[x.name].shape, x=x, function=function)


def _ramp(e: Editor, node: Node, x: Ref, start: float) -> Ref:
    """relu(x - start)."""
    moved = x if start == 0 else e.insert(node, "moved", "offset", e.graph.nodes[x.name].shape, x=x, value=-start)
    return _apply(e, node, moved, "relu")


def _between(e: Editor, node: Node, x: Ref, low: float | None, high: float | None) -> Ref:
    """min(max(x, low), high) = low + relu(x - low) - relu(x - high), for low <= high."""
    shape = e.graph.nodes[x.name].shape
    if low is None:
        assert high is not None
        return e.insert(node, "clamped", "add", shape, x=x, y=_ramp(e, node, x, high), alpha=-1.0)
    value = _ramp(e, node, x, low)
    if high is not None:
        value = e.insert(node, "limited", "add", shape, x=value, y=_ramp(e, node, x, high), alpha=-1.0)
    return value if low == 0 else e.insert(node, "clamped", "offset", shape, x=value, value=low)


def _clamp(e: Editor, node: Node) -> None:
    a = node.arguments
    low, high = (None if a.get(name) is None else number(a[name]) for name in ("min", "max"))
    if node.op.removesuffix("_") == "relu6":
        low, high = 0.0, 6.0
    elif node.op.removesuffix("_") == "hardtanh":
        low, high = float(a.get("min_val", -1)), float(a.get("max_val", 1))
    limits = [a.get(name) for name in ("min", "max") if a.get(name) is not None]
    known = all(number(limit) is not None for limit in limits)
    if known and (low is not None or high is not None) and (low is None or high is None or low <= high):
        value = _between(e, node, Ref(node.inputs[0]), low, high)
        e.bypass(node, e.graph.nodes[value.name])


def _hard_sigmoid(e: Editor, node: Node) -> None:
    """min(max(x + 3, 0), 6) / 6."""
    moved = e.insert(node, "moved", "offset", node.shape, x=Ref(node.inputs[0]), value=3.0)
    e.turn(node, "scale", x=_between(e, node, moved, 0.0, 6.0), factor=1 / 6)


def _leaky(e: Editor, node: Node) -> None:
    """slope x + (1 - slope) relu(x)."""
    x, slope = Ref(node.inputs[0]), float(node.arguments.get("negative_slope", 0.01))
    low = e.insert(node, "low", "scale", node.shape, x=x, factor=slope)
    e.turn(node, "add", x=low, y=_apply(e, node, x, "relu"), alpha=1 - slope)


def _abs(e: Editor, node: Node) -> None:
    """2 relu(x) - x."""
    x = Ref(node.inputs[0])
    double = e.insert(node, "double", "scale", node.shape, x=_apply(e, node, x, "relu"), factor=2.0)
    e.turn(node, "add", x=double, y=x, alpha=-1.0)


def _larger(e: Editor, node: Node) -> None:
    """max(x, y) = y + relu(x - y), min(x, y) = x - relu(x - y)."""
    x, y = list(node.arguments.values())[:2]
    if any(e.graph.nodes[ref.name].shape != node.shape for ref in (x, y)):
        return
    difference = e.insert(node, "difference", "add", node.shape, x=x, y=y, alpha=-1.0)
    ramp = _apply(e, node, difference, "relu")
    if node.op == "maximum":
        e.turn(node, "add", x=y, y=ramp)
    else:
        e.turn(node, "add", x=x, y=ramp, alpha=-1.0)


def _glu(e: Editor, node: Node) -> None:
    """The first half of an axis times the sigmoid of the second."""
    x = e.graph.nodes[node.inputs[0]]
    axis = axis_of(x.shape, int(node.arguments.get("dim", -1)))
    size = node.shape[axis]
    if not isinstance(size, int):
        return
    halves = [
        e.insert(node, "half", "slice", node.shape, x=Ref(x.name), axis=axis, start=at, stop=at + size, step=1)
        for at in (0, size)
    ]
    e.turn(node, "mul", x=halves[0], y=_apply(e, node, halves[1], "sigmoid"))


PIECES: dict[str, Callable[[Editor, Node], None]] = {
    "clamp": _clamp,
    "relu6": _clamp,
    "hardtanh": _clamp,
    "hardsigmoid": _hard_sigmoid,
    "leaky_relu": _leaky,
    "abs": _abs,
    "maximum": _larger,
    "minimum": _larger,
    "glu": _glu,
}
"""Functions of straight pieces, as sums of ramps."""
