"""State: what grows from run to run."""

from ..edit import Editor
from ..ir import Node, Ref


def find_state(e: Editor) -> None:
    """cat(past, new) of keys or values, `past` being an input, or an input with axes of 1 in front of it."""
    for node in e.device():
        if node.op != "cat" or len(node.arguments["parts"]) != 2 or not _grows(node):
            continue
        past, new = node.arguments["parts"]
        source, axis = _input(e, e.graph.nodes[past.name]), node.arguments["axis"]
        if source is None:
            continue
        more = len(node.shape) - len(source.shape)
        if more:
            shape = list(e.graph.nodes[new.name].shape[more:])
            rows = e.insert(node, "rows", "reshape", shape, x=new, shape=shape)
            whole = list(node.shape[more:])
            grown = e.insert(node, "grown", "append", whole, past=Ref(source.name), new=rows, axis=axis - more)
            e.turn(node, "reshape", x=grown, shape=list(node.shape))
        else:
            e.turn(node, "append", past=past, new=new, axis=axis)


def _grows(node: Node) -> bool:
    """Along the rows of [.., heads, rows, channels]."""
    return len(node.shape) > 2 and node.arguments["axis"] == len(node.shape) - 2


def _input(e: Editor, node: Node) -> Node | None:
    """The input [.., heads, rows, channels] that a node is, axes of 1 in front aside."""
    if node.op == "input":
        return node
    source = e.form(Ref(node.name), "reshape") and e.graph.nodes[node.inputs[0]]
    if not source or source.op != "input" or len(source.shape) < 3:
        return None
    more = len(node.shape) - len(source.shape)
    return source if more > 0 and node.shape == (1,) * more + source.shape else None
