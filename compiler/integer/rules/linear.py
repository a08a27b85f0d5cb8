"""Linear layers (operator 1 of docs/machine.md)."""

from dataclasses import replace

import numpy as np

from hw.spec.errors import UserError
from hw.spec.isa import Row
from hw.spec.weights import BLOCK, MAX_WINDOWS, WINDOW
from ref_model.quantise import QuantLinear
from ref_model.quantise import linear as quantised

from ...graph.ir import Node
from .. import steps as s
from ..steps import Layout
from ..translate import Translator, fixed_rows, rule
from ..views import View, rows_view

MAX_INPUTS = MAX_WINDOWS * WINDOW * BLOCK
"""Inputs of one matrix instruction."""


@rule("linear")
def linear(t: Translator, node: Node) -> View:
    """x W^T + b: int8 rows times int8 weights, a scale word a channel, the row's scale, the bias."""
    x = t.rows(node.arguments["x"].name)
    before = t.steps[x]
    n_out, n_in = (int(d) for d in t.graph.nodes[node.arguments["weight"].name].shape)
    if n_in > MAX_INPUTS:
        raise UserError(
            f"module {node.module}: a linear layer of {n_in:,} inputs, a matrix instruction takes {MAX_INPUTS:,}"
        )
    factor = t.plan.factors.get(node.name, 1.0)
    layout = t.plan.layouts.get(node.name, Layout(1, n_out))
    q = t.given_to(node) or _quantised(t, node, before.layout, layout, factor, before.mult)
    x8, entry = t.int8(x)
    shape = (layout.groups, layout.size)
    y = t.add(s.Product, before.rows, layout, x8, t.param("weight", q.weight))
    y = t.then(s.ScaleChannels, y, t.param("scales", q.words.reshape(shape)), mult=factor)
    y = t.then(s.ScaleRows, y, entry, Row.SCALE, q.shift)
    if q.bias is not None:
        y = t.then(s.Add, y, t.param("bias", q.bias.reshape(shape)))
    return rows_view(y, node.shape)


def _quantised(t: Translator, node: Node, inputs: Layout, outputs: Layout, factor: float, mult: float) -> QuantLinear:
    """Weights in the channels of these layouts. factor: of the result; mult: of the operand."""
    weight, bias = t.constant(node.arguments["weight"].name), node.operand("bias")
    columns = inputs.arrange(weight).reshape(weight.shape)
    arranged = outputs.arrange(columns.T).reshape(weight.shape[::-1]).T
    q = quantised(np.ascontiguousarray(arranged, np.float32), None, factor / mult)
    return q if bias is None else replace(q, bias=fixed_rows(outputs.arrange(t.constant(bias)), factor))
