"""Linear layers: products with a constant matrix."""

from ..edit import Editor
from ..ir import Node, Ref


def find_linears(e: Editor) -> None:
    for node in e.device():
        if node.target is None:
            continue
        a = node.arguments
        if node.op == "linear" and e.is_constant(a["weight"]):
            e.turn(node, "linear", x=a["input"], weight=a["weight"], bias=a.get("bias"))
        elif node.op in ("matmul", "mm") and e.is_constant(a.get("other", a.get("mat2"))):
            x, matrix = list(a.values())[:2]
            _product(e, node, x, matrix, None)
        elif node.op == "addmm" and e.is_constant(a["mat2"]) and not {"beta", "alpha"} & set(a):
            _product(e, node, a["mat1"], a["mat2"], a["self"])
        elif node.op == "einsum":
            _einsum(e, node)


def _product(e: Editor, node: Node, x: Ref, matrix: Ref, bias: Ref | None) -> None:
    shape = e.graph.nodes[matrix.name].shape
    if len(shape) != 2:
        return
    weight = e.constant(node, "weight", lambda x: x.t(), (shape[1], shape[0]), x=matrix)
    e.turn(node, "linear", x=x, weight=weight, bias=bias)


def _einsum(e: Editor, node: Node) -> None:
    """...i,oi->...o and ...i,io->...o, whatever the letters are."""
    equation = str(node.arguments["equation"]).replace(" ", "")
    operands = node.arguments["tensors"]
    if "->" not in equation or len(operands) != 2 or not e.is_constant(operands[1]):
        return
    terms, result = equation.split("->")
    x, w = terms.split(",")
    if len(w) != 2 or not x or x[:-1] != result[:-1] or set(w) != {x[-1], result[-1]} or x[-1] in result:
        return
    weight = operands[1]
    if w == result[-1] + x[-1]:
        e.turn(node, "linear", x=operands[0], weight=weight)
    else:
        _product(e, node, operands[0], weight, None)


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


def _rows(e: Editor, before: Node, matrix: Ref | None, start: int, stop: int) -> Ref | None:
    if matrix is None:
        return None
    shape = (stop - start, *e.graph.nodes[matrix.name].shape[1:])
    return e.constant(before, "rows", lambda x, start, stop: x[start:stop], shape, x=matrix, start=start, stop=stop)
