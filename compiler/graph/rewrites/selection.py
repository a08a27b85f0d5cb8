"""Choices of rows: the rows with the largest scores, rows by an index of the host, the place of the largest value."""

import torch
from torch import Tensor

from ..edit import Editor, axis_of
from ..ir import ON_DEVICE, Node, Ref
from ..sizes import times

SPREAD = ("unsqueeze", "expand", "view", "reshape", "repeat", "expand_as", "_unsafe_view")
"""Operators that give an index a number of equal columns."""


def find_selection(e: Editor) -> None:
    """x[scores.topk(k).indices.sort().values], index, index_select, gather, embedding, argmax."""
    for node in e.device():
        if node.target is None:
            continue
        a = node.arguments
        if node.op == "index":
            _index(e, node)
        elif node.op == "index_select":
            axis = axis_of(node.shape, int(a["dim"]))
            if axis or not _select(e, node, a["self"], e.graph.nodes[a["index"].name]):
                _gather(e, node, a["self"], a["index"], axis)
        elif node.op == "gather":
            _same_columns(e, node)
        elif node.op == "argmax":
            _argmax(e, node)
    e.graph.drop_dead()


def _argmax(e: Editor, node: Node) -> None:
    """Over the last axis, or over all axes as one."""
    source, dim = e.graph.nodes[node.inputs[0]], node.arguments.get("dim")
    x, shape = Ref(source.name), list(source.shape[:-1])
    if dim is None:
        flat = [times(source.shape)]
        x, shape = e.insert(node, "flat", "reshape", flat, x=x, shape=flat), []
    elif axis_of(source.shape, int(dim)) != len(source.shape) - 1:
        return
    if list(node.shape) == shape:
        e.turn(node, "argmax", x=x)
    else:
        e.turn(node, "reshape", x=e.insert(node, "place", "argmax", shape, x=x), shape=list(node.shape))


def _index(e: Editor, node: Node) -> None:
    """x[index], x[:, index]: one index, along one axis."""
    indices, x = list(node.arguments["indices"]), node.arguments["self"]
    places = [axis for axis, index in enumerate(indices) if index is not None]
    if len(places) != 1 or not isinstance(indices[places[0]], Ref):
        return
    axis, index = places[0], indices[places[0]]
    if axis or not _select(e, node, x, e.graph.nodes[index.name]):
        _gather(e, node, x, index, axis)


def _chosen(e: Editor, index: Node) -> tuple[Ref, int] | None:
    """(scores, k) of the largest or, with scores of the other sign, of the smallest, of
    scores.topk(k).indices.sort().values; no axes but the last are longer than 1."""
    sort = e.is_op(Ref(index.inputs[0]), "sort") if index.op == "getitem" and index.arguments["index"] == 0 else None
    if sort is None or sort.arguments.get("descending"):
        return None
    indices = e.graph.nodes[sort.inputs[0]]
    topk = e.is_op(Ref(indices.inputs[0]), "topk") if indices.op == "getitem" else None
    if topk is None or indices.arguments["index"] != 1:
        return None
    scores = e.graph.nodes[topk.inputs[0]]
    last = len(scores.shape) - 1
    over = [axis_of(scores.shape, int(each.arguments.get("dim", -1))) for each in (topk, sort)]
    if over != [last, last] or any(d != 1 for d in scores.shape[:-1]) or not isinstance(topk.arguments["k"], int):
        return None
    ref = Ref(scores.name)
    if not topk.arguments.get("largest", True):
        ref = e.insert(topk, "negative", "scale", scores.shape, x=ref, factor=-1.0)
    return ref, topk.arguments["k"]


def _select(e: Editor, node: Node, x: Ref, index: Node) -> bool:
    found = _chosen(e, index)
    if found is None or len(index.shape) != 1:
        return False
    _select_rows(e, node, x, *found)
    return True


def _select_rows(e: Editor, node: Node, x: Ref, scores: Ref, k: int) -> None:
    """Rows as [n, c], scores as [n]."""
    rows, known = e.graph.nodes[x.name].shape, e.graph.nodes[scores.name].shape
    n = known[-1]
    flat = [n, times(rows[rows.index(n) + 1 :])]
    if list(known) != [n]:
        scores = e.insert(node, "scores", "reshape", [n], x=scores, shape=[n])
    if list(rows) != flat:
        x = e.insert(node, "rows", "reshape", flat, x=x, shape=flat)
    if list(node.shape) == [k, flat[1]]:
        e.turn(node, "select_rows", x=x, scores=scores, k=k)
    else:
        made = e.insert(node, "selected", "select_rows", [k, flat[1]], x=x, scores=scores, k=k)
        e.turn(node, "reshape", x=made, shape=list(node.shape))


def _same_columns(e: Editor, node: Node) -> None:
    """x.gather(axis, index) with an index that is the same for all columns: rows of x."""
    x, axis = e.graph.nodes[node.inputs[0]], axis_of(node.shape, int(node.arguments["dim"]))
    index = e.of(node.arguments["index"])
    if index is None or index.shape[axis + 1 :] != x.shape[axis + 1 :] or any(d != 1 for d in x.shape[:axis]):
        return
    columns, rank = index, axis + 1
    while index.op in SPREAD and index.inputs and len(index.shape) > rank:
        index = e.graph.nodes[index.inputs[0]]
        spread = tuple(index.shape[:rank]) == tuple(columns.shape[:rank]) and all(
            size in (1, whole) for size, whole in zip(index.shape[rank:], columns.shape[rank:], strict=False)
        )
        if not spread or (index.op in SPREAD and any(d != 1 for d in index.shape[rank:])):
            return
    if len(index.shape) != rank or tuple(index.shape) != tuple(columns.shape[:rank]):
        return
    found = _chosen(e, index)
    if found is not None:
        _select_rows(e, node, Ref(x.name), *found)
    elif index.kind != ON_DEVICE:
        _gather(e, node, Ref(x.name), Ref(index.name), axis)


def _gather(e: Editor, node: Node, x: Ref, index: Ref, axis: int) -> None:
    """An index of several axes is one long index; negative numbers count from the end."""
    known = e.graph.nodes[index.name]
    if known.dtype == torch.bool or (known.kind == ON_DEVICE and not e.may_be_table(index, x)):
        return
    size = e.graph.nodes[x.name].shape[axis]
    if e.may_be_negative(index):
        index = e.insert(node, "wrapped", "wrapped", known.shape, known.kind, _wrapped, index=index, size=size)
    if len(known.shape) == 1:
        e.turn(node, "gather", x=x, index=index, axis=axis)
        return
    count = times(known.shape)
    shape = [*e.graph.nodes[x.name].shape]
    shape[axis] = count
    flat = e.insert(node, "flat", "flat", [count], known.kind, torch.flatten, input=index)
    made = e.insert(node, "taken", "gather", shape, x=x, index=flat, axis=axis)
    e.turn(node, "reshape", x=made, shape=list(node.shape))


def _wrapped(index: Tensor, size: int) -> Tensor:
    return torch.where(index < 0, index + size, index)
