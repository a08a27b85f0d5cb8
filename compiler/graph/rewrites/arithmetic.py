"""Sums and products: add, mul, scale, offset, softmax."""

from ..edit import Editor, axis_of, number
from ..ir import Node, Ref


def find_arithmetic(e: Editor) -> None:
    for node in e.device():
        if node.target is not None and node.op in FORMS:
            FORMS[node.op](e, node)
    e.graph.drop_dead()


def _add(e: Editor, node: Node) -> None:
    a = node.arguments
    _sum(e, node, a["self"], a["other"], float(a.get("alpha", 1)))


def _sub(e: Editor, node: Node) -> None:
    a = node.arguments
    _sum(e, node, a["self"], a["other"], -float(a.get("alpha", 1)))


def _rsub(e: Editor, node: Node) -> None:
    """other - self."""
    a = node.arguments
    if "alpha" not in a:
        negative = e.insert(node, "negative", "scale", node.shape, x=a["self"], factor=-1.0)
        _sum(e, node, negative, a["other"], 1.0)


def _sum(e: Editor, node: Node, x, y, alpha: float) -> None:
    if number(y) is not None:
        e.turn(node, "offset", x=x, value=alpha * float(y))
    elif number(x) is not None:
        scaled = y if alpha == 1 else e.insert(node, "scaled", "scale", node.shape, x=y, factor=alpha)
        e.turn(node, "offset", x=scaled, value=float(x))
    elif isinstance(y, Ref):
        e.turn(node, "add", x=x, y=y, **({} if alpha == 1 else {"alpha": alpha}))


def _mul(e: Editor, node: Node) -> None:
    x, y = node.arguments["self"], node.arguments["other"]
    if number(x) is not None:
        x, y = y, x
    if number(y) is not None:
        e.turn(node, "scale", x=x, factor=float(y))
    elif isinstance(x, Ref) and isinstance(y, Ref):
        e.turn(node, "mul", x=x, y=y)


def _div(e: Editor, node: Node) -> None:
    x, y = node.arguments["self"], node.arguments["other"]
    if "rounding_mode" in node.arguments or not isinstance(x, Ref):
        return
    if number(y) is not None:
        e.turn(node, "scale", x=x, factor=1 / float(y))
    elif e.is_constant(y):
        inverse = e.constant(node, "inverse", lambda x: 1 / x, e.graph.nodes[y.name].shape, x=y)
        e.turn(node, "mul", x=x, y=inverse)


def _neg(e: Editor, node: Node) -> None:
    e.turn(node, "scale", x=Ref(node.inputs[0]), factor=-1.0)


def _softmax(e: Editor, node: Node) -> None:
    a = node.arguments
    if axis_of(node.shape, int(a["dim"])) == len(node.shape) - 1:
        e.turn(node, "softmax", x=a.get("self", a.get("input")))


FORMS = {
    "add": _add,
    "add_": _add,
    "sub": _sub,
    "rsub": _rsub,
    "mul": _mul,
    "mul_": _mul,
    "div": _div,
    "neg": _neg,
    "softmax": _softmax,
    "_softmax": _softmax,
}
