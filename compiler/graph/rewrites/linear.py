"""Linear layers: products with a constant matrix."""

import torch
from torch import Tensor

from ..edit import Editor
from ..ir import Node, Ref


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


def split_linears(e: Editor) -> None:
    """A linear layer that is only read in parts of its channels becomes one layer a part."""
    for node in e.device():
        if node.op != "linear" or node.name in e.graph.outputs:
            continue
        users, last = e.graph.users(node.name), len(node.shape) - 1
        if not users or any(u.op != "slice" or u.arguments["axis"] != last or u.arguments["step"] != 1 for u in users):
            continue
        for user in users:
            start, stop = user.arguments["start"], user.arguments["stop"]
            weight, bias = (_rows(e, user, node.arguments.get(name), start, stop) for name in ("weight", "bias"))
            e.turn(user, "linear", x=node.arguments["x"], weight=weight, bias=bias)
    e.graph.drop_dead()


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


def _rows(e: Editor, before: Node, matrix: Ref | None, start: int, stop: int) -> Ref | None:
    if matrix is None:
        return None
    shape = (stop - start, *e.graph.nodes[matrix.name].shape[1:])
    return e.constant(before, "rows", lambda x, start, stop: x[start:stop], shape, x=matrix, start=start, stop=stop)
