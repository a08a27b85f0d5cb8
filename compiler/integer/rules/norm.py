"""RMSNorm and LayerNorm (operators 3 and 4 of docs/machine.md), over whole rows or head by head."""

from dataclasses import replace

import numpy as np

from hw.spec import numerics as nm
from hw.spec.isa import Fin, Reduce, Row
from ref_model.quantise import QuantNorm
from ref_model.quantise import norm as quantised

from ...graph.ir import Node
from .. import steps as s
from ..translate import Translator, fixed_rows, refused, rule
from ..views import View, is_rows, whole_groups

EPSILON = 2.0**-23
"""torch's epsilon of an RMSNorm that has none, in float32."""


@rule("norm")
def norm(t: Translator, node: Node) -> View:
    x, whole = _operand(t, node)
    before = t.steps[x]
    width = before.layout.width if whole else before.layout.size
    factor = t.plan.factors.get(node.name, 1.0)
    q = t.given_to(node) or _quantised(t, node, width, factor, before.mult)
    if node.arguments["kind"] == "layer":
        mean = t.entry(x, Reduce.SUM, Fin.MEAN, constant=nm.encode_scale(1 / width), whole=whole)
        x = t.then(s.SubtractRows, x, mean)
    sums = t.entry(x, Reduce.SUMSQ, Fin.RSQRT, t.absmax(x, whole), q.epsilon, whole)
    words = _lanes(t, x, q.words, whole)
    y = t.then(s.ScaleChannels, x, t.param("scales", words), mult=factor)
    y = t.then(s.ScaleRows, y, sums, Row.FIN, q.adjust)
    if q.bias is not None:
        y = t.then(s.Add, y, t.param("bias", _lanes(t, x, q.bias, whole)))
    view = t.view(node.arguments["x"].name)
    return View(y, view.axes)


def _quantised(t: Translator, node: Node, width: int, factor: float, mult: float) -> QuantNorm:
    """factor: of the result; mult: of the operand."""
    weight_node, bias = node.operand("weight"), node.operand("bias")
    weight = np.ones(width) if weight_node is None else t.constant(weight_node)
    q = quantised((weight * factor).astype(np.float32), float(node.arguments.get("epsilon", EPSILON)) * mult**2)
    return q if bias is None else replace(q, bias=fixed_rows(t.constant(bias), factor))


def _operand(t: Translator, node: Node) -> tuple[str, bool]:
    """(value, whether the norm is over whole rows)."""
    name = node.arguments["x"].name
    view = t.view(name)
    step = t.steps[view.base]
    if is_rows(view, step.rows, step.layout.width):
        return view.base, True
    if whole_groups(view, step.rows, step.layout.groups, step.layout.size):
        return view.base, False
    x = t.rows(name)
    if t.steps[x].layout.width != node.shape[-1]:
        raise refused(node, "it is over a part of a row", "a norm over whole rows or over the channels of every head")
    return x, True


def _lanes(t: Translator, x: str, channels: np.ndarray, whole: bool) -> np.ndarray:
    """A constant a channel as int64[groups, size]; every head has the same of a norm over heads."""
    layout = t.steps[x].layout
    if whole:
        return layout.arrange(channels)
    one = channels if layout.order is None else channels[list(layout.order)]
    return np.broadcast_to(one, (layout.groups, layout.size)).copy()
