"""Functions of single values, by torch's names and written out."""

from ..edit import Editor, number
from ..ir import Node, Ref
from ..meaning import FUNCTIONS

QUICK = 1.702


def find_activations(e: Editor) -> None:
    for node in e.device():
        if node.target is not None:
            _one(e, node)
    e.graph.drop_dead()


def _one(e: Editor, node: Node) -> None:
    values = list(node.arguments.values())
    name = node.op.removesuffix("_")
    if name in FUNCTIONS and len(node.arguments) == 1:
        e.turn(node, "activation", x=values[0], function=name)
    elif name == "gelu":
        tanh = node.arguments.get("approximate", "none") == "tanh"
        e.turn(node, "activation", x=values[0], function="gelu_tanh" if tanh else "gelu")
    elif node.op == "pow" and number(values[1]) == 2:
        e.turn(node, "activation", x=values[0], function="square")
    elif node.op == "mul" and len(values) == 2:
        if values[0] == values[1]:
            e.turn(node, "activation", x=values[0], function="square")
        else:
            _gate(e, node, values)


def _gate(e: Editor, node: Node, values: list) -> None:
    """x * sigmoid(x) and x * sigmoid(1.702 x)."""
    for x, factor in (values, values[::-1]):
        gate = e.is_op(factor, "sigmoid", "activation")
        if not isinstance(x, Ref) or gate is None or gate.arguments.get("function", "sigmoid") != "sigmoid":
            continue
        inner = next(iter(gate.arguments.values()))
        if inner == x:
            e.turn(node, "activation", x=x, function="silu")
            return
        scaled = e.is_op(inner, "mul")
        if scaled is not None:
            operands = list(scaled.arguments.values())
            if x in operands and any(number(v) == QUICK for v in operands):
                e.turn(node, "activation", x=x, function="quick_gelu")
                return
