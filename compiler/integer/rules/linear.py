"""Linear layers (operator 1 of docs/machine.md)."""

import numpy as np

from hw.spec.errors import UserError
from hw.spec.isa import Row
from hw.spec.weights import BLOCK, MAX_WINDOWS, WINDOW
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
    weight = t.constant(node.arguments["weight"].name)
    bias_node = node.operand("bias")
    n_out, n_in = weight.shape
    if n_in > MAX_INPUTS:
        raise UserError(
            f"module {node.module}: a linear layer of {n_in:,} inputs, a matrix instruction takes {MAX_INPUTS:,}"
        )
    factor = t.plan.factors.get(node.name, 1.0)
    layout = t.plan.layouts.get(node.name, Layout(1, n_out))
    columns = before.layout.arrange(weight).reshape(n_out, n_in)
    arranged = layout.arrange(columns.T).reshape(n_in, n_out).T
    q = quantised(np.ascontiguousarray(arranged, np.float32), None, factor / before.mult)
    x8, entry = t.int8(x)
    shape = (layout.groups, layout.size)
    y = t.add(s.Product, before.rows, layout, x8, t.param("weight", q.weight))
    y = t.then(s.ScaleChannels, y, t.param("scales", q.words.reshape(shape)), mult=factor)
    y = t.then(s.ScaleRows, y, entry, Row.SCALE, q.shift)
    if bias_node is not None:
        bias = layout.arrange(t.constant(bias_node))
        y = t.then(s.Add, y, t.param("bias", fixed_rows(bias, factor)))
    return rows_view(y, node.shape)
