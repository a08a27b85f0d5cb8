"""Linear layers: products with a constant matrix."""

from math import prod

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
    """A contraction of the last axes of x with a constant, whatever its letters are: nc,chd->nhd, bsi,oi->bso."""
    equation = str(node.arguments["equation"]).replace(" ", "")
    operands = node.arguments["tensors"]
    if "->" not in equation or len(operands) != 2 or not e.is_constant(operands[1]):
        return
    terms, result = equation.split("->")
    x, w = terms.split(",")
    inner = "".join(letter for letter in x if letter in w and letter not in result)
    outer = "".join(letter for letter in w if letter not in inner)
    lead = x.removesuffix(inner)
    if not inner or lead + inner != x or lead + outer != result or set(lead) & set(w) or len(set(w)) != len(w):
        return
    source, weight = (e.graph.nodes[ref.name] for ref in operands)
    sizes = {letter: int(size) for letter, size in zip(w, weight.shape, strict=True)}
    n_out, n_in = (prod(sizes[letter] for letter in letters) for letters in (outer, inner))
    order = [w.index(letter) for letter in outer + inner]
    a = {"x": operands[1], "order": order, "shape": [n_out, n_in]}
    matrix = e.constant(node, "weight", lambda x, order, shape: x.permute(order).reshape(shape), (n_out, n_in), **a)
    rows, flat = list(source.shape[: len(lead)]), operands[0]
    if len(inner) > 1:
        flat = e.insert(node, "flat", "reshape", [*rows, n_in], x=flat, shape=[*rows, n_in])
    if len(outer) == 1:
        e.turn(node, "linear", x=flat, weight=matrix)
        return
    made = e.insert(node, "product", "linear", [*rows, n_out], x=flat, weight=matrix)
    e.turn(node, "reshape", x=made, shape=list(node.shape))


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
