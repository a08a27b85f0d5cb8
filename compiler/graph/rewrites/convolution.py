"""Convolutions as linear layers over gathered tokens (im2col)."""

import torch
from torch import Tensor

from ..edit import Editor
from ..ir import Node, Ref
from ..sizes import times

AXES = {"conv1d": 1, "conv2d": 2, "conv3d": 3}


def find_convolutions(e: Editor) -> None:
    """Convolutions with constant weights over grids of fixed size."""
    for node in e.device():
        if node.target is not None and node.op in AXES:
            _convolution(e, node, AXES[node.op])
    e.graph.drop_dead()


def _convolution(e: Editor, node: Node, axes: int) -> None:
    """[batch, c, *grid] -> tokens of all taps side by side -> linear -> [batch, o, *grid]."""
    a = node.arguments
    source, weight = e.of(a["input"]), e.of(a["weight"])
    if source is None or weight is None or not e.is_constant(a["weight"]):
        return
    if any(not isinstance(d, int) for d in (*source.shape, *node.shape)):
        return
    batch, channels, out = int(times(source.shape[: -axes - 1])), int(source.shape[-axes - 1]), int(weight.shape[0])
    grid, result = ([int(d) for d in shape[-axes:]] for shape in (source.shape, node.shape))
    tokens, places = batch * int(times(grid)), batch * int(times(result))
    index = _taps(node, grid, result, [int(k) for k in weight.shape[2:]], batch)
    taps = index.shape[1]
    rows = _tokens(e, node, source, batch, channels, tokens)
    if (index < 0).any():
        zeros = e.constant(node, "zeros", lambda n: torch.zeros(1, n), (1, channels), n=channels)
        rows = e.insert(node, "padded", "cat", (tokens + 1, channels), parts=[rows, zeros], axis=0)
        index = torch.where(index < 0, tokens, index)
    flat = index.reshape(-1).tolist()
    listed = e.constant(node, "index", lambda values: torch.tensor(values), (places * taps,), values=flat)
    taken = e.insert(node, "taken", "gather", (places * taps, channels), x=rows, index=listed, axis=0)
    width = taps * channels
    wide = e.insert(node, "wide", "reshape", (places, width), x=taken, shape=[places, width])
    known = {"weight": a["weight"], "groups": int(a.get("groups", 1)), "channels": channels}
    matrix = e.constant(node, "matrix", _dense, (out, width), **known)
    bias = {"bias": a["bias"]} if a.get("bias") is not None else {}
    made = e.insert(node, "product", "linear", (places, out), x=wide, weight=matrix, **bias)
    _grids(e, node, made, batch, places // batch, out)


def _tokens(e: Editor, node: Node, source: Node, batch: int, channels: int, tokens: int) -> Ref:
    """[batch, c, *grid] as [tokens, c]."""
    shape = [*([batch] if batch > 1 else []), channels, tokens // batch]
    flat = e.insert(node, "flat", "reshape", shape, x=Ref(source.name), shape=shape)
    if batch == 1:
        return e.insert(node, "tokens", "permute", (tokens, channels), x=flat, order=[1, 0])
    moved = e.insert(node, "moved", "permute", (batch, tokens // batch, channels), x=flat, order=[0, 2, 1])
    return e.insert(node, "tokens", "reshape", (tokens, channels), x=moved, shape=[tokens, channels])


def _grids(e: Editor, node: Node, made: Ref, batch: int, places: int, out: int) -> None:
    """The node as [tokens, o] brought to [batch, o, *grid]."""
    if batch == 1:
        back = e.insert(node, "back", "permute", (out, places), x=made, order=[1, 0])
    else:
        shape = [batch, places, out]
        apart = e.insert(node, "apart", "reshape", shape, x=made, shape=shape)
        back = e.insert(node, "back", "permute", (batch, out, places), x=apart, order=[0, 2, 1])
    e.turn(node, "reshape", x=back, shape=list(node.shape))


def _taps(node: Node, grid: list[int], result: list[int], kernel: list[int], batch: int) -> Tensor:
    """int64[places, taps]: the token under every tap, -1 beyond the border."""
    a, axes = node.arguments, len(kernel)
    stride, dilation = (_each(a.get(name, 1), axes) for name in ("stride", "dilation"))
    pad = a.get("padding", 0)
    if pad == "same":
        ahead = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
    else:
        ahead = [0] * axes if pad == "valid" else _each(pad, axes)
    token = torch.zeros([1] * (2 * axes), dtype=torch.int64)
    inside = torch.ones([1] * (2 * axes), dtype=torch.bool)
    for axis in range(axes):
        at = torch.arange(result[axis])[:, None] * stride[axis] - ahead[axis]
        at = at + torch.arange(kernel[axis])[None] * dilation[axis]
        shape = [1] * (2 * axes)
        shape[axis], shape[axes + axis] = at.shape
        at = at.reshape(shape)
        token = token * grid[axis] + at
        inside = inside & (at >= 0) & (at < grid[axis])
    flat = torch.where(inside, token, -1).reshape(int(times(result)), int(times(kernel)))
    starts = torch.arange(batch)[:, None, None] * int(times(grid))
    return torch.where(flat < 0, -1, flat + starts).reshape(-1, flat.shape[1])


def _each(value, axes: int) -> list[int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return [int(v) for v in (values * axes if len(values) == 1 else values)]


def _dense(weight: Tensor, groups: int, channels: int) -> Tensor:
    """[out, channels / groups, *kernel] -> [out, taps * channels]: zeros where a group does not look."""
    out, each = weight.shape[:2]
    taps = weight.reshape(out, each, -1).transpose(1, 2)
    wide = taps.new_zeros(out, taps.shape[1], channels)
    for group in range(groups):
        rows = slice(group * out // groups, (group + 1) * out // groups)
        wide[rows, :, group * each : (group + 1) * each] = taps[rows]
    return wide.reshape(out, -1)
