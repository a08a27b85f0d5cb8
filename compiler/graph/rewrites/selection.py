"""Choices: the largest ones of a row, in mixtures of experts and in token selection."""

from ..edit import Editor, axis_of
from ..ir import Node, Ref


def find_routes(e: Editor) -> None:
    """(w * (i == e)).sum(-1, keepdim) of (w, i) = p.topk(k): expert e's probability, if it is among the k largest."""
    routes: dict[str, Ref] = {}
    for node in e.device():
        if (
            node.op != "sum"
            or node.target is None
            or not node.arguments.get("keepdim")
            or list(node.arguments["dim"]) != [-1]
        ):
            continue
        product = e.is_op(node.inputs and Ref(node.inputs[0]), "mul")
        if product is None:
            continue
        values = [e.of(v) for v in product.arguments.values()]
        for weight, equal in (values, values[::-1]):
            found = _expert(e, weight, equal)
            if found is None:
                continue
            topk, expert = found
            p, k = topk.arguments["self"], int(topk.arguments["k"])
            source = e.graph.nodes[p.name]
            if topk.name not in routes:
                routes[topk.name] = e.insert(topk, "route", "route", source.shape, x=p, k=k)
            a = {"axis": len(source.shape) - 1, "start": expert, "stop": expert + 1, "step": 1}
            e.turn(node, "slice", x=routes[topk.name], **a)
            break
    e.graph.drop_dead()


def _expert(e: Editor, weight: Node | None, equal: Node | None) -> tuple[Node, int] | None:
    """(topk, expert) of its values and the comparison of its indices with a number."""
    if equal is not None and equal.op in ("to", "_to_copy", "float"):
        equal = e.graph.nodes[equal.inputs[0]]
    if weight is None or equal is None or equal.op != "eq" or weight.op != "getitem":
        return None
    operands = list(equal.arguments.values())
    index = e.of(operands[0])
    if index is None or index.op != "getitem" or not isinstance(operands[1], int):
        return None
    topk = e.graph.nodes[weight.inputs[0]]
    same = index.inputs[0] == topk.name and (weight.arguments["index"], index.arguments["index"]) == (0, 1)
    over = topk.op == "topk" and axis_of(e.graph.nodes[topk.inputs[0]].shape, int(topk.arguments.get("dim", -1)))
    last = topk.op == "topk" and over == len(e.graph.nodes[topk.inputs[0]].shape) - 1
    return (topk, operands[1]) if same and last and topk.arguments.get("largest", True) else None


def find_selection(e: Editor) -> None:
    """x[scores.topk(k).indices.sort().values], index_select, argmax."""
    for node in e.device():
        if node.target is None:
            continue
        if node.op == "index":
            _index(e, node)
        elif node.op == "index_select":
            axis = axis_of(node.shape, int(node.arguments["dim"]))
            _gather(e, node, node.arguments["self"], node.arguments["index"], axis)
        elif node.op == "argmax" and axis_of(
            e.graph.nodes[node.inputs[0]].shape, int(node.arguments.get("dim", 0))
        ) == (len(e.graph.nodes[node.inputs[0]].shape) - 1):
            e.turn(node, "argmax", x=Ref(node.inputs[0]))
    e.graph.drop_dead()


def _index(e: Editor, node: Node) -> None:
    indices = node.arguments["indices"]
    if len(indices) != 1 or not isinstance(indices[0], Ref):
        return
    index = e.graph.nodes[indices[0].name]
    x = node.arguments["self"]
    if index.op == "getitem":
        sort = e.graph.nodes[index.inputs[0]]
        if sort.op == "sort" and index.arguments["index"] == 0 and not sort.arguments.get("descending"):
            _select(e, node, x, e.graph.nodes[sort.inputs[0]])
        return
    _gather(e, node, x, indices[0], 0)


def _select(e: Editor, node: Node, x: Ref, indices: Node) -> None:
    topk = e.graph.nodes[indices.inputs[0]] if indices.op == "getitem" and indices.arguments["index"] == 1 else None
    if topk is None or topk.op != "topk" or not topk.arguments.get("largest", True):
        return
    e.turn(node, "select_rows", x=x, scores=topk.arguments["self"], k=int(topk.arguments["k"]))


def _gather(e: Editor, node: Node, x: Ref, index: Ref, axis: int) -> None:
    if len(e.graph.nodes[index.name].shape) == 1:
        e.turn(node, "gather", x=x, index=index, axis=axis)
