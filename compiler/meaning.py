"""What the operators of kernels mean, executable in any floating type: their list is checked against the module.

Kernels, the golden model and its integers are another level: how closely they follow is what `alula verify` and the
tests of quantised models measure.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from hw.spec.errors import InternalError

from . import ir
from .graph import meaning

Parameters = Callable[[str], Tensor]
"""A parameter by its name in fused operators: a path with `.weight` or `.bias` behind it."""


def chain(ops: list[ir.Fused], parameters: Parameters, rows: Tensor, **others: Tensor) -> Tensor:
    """What a list of operators means to kernels: each takes what the one before gave, residuals add to the stream.

    rows: float[n, width]; others: `cos`, `sin`, `past_k` and `past_v` of attention, as far as it has them.
    """
    stream = last = rows
    for op in ops:
        match op:
            case ir.Residual():
                last = stream = stream + linear(op.linear, parameters, last)
            case ir.Attention():
                last = attention(op, parameters, last, **others)
            case _:
                last = value(op, parameters, last)
    return last


def value(op: ir.Fused, parameters: Parameters, x: Tensor) -> Tensor:
    """What an operator of rows alone gives, float[n, width]."""
    match op:
        case ir.Norm():
            bias = parameters(f"{op.name}.bias") if op.kind == "layer" else None
            return meaning.norm(x, op.kind, op.epsilon, parameters(f"{op.name}.weight"), bias)
        case ir.Linear():
            return linear(op, parameters, x)
        case ir.GatedMlp():
            gate, up = (linear(each, parameters, x) for each in (op.gate, op.up))
            return functional.silu(gate) * up
        case ir.PlainMlp():
            return meaning.FUNCTIONS[op.func](linear(op.fc, parameters, x))
        case ir.Tokens():
            return torch.cat((parameters(op.first)[None], x)) + parameters(op.positions)
    raise InternalError(f"operator {op} has no meaning")


def linear(op: ir.Linear, parameters: Parameters, x: Tensor) -> Tensor:
    """x @ weight.T + bias; a weight of more axes (a patch convolution's) is flattened behind the first."""
    bias = parameters(f"{op.name}.bias") if op.bias else None
    return functional.linear(x, parameters(f"{op.name}.weight").flatten(1), bias)


def attention(
    op: ir.Attention,
    parameters: Parameters,
    x: Tensor,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    past_k: Tensor | None = None,
    past_v: Tensor | None = None,
) -> Tensor:
    """softmax(q k / sqrt(head_dim)) v, heads side by side; causal: over the cache and what came before each row."""
    q, k, v = (
        linear(each, parameters, x).reshape(len(x), -1, op.head_dim).transpose(0, 1) for each in (op.q, op.k, op.v)
    )
    if op.rope:
        assert cos is not None and sin is not None
        q, k = (meaning.rope(each, cos, sin, "half", op.head_dim) for each in (q, k))
    if op.causal:
        assert past_k is not None and past_v is not None
        k, v = torch.cat((past_k, k), 1), torch.cat((past_v, v), 1)
    out = meaning.attention(q, k, v, 1 / math.sqrt(op.head_dim), causal=op.causal)
    return out.transpose(0, 1).reshape(len(x), -1)
