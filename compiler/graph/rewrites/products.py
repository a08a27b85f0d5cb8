"""Products of two tensors in torch's many forms, as matmul, linear layers and sums."""

import torch
from torch import Tensor

from ..edit import Editor, number
from ..ir import Dim, Node, Ref
from ..sizes import times


def find_products(e: Editor) -> None:
    """einsum of two operands, addmm and baddbmm with factors."""
    for node in e.device():
        if node.op == "einsum":
            _einsum(e, node)
        elif node.op in ("baddbmm", "addmm"):
            _with_summand(e, node)
    e.graph.drop_dead()


def _with_summand(e: Editor, node: Node) -> None:
    """beta * self + alpha * (x @ y)."""
    a = node.arguments
    x, y = (a["batch1"], a["batch2"]) if node.op == "baddbmm" else (a["mat1"], a["mat2"])
    alpha, beta = number(a.get("alpha", 1)), number(a.get("beta", 1))
    if (node.op == "addmm" and e.is_constant(y) and alpha == beta == 1) or alpha is None or beta is None:
        return  # a linear layer
    product = e.insert(node, "product", "matmul", node.shape, "device", torch.matmul, input=x, other=y)
    if alpha != 1:
        product = e.insert(node, "scaled", "scale", node.shape, x=product, factor=alpha)
    if beta == 0:
        e.bypass(node, e.graph.nodes[product.name])
    else:
        e.turn(node, "add", x=product, y=a["self"], alpha=None if beta == 1 else beta)


class _Term:
    """An operand of an einsum: a letter an axis."""

    def __init__(self, e: Editor, ref: Ref, letters: str) -> None:
        self.e, self.ref, self.letters = e, ref, letters
        self.sizes = dict(zip(letters, e.graph.nodes[ref.name].shape, strict=True))

    def constant(self) -> bool:
        """Whether it depends on parameters only."""
        return self.e.is_constant(self.ref)

    def grouped(self, before: Node, *groups: str) -> Ref:
        """Its value with one axis a group of letters."""
        order = [self.letters.index(letter) for group in groups for letter in group]
        shape = [times(self.sizes[letter] for letter in group) for group in groups]
        if self.constant():
            a = {"x": self.ref, "order": order, "shape": shape}
            return self.e.constant(before, "matrix", _arranged, shape, **a)
        return _view(self.e, before, self.ref, order, shape)


def _arranged(x: Tensor, order: list[int], shape: list[int]) -> Tensor:
    return x.permute(order).reshape(shape)


def _view(e: Editor, before: Node, ref: Ref, order: list[int], shape: list[Dim]) -> Ref:
    """A permutation and a reshape, each where it changes something."""
    if order != sorted(order):
        moved = [e.graph.nodes[ref.name].shape[i] for i in order]
        ref = e.insert(before, "moved", "permute", moved, x=ref, order=order)
    if list(e.graph.nodes[ref.name].shape) != shape:
        ref = e.insert(before, "joined", "reshape", shape, x=ref, shape=shape)
    return ref


def _einsum(e: Editor, node: Node) -> None:
    """Letters in both operands and the result go in front (batch), those that are summed go last (inner)."""
    terms = _terms(e, node)
    if terms is None:
        return
    x, y, result = terms
    if x.constant():
        x, y = y, x
    inner = "".join(c for c in x.letters if c in y.letters and c not in result)
    batch = "".join(c for c in x.letters if c in y.letters and c in result)
    left, right = ("".join(c for c in t.letters if c not in inner + batch) for t in (x, y))
    if set(left + right) - set(result):
        return
    single = len(inner) == len(right) == 1 and not batch and y.constant()
    if single and x.letters[-1] != inner and result == x.letters.replace(inner, right):
        e.turn(node, "mix", x=x.ref, matrix=y.grouped(node, right, inner), axis=x.letters.index(inner))
        return
    if not inner:
        _outer(e, node, x, y, result)
        return
    if y.constant() and not batch:
        n_out = times(y.sizes[c] for c in right)
        rows = x.grouped(node, *left, inner)
        shape = [*(x.sizes[c] for c in left), n_out]
        product = e.insert(node, "product", "linear", shape, x=rows, weight=y.grouped(node, right, inner))
    else:
        shape = [*(x.sizes[c] for c in batch), times(x.sizes[c] for c in left), times(y.sizes[c] for c in right)]
        a = {"input": x.grouped(node, *batch, left, inner), "other": y.grouped(node, *batch, inner, right)}
        product = e.insert(node, "product", "matmul", shape, "device", torch.matmul, **a)
    sizes, found = y.sizes | x.sizes, batch + left + right
    apart = [sizes[c] for c in found]
    if shape != apart:
        product = e.insert(node, "apart", "reshape", apart, x=product, shape=apart)
    e.turn(node, "permute", x=product, order=[found.index(c) for c in result])


def _terms(e: Editor, node: Node) -> tuple[_Term, _Term, str] | None:
    """Both operands and the letters of the result; None for what is no product of two tensors."""
    equation, operands = str(node.arguments["equation"]).replace(" ", ""), node.arguments["tensors"]
    if "->" not in equation or len(operands) != 2:
        return None
    left, result = equation.split("->")
    found = left.split(",")
    free = [c for c in "ABCDEFGHIJ" if c not in equation]
    ranks = [len(e.graph.nodes[ref.name].shape) for ref in operands]
    extra = [
        rank - len(term.replace("...", "")) if "..." in term else 0 for term, rank in zip(found, ranks, strict=True)
    ]
    if all(extra) and extra[0] != extra[1]:
        return None
    letters = "".join(free[: max(extra)])
    found = [term.replace("...", letters[:n]) for term, n in zip(found, extra, strict=True)]
    result = result.replace("...", letters)
    if any(len(set(term)) != len(term) for term in (*found, result)):
        return None
    x, y = (_Term(e, ref, term) for ref, term in zip(operands, found, strict=True))
    if any(str(x.sizes[c]) != str(y.sizes[c]) for c in x.sizes if c in y.sizes):
        return None
    return x, y, result


def _outer(e: Editor, node: Node, x: _Term, y: _Term, result: str) -> None:
    """Nothing is summed: a product of values, the axes of each operand where the result has them."""
    refs = []
    for term in (x, y):
        order = [term.letters.index(c) for c in result if c in term.letters]
        shape = [term.sizes.get(c, 1) for c in result]
        if term.constant():
            refs.append(e.constant(node, "factor", _arranged, shape, x=term.ref, order=order, shape=shape))
        else:
            refs.append(_view(e, node, term.ref, order, shape))
    e.turn(node, "mul", x=refs[0], y=refs[1])
