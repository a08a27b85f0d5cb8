"""What operators mean, executable: the one definition that passes are checked against (`compiler.verify`).

Captured nodes mean what torch computes. A fused operator means what its function here computes from its operands, in
plain tensor arithmetic of any floating type. Kernels, the golden model and its integers are another level: how closely
they follow is what `alula verify` and the tests of quantised models measure.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hw.spec.errors import InternalError

from . import ir

Parameters = Callable[[str], Tensor]
"""A parameter by its name in fused operators: a path with `.weight` or `.bias` behind it."""
Lengths = Mapping[str, int]
"""A value of every symbolic length."""


def node_value(node: ir.Node, values: Mapping[str, Any], parameters: Parameters, lengths: Lengths) -> Any:
    """What a node gives, from the values of the nodes before it."""
    arguments = {name: _resolved(argument, values, lengths) for name, argument in node.arguments.items()}
    if node.fused is None:
        assert node.target is not None, f"{node.name} is neither torch's nor fused"
        return node.target(**arguments)
    return fused_value(node.fused, parameters, lengths, **arguments)


def _resolved(argument: Any, values: Mapping[str, Any], lengths: Lengths) -> Any:
    """Tensors for references, numbers for lengths; the device is where the check runs."""
    match argument:
        case ir.Ref():
            return values[argument.name]
        case ir.Length():
            return argument.at(lengths)
        case list() | tuple():
            return [_resolved(part, values, lengths) for part in argument]
        case torch.device():
            return torch.device("cpu")
    return argument


def fused_value(op: ir.Fused, parameters: Parameters, lengths: Lengths, **operands: Tensor) -> Tensor:
    """What a fused operator gives: float[rows, width] unless its class says otherwise."""
    match op:
        case ir.Norm():
            return norm(op, parameters, **operands)
        case ir.Linear():
            return linear(op, parameters, **operands)
        case ir.Residual():
            return operands["stream"] + linear(op.linear, parameters, operands["x"])
        case ir.GatedMlp():
            gate, up = (linear(each, parameters, **operands) for each in (op.gate, op.up))
            return gate * torch.sigmoid(gate) * up
        case ir.PlainMlp():
            return ACTIVATIONS[op.func](linear(op.fc, parameters, **operands))
        case ir.Tokens():
            return torch.cat((parameters(op.first)[None], operands["x"])) + parameters(op.positions)
        case ir.Split():
            return split(operands["x"], op.heads)
        case ir.Merge():
            return merge(operands["x"])
        case ir.Rope():
            return rotate(**operands)
        case ir.CausalMask():
            return causal_mask(lengths["seq"], lengths["cache"])
        case ir.Cached():
            return cached(op, parameters, **operands)
        case ir.Attention():
            return attention(op, parameters, **operands)
    raise InternalError(f"operator {op} has no meaning")


def linear(op: ir.Linear, parameters: Parameters, x: Tensor) -> Tensor:
    """x @ weight.T + bias; a weight of more axes (a patch convolution's) is flattened behind the first."""
    y = x @ parameters(f"{op.name}.weight").flatten(1).T
    return y + parameters(f"{op.name}.bias") if op.bias else y


def norm(op: ir.Norm, parameters: Parameters, x: Tensor) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias of kind 'layer'; 'rms' has no mean and no bias."""
    centred = x - x.mean(-1, keepdim=True) if op.kind == "layer" else x
    scaled = centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + op.epsilon)
    y = scaled * parameters(f"{op.name}.weight")
    return y + parameters(f"{op.name}.bias") if op.kind == "layer" else y


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def split(x: Tensor, heads: int) -> Tensor:
    return x.reshape(x.shape[0], heads, -1).transpose(0, 1)


def merge(x: Tensor) -> Tensor:
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def causal_mask(seq: int, cache: int) -> Tensor:
    return torch.arange(cache + seq)[None, :] <= cache + torch.arange(seq)[:, None]


def cached(
    op: ir.Cached, parameters: Parameters, x: Tensor, past: Tensor, cos: Tensor | None = None, sin: Tensor | None = None
) -> Tensor:
    new = split(linear(op.linear, parameters, x), op.heads)
    if op.rope:
        assert cos is not None and sin is not None
        new = rotate(new, cos, sin)
    return torch.cat((past, new), 1)


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
    shape = (op.kv_heads, 0, op.head_dim)
    past_k, past_v = (x.new_zeros(shape) if past is None else past for past in (past_k, past_v))
    k = cached(ir.Cached(op.k, op.kv_heads, op.head_dim, op.rope), parameters, x, past_k, cos, sin)
    v = cached(ir.Cached(op.v, op.kv_heads, op.head_dim, False), parameters, x, past_v)
    q = split(linear(op.q, parameters, x), op.heads)
    if op.rope:
        assert cos is not None and sin is not None
        q = rotate(q, cos, sin)
    k, v = (each.repeat_interleave(op.heads // op.kv_heads, 0) for each in (k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(op.head_dim)
    if op.causal:
        scores = scores.masked_fill(~causal_mask(x.shape[0], past_k.shape[1]), -math.inf)
    return merge(torch.softmax(scores, -1) @ v)


def chain(ops: list, parameters: Parameters, rows: Tensor, **others: Tensor) -> Tensor:
    """What a list of operators means to kernels: each takes what the one before gave, residuals add to the stream.

    others: the part's further inputs, which attention takes.
    """
    stream = last = rows
    for op in ops:
        operands = {"x": last}
        if isinstance(op, ir.Residual):
            operands["stream"] = stream
        if isinstance(op, ir.Attention):
            operands |= others
        last = fused_value(op, parameters, {}, **operands)
        stream = last if isinstance(op, ir.Residual) else stream
    return last
