"""Mixtures of experts: the probabilities of the k likeliest experts, zeros for the others."""

from dataclasses import dataclass

from ..edit import Editor, axis_of
from ..ir import Node, Ref


@dataclass(frozen=True)
class Gate:
    """The name of a topk; normalised: whether its values are divided by their sum."""

    topk: str
    normalised: bool


CASTS = ("to", "_to_copy", "float", "type_as")


def find_routes(e: Editor) -> None:
    """Of (w, i) = p.topk(k): (w * (i == e)).sum(-1), zeros.scatter(-1, i, w), (w[..., None] * one_hot(i)).sum(-2)."""
    routes: dict[Gate, Ref] = {}
    for node in e.device():
        if node.target is None:
            continue
        if node.op == "sum":
            _sum(e, node, routes)
        elif node.op in ("scatter", "scatter_add") and "src" in node.arguments:
            _scatter(e, node, routes)
    e.graph.drop_dead()


def _route(e: Editor, gate: Gate, routes: dict[Gate, Ref]) -> Ref:
    """p with zeros in place of all but its k largest values; divided by their sum, if they are to be normalised."""
    topk = e.graph.nodes[gate.topk]
    if gate not in routes:
        shape, k = e.graph.nodes[topk.inputs[0]].shape, int(topk.arguments["k"])
        x = _share_of_two(e, topk) if gate.normalised else topk.arguments["self"]
        routes[gate] = e.insert(topk, "route", "route", shape, x=x, k=k)
    return routes[gate]


def _share_of_two(e: Editor, topk: Node) -> Ref:
    """A function of all logits that is the share of each of the two largest in the sum of their exponentials.

    exp(a) / (exp(a) + exp(b)) is sigmoid(a - b), and a - b is 2 a less the sum of both. It grows with a, so the two
    largest are the same ones.
    """
    logits = _logits(e, topk)
    assert logits is not None
    shape = e.graph.nodes[logits.name].shape
    two = e.insert(topk, "two", "route", shape, x=logits, k=2)
    total = e.insert(topk, "total", "sum", shape[:-1], x=two, axes=[len(shape) - 1])
    column = [*shape[:-1], 1]
    total = e.insert(topk, "column", "reshape", column, x=total, shape=column)
    double = e.insert(topk, "double", "scale", shape, x=logits, factor=2.0)
    difference = e.insert(topk, "difference", "add", shape, x=double, y=total, alpha=-1.0)
    return e.insert(topk, "share", "activation", shape, x=difference, function="sigmoid")


def _logits(e: Editor, topk: Node) -> Ref | None:
    """What the softmax is made of whose largest values are taken; the operand itself, if the softmax comes later."""
    source = _behind_casts(e, e.graph.nodes[topk.inputs[0]])
    if source is not None and source.op in ("softmax", "_softmax") and source.target is not None:
        over = axis_of(source.shape, int(source.arguments["dim"])) == len(source.shape) - 1
        return Ref(source.inputs[0]) if over else None
    return topk.arguments["self"]


def _sum(e: Editor, node: Node, routes: dict[Gate, Ref]) -> None:
    source, dims = e.graph.nodes[node.inputs[0]], list(node.arguments.get("dim") or ())
    if len(dims) != 1 or "dtype" in node.arguments:
        return
    axis, last = axis_of(source.shape, int(dims[0])), len(source.shape) - 1
    if axis == last and (found := _of_expert(e, source)) is not None:
        whole, expert = _route(e, found[0], routes), found[1]
        shape = (*e.graph.nodes[whole.name].shape[:-1], 1)
        a = {"x": whole, "axis": len(shape) - 1, "start": expert, "stop": expert + 1, "step": 1}
        if tuple(node.shape) == shape:
            e.turn(node, "slice", **a)
        else:
            e.turn(node, "reshape", x=e.insert(node, "gate", "slice", shape, **a), shape=list(node.shape))
    elif axis == last - 1 and not node.arguments.get("keepdim") and (gate := _one_hot(e, source)) is not None:
        whole = _route(e, gate, routes)
        e.bypass(node, e.graph.nodes[whole.name])


