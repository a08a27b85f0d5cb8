"""State: what grows from run to run."""

from ..edit import Editor
from ..ir import Node


def find_state(e: Editor) -> None:
    """cat(past, new) of keys or values, `past` being an input."""
    for node in e.device():
        if node.op != "cat" or len(node.arguments["parts"]) != 2:
            continue
        past, new = node.arguments["parts"]
        source = e.of(past)
        if source is not None and source.op == "input" and _grows(node):
            e.turn(node, "append", past=past, new=new, axis=node.arguments["axis"])


def _grows(node: Node) -> bool:
    """Along the rows of [.., heads, rows, channels]."""
    return len(node.shape) > 2 and node.arguments["axis"] == len(node.shape) - 2
