"""Sums, products and functions of single values."""

from collections.abc import Callable

import numpy as np

from hw.spec import numerics as nm
from hw.spec.isa import Func, Reduce, Row
from ref_model.quantise import GATED_FRAC_BITS, encode_scales

from ...graph.ir import Node
from .. import steps as s
from ..steps import Array, Layout
from ..translate import Translator, fixed_rows, refused, rule
from ..views import CHANNEL, ROW, View, merged, rows_view

MINUS = nm.encode_scale(-1.0)

# --- operands -------------------------------------------------------------------------------------------


def channel_constant(t: Translator, x: View, values: Array) -> Array | None:
    """A constant that broadcasts against a view, as one number a channel of the base: [groups, size]; None where it
    differs from row to row."""
    values = values.reshape((1,) * (len(x.axes) - values.ndim) + values.shape)
    if any(given not in (1, size) for given, size in zip(values.shape, x.shape, strict=True)):
        return None
    axes = [merged(axis) for axis in x.axes]
    numbers: Array = np.zeros((1,) * len(axes), np.int64)
    for at, atoms in enumerate(axes):
        if any(atom.part == ROW for atom in atoms):
            if values.shape[at] != 1:
                return None
            continue
        places = np.zeros(1, np.int64)
        for atom in atoms:
            places = (places[:, None] + np.arange(int(atom.size)) * atom.stride).reshape(-1)
        numbers = numbers + places.reshape([-1 if i == at else 1 for i in range(len(axes))])
    layout = t.steps[x.base].layout
    if numbers.size != layout.width or x.channel:
        return None
    out = np.empty(layout.width)
    out[numbers.reshape(-1)] = np.broadcast_to(values, numbers.shape).reshape(-1)
    return layout.arrange(out)


def _row_operands(t: Translator, node: Node, x: str, y: str) -> tuple[str, str] | None:
    """(operand of many channels, activation of one number a row) of a node that has two such operands."""
    for many, one in ((x, y), (y, x)):
        shape = t.graph.nodes[one].shape
        if not t.is_table(one) and len(shape) == len(node.shape) and shape[-1] == 1 and node.shape[-1] != 1:
            return many, one
    return None


def _rows_of(t: Translator, node: Node, name: str) -> View:
    """An operand that has the channels of the node's result; what the host computes repeats along its rows."""
    if not t.is_table(name):
        return t.view(name)
    layout = Layout(1, int(node.shape[-1]))
    rows = t.add(s.Input, t.flat(node), layout, node=name, shape=tuple(node.shape), name=f"{name}.rows")
    return rows_view(rows, node.shape)


def _pair(t: Translator, node: Node, x: str, y: str) -> tuple[str, str, View]:
    """Values of two operands in the same layout, and the view of their result."""
    if t.is_table(y) and t.graph.nodes[y].shape != node.shape:
        return t.rows(x), _broadcast(t, node, x, y), t.view(x)
    view, other = t.view(x), t.view(y)
    first = t.steps[view.base]
    if other.axes != view.axes or other.base != view.base or (view.row, view.channel) != (other.row, other.channel):
        a, b = t.steps[t.rows(x)], t.steps[t.rows(y)]
        view, first = t.view(x), a
        if str(a.rows) != str(b.rows) and b.rows != 1:
            if a.rows == 1:
                return _pair(t, node, y, x)
            raise refused(node, "its operands have different rows", "operands of the same shape")
        if a.layout != b.layout and t.is_input(x):
            return _pair(t, node, y, x)
        return a.name, t.in_layout(node, y, b.name, a.layout), view
    return first.name, first.name, view


def _broadcast(t: Translator, node: Node, x: str, table: str) -> str:
    """What the host computes, as rows of its own in the layout of the other operand."""
    base, widths = t.steps[t.rows(x)], {t.graph.nodes[x].shape[-1:], node.shape[-1:]}
    if len(widths) > 1 or str(base.rows) != str(t.flat(node)):
        shape = " x ".join(str(d) for d in t.graph.nodes[x].shape)
        raise refused(node, f"its operand [{shape}] repeats along the other one", "activations of the result's shape")
    return t.add(s.Input, base.rows, base.layout, node=table, shape=tuple(node.shape), name=f"{table}.rows")


# --- rules ----------------------------------------------------------------------------------------------