def _of_expert(e: Editor, node: Node) -> tuple[Gate, int] | None:
    """(gate, expert) of w * (i == expert), or where(i == expert, w, 0)."""
    if node.op == "mul":
        values = [e.of(v) for v in node.arguments.values()]
        pairs = [values, values[::-1]]
    elif node.op == "where" and e.number_of(node.arguments.get("other")) == 0:
        pairs = [[e.of(node.arguments["self"]), e.of(node.arguments["condition"])]]
    else:
        return None
    for weight, equal in pairs:
        equal = _behind_casts(e, equal)
        if weight is None or equal is None or equal.op != "eq":
            continue
        index, expert = list(equal.arguments.values())
        gate = _pair(e, weight, e.of(index))
        if gate is not None and isinstance(expert, int):
            return gate, expert
    return None


def _one_hot(e: Editor, node: Node) -> Gate | None:
    """The gate of w[..., None] * one_hot(i, experts)."""
    if node.op != "mul":
        return None
    values = [_behind_casts(e, e.of(v)) for v in node.arguments.values()]
    for column, hot in (values, values[::-1]):
        if column is None or hot is None or hot.op != "one_hot" or column.op not in ("unsqueeze", "index", "view"):
            continue
        weight = e.graph.nodes[column.inputs[0]]
        gate = _pair(e, weight, e.graph.nodes[hot.inputs[0]])
        if gate is None or tuple(column.shape) != (*weight.shape, 1):
            continue
        if e.graph.nodes[e.graph.nodes[gate.topk].inputs[0]].shape[-1] == hot.arguments.get(
            "num_classes", hot.arguments.get("dim")
        ):
            return gate
    return None


def _scatter(e: Editor, node: Node, routes: dict[Gate, Ref]) -> None:
    a = node.arguments
    zeros, weight, index = (e.of(a[name]) for name in ("self", "src", "index"))
    if zeros is None or weight is None or axis_of(node.shape, int(a["dim"])) != len(node.shape) - 1:
        return
    gate = _pair(e, weight, index)
    empty = zeros.op in ("full", "zeros") and float(zeros.arguments.get("fill_value", 0)) == 0
    if gate is not None and empty and e.graph.nodes[e.graph.nodes[gate.topk].inputs[0]].shape == node.shape:
        whole = _route(e, gate, routes)
        e.bypass(node, e.graph.nodes[whole.name])


def _behind_casts(e: Editor, node: Node | None) -> Node | None:
    while node is not None and node.op in CASTS:
        node = e.graph.nodes[node.inputs[0]]
    return node


def _pair(e: Editor, weight: Node | None, index: Node | None) -> Gate | None:
    """The gate whose values (perhaps divided by their sum) and whose indices these are, over the last axis."""
    if weight is None or index is None or index.op != "getitem" or index.arguments["index"] != 1:
        return None
    topk = e.graph.nodes[index.inputs[0]]
    if topk.op != "topk" or not topk.arguments.get("largest", True):
        return None
    shape = e.graph.nodes[topk.inputs[0]].shape
    if axis_of(shape, int(topk.arguments.get("dim", -1))) != len(shape) - 1:
        return None
    if _is_values(weight, topk):
        return Gate(topk.name, False)
    source = e.graph.nodes[topk.inputs[0]]
    late = source.op not in ("softmax", "_softmax")
    normalised = _is_softmax(e, weight, topk) if late else _is_share(e, weight, topk)
    return Gate(topk.name, True) if normalised and topk.arguments["k"] == 2 and _logits(e, topk) is not None else None


def _is_values(node: Node | None, topk: Node) -> bool:
    found = node is not None and node.op == "getitem" and node.inputs[0] == topk.name
    return found and node.arguments["index"] == 0  # type: ignore[union-attr]


def _is_softmax(e: Editor, node: Node, topk: Node) -> bool:
    """softmax(w, -1)."""
    if node.op not in ("softmax", "_softmax") or axis_of(node.shape, int(node.arguments["dim"])) != len(node.shape) - 1:
        return False
    return _is_values(_behind_casts(e, e.graph.nodes[node.inputs[0]]), topk)


def _is_share(e: Editor, node: Node, topk: Node) -> bool:
    """w / w.sum(-1, keepdim=True)."""
    if node.op != "div" or "rounding_mode" in node.arguments:
        return False
    total = e.is_op(node.arguments["other"], "sum")
    if total is None or not total.arguments.get("keepdim") or "dtype" in total.arguments:
        return False
    axes = [axis_of(node.shape, int(axis)) for axis in total.arguments["dim"]]
    values = [e.of(node.arguments["self"]), e.graph.nodes[total.inputs[0]]]
    return axes == [len(node.shape) - 1] and all(_is_values(value, topk) for value in values)
