"""Linear layers: products with a constant matrix."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from ..edit import Editor
from ..ir import Dim, Node, Ref
from ..meaning import values_of


def find_linears(e: Editor) -> None:
    """Products with a constant from the right are linear layers, from the left mixtures of rows."""
    for node in e.device():
        if node.target is None:
            continue
        a = node.arguments
        if node.op == "linear" and e.is_constant(a["weight"]):
            e.turn(node, "linear", x=a["input"], weight=a["weight"], bias=a.get("bias"))
        elif node.op in ("matmul", "mm", "bmm", "mv"):
            x, y = list(a.values())[:2]
            if e.is_constant(y):
                _product(e, node, x, y, None)
            elif e.is_constant(x):
                _mix(e, node, x, y)
        elif node.op == "addmm" and e.is_constant(a["mat2"]) and not {"beta", "alpha"} & set(a):
            summand = a["self"]
            vector = e.is_constant(summand) and len(e.graph.nodes[summand.name].shape) == 1
            _product(e, node, a["mat1"], a["mat2"], summand if vector else None, None if vector else summand)
    e.graph.drop_dead()


def _product(e: Editor, node: Node, x: Ref, matrix: Ref, bias: Ref | None, summand: Ref | None = None) -> None:
    """x @ matrix; summand: what is added besides and is no vector of constants."""
    shape = e.graph.nodes[matrix.name].shape
    if len(shape) == 1:
        weight = e.constant(node, "weight", torch.reshape, (1, *shape), input=matrix, shape=[1, *shape])
        made = e.insert(node, "product", "linear", [*node.shape, 1], x=x, weight=weight)
        e.turn(node, "reshape", x=made, shape=list(node.shape))
    elif len(shape) == 2:
        weight = e.constant(node, "weight", torch.t, (shape[1], shape[0]), input=matrix)
        if summand is None:
            e.turn(node, "linear", x=x, weight=weight, bias=bias)
        else:
            made = e.insert(node, "product", "linear", node.shape, x=x, weight=weight)
            e.turn(node, "add", x=made, y=summand)
    elif len(shape) == 3 and e.graph.nodes[x.name].shape[:-2] == (shape[0],):
        _one_by_one(e, node, x, matrix, int(shape[0]))


def _one_by_one(e: Editor, node: Node, x: Ref, matrices: Ref, count: int) -> None:
    """A matrix for each part of the first axis: a linear layer a part."""
    _, n_in, n_out = e.graph.nodes[matrices.name].shape
    rows, parts = node.shape[1], []
    for at in range(count):
        part = e.insert(node, "part", "slice", (1, rows, n_in), x=x, axis=0, start=at, stop=at + 1, step=1)
        weight = e.constant(node, "weight", _transposed, (n_out, n_in), x=matrices, at=at)
        parts.append(e.insert(node, "product", "linear", (1, rows, n_out), x=part, weight=weight))
    e.turn(node, "cat", parts=parts, axis=0)


def _transposed(x: Tensor, at: int) -> Tensor:
    return x[at].t()


def _mix(e: Editor, node: Node, matrix: Ref, x: Ref) -> None:
    """matrix @ x: sums of the rows of x."""
    source = e.graph.nodes[x.name]
    if len(e.graph.nodes[matrix.name].shape) == 2 and len(source.shape) > 1:
        e.turn(node, "mix", x=x, matrix=matrix, axis=len(source.shape) - 2)


@dataclass(frozen=True)
class _Part:
    """A slice that reads some channels of a linear layer. shape: of what it reads, where the channels were split in
    axes before; order: of a permutation of these axes."""

    reader: Node
    channels: list[int]
    shape: list[Dim] | None = None
    order: list[int] | None = None


def split_linears(e: Editor) -> None:
    """A linear layer that is only read in parts of its channels becomes one layer a part.

    Parts are slices of the channels, or of channels as axes: queries, keys and values are often made as
    x.reshape(rows, 3, heads, size).permute(1, 2, 0, 3).
    """
    for node in e.device():
        if node.op != "linear" or node.name in e.graph.outputs:
            continue
        for part in _parts(e, node) or []:
            reader, x = part.reader, node.arguments["x"]
            a = {name: _rows(e, reader, node.arguments.get(name), part.channels) for name in ("weight", "bias")}
            if part.shape is None:
                e.turn(reader, "linear", x=x, **a)
                continue
            given = {name: ref for name, ref in a.items() if ref is not None}
            made = e.insert(reader, "part", "linear", [*node.shape[:-1], len(part.channels)], x=x, **given)
            if part.order is None:
                e.turn(reader, "reshape", x=made, shape=part.shape)
            else:
                apart = e.insert(reader, "split", "reshape", part.shape, x=made, shape=part.shape)
                e.turn(reader, "permute", x=apart, order=part.order)
    e.graph.drop_dead()


def _parts(e: Editor, linear: Node) -> list[_Part] | None:
    """Who reads it, if all are slices."""
    found, width = [], int(linear.shape[-1])
    for user in e.graph.users(linear.name):
        if user.op == "slice":
            taken = _taken(e, user, np.arange(width), len(linear.shape) - 1)
            if taken is None:
                return None
            found.append(_Part(user, taken.tolist()))
            continue
        lead = _rows_in_front(user.shape, linear.shape) if e.form(Ref(user.name), "reshape") else None
        if lead is None:
            return None
        channels = np.arange(width).reshape([int(n) for n in user.shape[lead:]])
        for reader, order in _through_permutations(e, user):
            taken = _taken(e, reader, channels, lead, order)
            if taken is None:
                return None
            found.append(_Part(reader, taken.reshape(-1).tolist(), [*user.shape[:lead], *taken.shape], order))
    return found or None


def _rows_in_front(split: Sequence[Dim], shape: Sequence[Dim]) -> int | None:
    """How many axes of a reshaped tensor are its rows, axes of 1 aside; the others are its channels."""
    rows = [size for size in shape[:-1] if size != 1]
    for lead in range(len(split)):
        behind = split[lead:]
        if all(isinstance(size, int) for size in behind) and prod(map(int, behind)) == shape[-1]:
            return lead if [size for size in split[:lead] if size != 1] == rows else None
    return None


def _taken(e: Editor, reader: Node, channels: np.ndarray, lead: int, order: list[int] | None = None):
    """The channels that a slice reads, or a list of places; None for any other reader. lead: axes in front of them."""
    a = reader.arguments
    if reader.target is not None or reader.op not in ("slice", "gather"):
        return None
    axis = int(a["axis"]) if order is None else order[int(a["axis"])]
    if axis < lead:
        return None
    if reader.op == "slice":
        known = a["step"] == 1 and isinstance(a["start"], int) and isinstance(a["stop"], int)
        return channels.take(range(a["start"], a["stop"]), axis - lead) if known else None
    if not e.is_constant(a["index"]) or e.has_parameters(e.graph.nodes[a["index"].name]):
        return None
    places = values_of(e.graph, [a["index"].name], {}, {})[a["index"].name]
    return channels.take(places.numpy().reshape(-1), axis - lead)


def _through_permutations(e: Editor, node: Node) -> Iterator[tuple[Node, list[int] | None]]:
    """Who reads a node, or a permutation of it, and the order of that; the node itself where it is a result."""
    if node.name in e.graph.outputs:
        yield node, None
    for user in e.graph.users(node.name):
        if not e.form(Ref(user.name), "permute"):
            yield user, None
            continue
        if user.name in e.graph.outputs:
            yield user, None
        for reader in e.graph.users(user.name):
            yield reader, user.arguments["order"]


def cut_joined_channels(e: Editor) -> None:
    """A linear layer of values side by side is the sum of one layer a value: nothing has to be joined."""
    for node in e.device():
        joined = e.form(node.arguments.get("x"), "cat") if node.op == "linear" and node.target is None else None
        if joined is None or int(joined.arguments["axis"]) % len(joined.shape) != len(joined.shape) - 1:
            continue
        products, start = [], 0
        for part in joined.arguments["parts"]:
            stop = start + int(e.graph.nodes[part.name].shape[-1])
            weight = _columns(e, node, node.arguments["weight"], start, stop)
            products.append(e.insert(node, "part", "linear", node.shape, x=part, weight=weight))
            start = stop
        total = products[0]
        if "bias" in node.arguments:
            e.graph.nodes[total.name].arguments["bias"] = node.arguments["bias"]
        for product in products[1:-1]:
            total = e.insert(node, "sum", "add", node.shape, x=total, y=product)
        e.turn(node, "add", x=total, y=products[-1])
    e.graph.drop_dead()


def _columns(e: Editor, before: Node, matrix: Ref, start: int, stop: int) -> Ref:
    shape = (e.graph.nodes[matrix.name].shape[0], stop - start)
    return e.constant(
        before, "columns", lambda x, start, stop: x[:, start:stop], shape, x=matrix, start=start, stop=stop
    )


def _rows(e: Editor, before: Node, matrix: Ref | None, rows: list[int]) -> Ref | None:
    if matrix is None:
        return None
    shape = (len(rows), *e.graph.nodes[matrix.name].shape[1:])
    start, stop = rows[0], rows[-1] + 1
    if rows == list(range(start, stop)):
        return e.constant(before, "rows", lambda x, start, stop: x[start:stop], shape, x=matrix, start=start, stop=stop)
    return e.constant(before, "rows", lambda x, rows: x[rows], shape, x=matrix, rows=rows)