@rule("add")
def add(t: Translator, node: Node) -> View:
    """x + alpha y. A linear layer's bias is added after the other operand: one pass does both."""
    x, y = node.arguments["x"].name, node.arguments["y"].name
    alpha = float(node.arguments.get("alpha", 1))
    if t.is_table(x) and alpha == 1:
        x, y = y, x
    if t.is_constant(y):
        view = t.view(x)
        found = channel_constant(t, view, t.constant(y) * alpha)
        if found is not None:
            base = t.steps[view.base]
            return View(t.then(s.Add, base.name, t.param("added", fixed_rows(found, base.mult))), view.axes)
    if operands := _row_operands(t, node, x, y):
        return _plus_row(t, node, *operands, alpha)
    a, b, view = _pair(t, node, x, y)
    a = t.at_mult(a)
    b = t.then(s.ScaleAll, b, nm.encode_scale(alpha / t.steps[b].mult), mult=1.0) if alpha != 1 else t.at_mult(b)
    for one, other in ((a, b), (b, a)):
        last = t.steps[one]
        if isinstance(last, s.Add) and isinstance(last.y, s.Param) and _own_bias(t, node, one):
            return View(t.then(s.Add, t.then(s.Add, last.x, other), last.y), view.axes)
    return View(t.then(s.Add, a, b), view.axes)


def _own_bias(t: Translator, node: Node, value: str) -> bool:
    """Whether the value is a linear layer's that nobody but `node` reads."""
    for name in node.inputs:
        source = t.graph.nodes[name]
        if source.op == "linear" and name in t.views and t.views[name].base == value:
            return len(t.graph.users(name)) == 1 and name not in t.graph.outputs
    return False


@rule("mul")
def mul(t: Translator, node: Node) -> View:
    x, y = node.arguments["x"].name, node.arguments["y"].name
    if t.is_table(x):
        x, y = y, x
    if t.is_constant(y):
        view = t.view(x)
        found = channel_constant(t, view, t.constant(y))
        if found is not None:
            words = encode_scales(found.reshape(-1)).reshape(found.shape)
            return View(t.then(s.ScaleChannels, view.base, t.param("factors", words)), view.axes)
    if operands := _row_operands(t, node, x, y):
        return _by_row(t, node, *operands)
    a, b, view = _pair(t, node, x, y)
    a, b = t.at_mult(a), t.at_mult(b)
    gated = any(t.graph.nodes[name].op == "activation" for name in (x, y))
    bits = GATED_FRAC_BITS if gated else 0
    product = t.then(s.Multiply, a, b, nm.FRAC - bits, mult=2.0**bits)
    return View(product, view.axes)


def _by_row(t: Translator, node: Node, x: str, factor: str) -> View:
    """Rows times one number each. Row scalars are magnitudes: a factor of either sign is the difference of two."""
    view, factors = _rows_of(t, node, x), t.at_mult(_one_channel(t, node, factor))
    scaled = _scaled(t, view.base, factors)
    if not _never_negative(t, factor):
        less = _scaled(t, view.base, _relu(t, t.then(s.ScaleAll, factors, MINUS)))
        scaled = t.then(s.Add, _scaled(t, view.base, _relu(t, factors)), t.then(s.ScaleAll, less, MINUS))
    return View(scaled, view.axes)


def _scaled(t: Translator, x: str, factors: str) -> str:
    return t.then(s.ScaleRows, x, t.entry(factors, Reduce.SUM), Row.SCALE, nm.FRAC)


def _never_negative(t: Translator, name: str) -> bool:
    """Whether an operator gives nothing below 0, seen through views and choices."""
    source = t.graph.nodes[name]
    while source.op in ("slice", "reshape", "route"):
        source = t.graph.nodes[source.inputs[0]]
    positive = source.op == "activation" and source.arguments["function"] in ("sigmoid", "relu", "square")
    return positive or source.op == "softmax"


def _plus_row(t: Translator, node: Node, x: str, summand: str, alpha: float) -> View:
    """Rows plus one number each. alpha multiplies the node's second operand."""
    view = _rows_of(t, node, x)
    if node.arguments["y"].name == x and alpha != 1:
        raise refused(node, "rows that are multiplied are added to one number each", "a factor of its own")
    one, mult = _one_channel(t, node, summand), t.steps[view.base].mult
    less = t.then(s.ScaleAll, one, nm.encode_scale(-alpha * mult / t.steps[one].mult), mult=mult)
    return View(t.then(s.SubtractRows, view.base, t.entry(less, Reduce.SUM)), view.axes)


