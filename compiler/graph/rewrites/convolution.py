"""Convolutions as linear layers over gathered tokens (im2col)."""

import torch
from torch import Tensor
from torch.nn import functional

from ..edit import Editor
from ..ir import Node, Ref


def find_convolutions(e: Editor) -> None:
    for node in e.device():
        if node.target is not None and node.op in ("conv2d", "conv1d"):
            _convolution(e, node)
    e.graph.drop_dead()


def _convolution(e: Editor, node: Node) -> None:
    """[1, c, *grid] -> tokens of all taps side by side -> linear -> [1, o, *grid]."""
    a = node.arguments
    source, weight = e.of(a["input"]), e.of(a["weight"])
    if source is None or weight is None or not e.is_constant(a["weight"]):
        return
    axes = len(weight.shape) - 2
    if any(not isinstance(d, int) for d in (*source.shape, *node.shape)) or any(
        d != 1 for d in source.shape[: -axes - 1]
    ):
        return
    channels, out = int(source.shape[-axes - 1]), int(weight.shape[0])
    grid, result = ([int(d) for d in shape[-axes:]] for shape in (source.shape, node.shape))
    tokens, places = (int(torch.tensor(g).prod()) for g in (grid, result))
    index = _taps(node, grid, [int(k) for k in weight.shape[2:]])
    if index is None:
        return
    taps = index.shape[1]
    flat = e.insert(node, "flat", "reshape", (channels, tokens), x=Ref(source.name), shape=[channels, tokens])
    rows = e.insert(node, "tokens", "permute", (tokens, channels), x=flat, order=[1, 0])
    if (index < 0).any():
        zeros = e.constant(node, "zeros", lambda n: torch.zeros(1, n), (1, channels), n=channels)
        rows = e.insert(node, "padded", "cat", (tokens + 1, channels), parts=[rows, zeros], axis=0)
        index = torch.where(index < 0, tokens, index)
    listed = e.constant(
        node, "index", lambda values: torch.tensor(values), (places * taps,), values=index.reshape(-1).tolist()
    )
    taken = e.insert(node, "taken", "gather", (places * taps, channels), x=rows, index=listed, axis=0)
    wide = e.insert(node, "wide", "reshape", (places, taps * channels), x=taken, shape=[places, taps * channels])
    matrix = e.constant(
        node,
        "matrix",
        _dense,
        (out, taps * channels),
        weight=a["weight"],
        groups=int(a.get("groups", 1)),
        channels=channels,
    )
    bias = {"bias": a["bias"]} if a.get("bias") is not None else {}
    made = e.insert(node, "product", "linear", (places, out), x=wide, weight=matrix, **bias)
    back = e.insert(node, "back", "permute", (out, places), x=made, order=[1, 0])
    e.turn(node, "reshape", x=back, shape=list(node.shape))


def _taps(node: Node, grid: list[int], kernel: list[int]) -> Tensor | None:
    """int64[places, taps]: the token under every tap, -1 beyond the border."""
    a, axes = node.arguments, len(kernel)
    padding = a.get("padding", 0)
    if isinstance(padding, str):
        return None
    stride, pad, dilation = (
        _each(a.get(name, default), axes) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    numbers = torch.arange(1, int(torch.tensor(grid).prod()) + 1, dtype=torch.float64).reshape(1, 1, *grid)
    if axes == 1:
        numbers, kernel = numbers[..., None, :], [1, *kernel]
        stride, pad, dilation = [1, *stride], [0, *pad], [1, *dilation]
    columns = functional.unfold(numbers, tuple(kernel), tuple(dilation), tuple(pad), tuple(stride))
    return columns[0].t().round().long() - 1


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
