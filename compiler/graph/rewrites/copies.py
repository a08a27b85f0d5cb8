"""Repetitions, rotations and borders of tensors, as views."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..edit import Editor, axis_of, number
from ..ir import HOST, Dim, Node, Ref
from ..sizes import minus, times

MOST_COPIES = 64
"""Copies of a tensor beside each other, at most."""


def find_copies(e: Editor) -> None:
    """repeat, tile, repeat_interleave, roll, flip, pad, hstack and vstack."""
    for node in e.device():
        if node.target is not None and node.op in FORMS:
            FORMS[node.op](e, node)
    e.graph.drop_dead()


def _repeat(e: Editor, node: Node) -> None:
    """Copies along each axis in turn, beside each other."""
    a, x = node.arguments, e.graph.nodes[node.inputs[0]]
    counts = list(a["repeats"] if "repeats" in a else a["dims"])
    if any(not isinstance(c, int) or c > MOST_COPIES for c in counts):
        return
    rank = max(len(counts), len(x.shape))
    counts = [1] * (rank - len(counts)) + counts
    shape = [*([1] * (rank - len(x.shape))), *x.shape]
    ref = Ref(x.name)
    if len(shape) != len(x.shape):
        ref = e.insert(node, "wide", "reshape", shape, x=ref, shape=shape)
    for axis, count in enumerate(counts):
        if count == 1:
            continue
        before, shape = shape, [times((count, d)) if i == axis else d for i, d in enumerate(shape)]
        if before[axis] == 1:
            ref = e.insert(node, "copies", "expand", shape, x=ref, shape=shape)
        else:
            ref = e.insert(node, "copies", "cat", shape, parts=[ref] * count, axis=axis)
    e.turn(node, "reshape", x=ref, shape=list(node.shape))


def _repeat_interleave(e: Editor, node: Node) -> None:
    """Copies of every place of an axis: an axis behind it is expanded, and joined with it."""
    a, x = node.arguments, e.graph.nodes[node.inputs[0]]
    count = a.get("repeats")
    if not isinstance(count, int) or "dim" not in a:
        return
    axis = axis_of(x.shape, int(a["dim"]))
    added = [*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]]
    wide = [*x.shape[: axis + 1], count, *x.shape[axis + 1 :]]
    ref = e.insert(node, "added", "reshape", added, x=Ref(x.name), shape=added)
    e.turn(node, "reshape", x=e.insert(node, "wide", "expand", wide, x=ref, shape=wide), shape=list(node.shape))


def _roll(e: Editor, node: Node) -> None:
    """The end of each axis ahead of its beginning."""
    a, ref = node.arguments, Ref(node.inputs[0])
    shifts, axes = (list(v) if isinstance(v, list | tuple) else [v] for v in (a["shifts"], a.get("dims", [])))
    if len(axes) != len(shifts) or any(not isinstance(s, int) for s in shifts):
        return
    if any(not isinstance(node.shape[int(axis)], int) for axis in axes):
        return
    for shift, axis in zip(shifts, axes, strict=True):
        at, size = axis_of(node.shape, int(axis)), int(node.shape[int(axis)])
        parts = [
            _slice(e, node, ref, at, first, last)
            for first, last in ((size - shift % size, size), (0, size - shift % size))
            if first != last
        ]
        ref = e.insert(node, "rolled", "cat", node.shape, parts=parts, axis=at)
    e.bypass(node, e.graph.nodes[ref.name])


def _slice(e: Editor, before: Node, x: Ref, axis: int, start: Dim, stop: Dim) -> Ref:
    shape = [minus(stop, start) if i == axis else d for i, d in enumerate(e.graph.nodes[x.name].shape)]
    return e.insert(before, "part", "slice", shape, x=x, axis=axis, start=start, stop=stop, step=1)


def _flip(e: Editor, node: Node) -> None:
    ref = Ref(node.inputs[0])
    axes = [axis_of(node.shape, int(axis)) for axis in node.arguments["dims"]]
    for axis in axes:
        index = e.insert(node, "index", "backwards", (node.shape[axis],), HOST, _backwards, n=node.shape[axis])
        ref = e.insert(node, "flipped", "gather", node.shape, x=ref, index=index, axis=axis)
    e.bypass(node, e.graph.nodes[ref.name])


def _backwards(n: int) -> Tensor:
    return torch.arange(n - 1, -1, -1)


def _pad(e: Editor, node: Node) -> None:
    """A border of one value: tensors of it beside the operand; negative borders cut."""
    a, x = node.arguments, e.graph.nodes[node.inputs[0]]
    value = number(a["value"]) if a.get("value") is not None else 0.0
    borders = list(a["pad"])
    if a.get("mode", "constant") != "constant" or value is None or any(not isinstance(b, int) for b in borders):
        return
    ref, shape = Ref(x.name), list(x.shape)
    for number_, (before, behind) in enumerate(zip(borders[::2], borders[1::2], strict=True)):
        axis = len(shape) - 1 - number_
        if min(before, behind) < 0:
            return
        wide = minus(minus(shape[axis], -before), -behind)
        parts = [_border(e, node, shape, axis, n, value) if n else None for n in (before, behind)]
        parts = [part for part in (parts[0], ref, parts[1]) if part is not None]
        shape[axis] = wide
        if len(parts) > 1:
            ref = e.insert(node, "padded", "cat", shape, parts=parts, axis=axis)
    e.turn(node, "reshape", x=ref, shape=list(node.shape))


def _border(e: Editor, before: Node, shape: list[Dim], axis: int, size: int, value: float) -> Ref:
    whole = [size if i == axis else d for i, d in enumerate(shape)]
    a = {"size": whole, "fill_value": value, "dtype": torch.float32}
    return e.insert(before, "border", "full", whole, HOST, torch.full, **a)


def _stacked(e: Editor, node: Node) -> None:
    parts = node.arguments["tensors"]
    shapes = [e.graph.nodes[part.name].shape for part in parts]
    axis = 0 if node.op in ("vstack", "row_stack") or len(node.shape) == 1 else 1
    if all(len(shape) == len(node.shape) for shape in shapes):
        e.turn(node, "cat", parts=parts, axis=axis)


FORMS: dict[str, Callable[[Editor, Node], None]] = {
    "repeat": _repeat,
    "tile": _repeat,
    "repeat_interleave": _repeat_interleave,
    "roll": _roll,
    "flip": _flip,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "hstack": _stacked,
    "vstack": _stacked,
}