def _one_channel(t: Translator, node: Node, name: str) -> str:
    """A value whose sum over a row is the node's only channel: the others are multiplied by 0."""
    view = t.view(name)
    step = t.steps[view.base]
    if step.layout.width == 1:
        return view.base
    *lead, last = view.axes
    if merged(last) or view.row or any(atom.part == CHANNEL for axis in lead for atom in merged(axis)):
        raise refused(node, "its factor is more than one channel of a row", "one factor a row")
    one = np.zeros(step.layout.width)
    one[view.channel] = 1.0
    words = encode_scales(one).reshape(1, -1)
    return t.then(s.ScaleChannels, view.base, t.param("channel", step.layout.arrange(words[0])))


@rule("scale")
def scale(t: Translator, node: Node) -> View:
    """Times a number. Nothing is computed: the integers stand for other values now, unless the sign changes."""
    view, factor = t.view(node.arguments["x"].name), float(node.arguments["factor"])
    step = t.steps[view.base]
    if factor == 0:
        raise refused(node, "it is always zero", "a factor that is not 0")
    if factor > 0:
        same = t.then(s.Same, step.name, mult=step.mult / factor)
        return View(same, view.axes, view.row, view.channel)
    return View(t.then(s.ScaleAll, step.name, nm.encode_scale(factor)), view.axes)


@rule("offset")
def offset(t: Translator, node: Node) -> View:
    view = t.view(node.arguments["x"].name)
    step = t.steps[view.base]
    added = fixed_rows(np.full((step.layout.groups, step.layout.size), float(node.arguments["value"])), step.mult)
    return View(t.then(s.Add, step.name, t.param("offset", added)), view.axes)


@rule("activation")
def activation(t: Translator, node: Node) -> View:
    name = node.arguments["function"]
    if name not in FUNCTIONS:
        raise refused(node, f"the machine has no {name}", ", ".join(FUNCTIONS))
    view = t.view(node.arguments["x"].name)
    return View(FUNCTIONS[name](t, t.at_mult(view.base)), view.axes)


# --- functions ------------------------------------------------------------------------------------------


def _table(func: Func) -> Callable[[Translator, str], str]:
    return lambda t, x: t.then(s.Function, x, func)


def _plus(t: Translator, x: str, name: str, value: int) -> str:
    """Plus an integer; saturates."""
    layout = t.steps[x].layout
    return t.then(s.Add, x, t.param(name, np.full((layout.groups, layout.size), value, np.int64)))


def _square(t: Translator, x: str) -> str:
    return t.then(s.Multiply, x, x, nm.FRAC)


def _tanh(t: Translator, x: str) -> str:
    """2 sigmoid(2 x) - 1."""
    factor = t.then(s.Function, t.then(s.ScaleAll, x, nm.encode_scale(2.0)), Func.SIGMOID)
    return _plus(t, t.then(s.ScaleAll, factor, nm.encode_scale(2.0)), "one", -(1 << nm.FRAC))


def _relu(t: Translator, x: str) -> str:
    """Saturating sums: x - 2**31 loses what is below 0, the next two sums bring the rest back."""
    for name, value in (("down", nm.INT32_MIN), ("up", nm.INT32_MAX), ("one", 1)):
        x = _plus(t, x, name, value)
    return x


def _hardswish(t: Translator, x: str) -> str:
    """x min(max(x + 3, 0), 6) / 6; the sixth goes into the multiplier."""
    six = 6 << nm.FRAC
    capped = _plus(t, _plus(t, x, "up", (3 << nm.FRAC) + nm.INT32_MAX - six), "down", six - nm.INT32_MAX)
    product = t.then(s.Multiply, x, _relu(t, capped), nm.FRAC)
    return t.then(s.Same, product, mult=6.0)


FUNCTIONS: dict[str, Callable[[Translator, str], str]] = {
    "silu": _table(Func.SILU),
    "gelu": _table(Func.GELU),
    "gelu_tanh": _table(Func.GELU),
    "quick_gelu": _table(Func.QGELU),
    "sigmoid": _table(Func.SIGMOID),
    "tanh": _tanh,
    "relu": _relu,
    "hardswish": _hardswish,
    "square": _square,
}
"""A value at multiplier 1 -> the function of it. gelu_tanh differs from gelu by 7e-4 at most, as its table does."""
