"""Writes into parts of a tensor, which torch.export gives as values of their own: parts side by side."""

from ..edit import Editor, axis_of
from ..ir import Dim, Node, Ref
from ..sizes import bounds, from_end, minus, plus


def find_writes(e: Editor) -> None:
    """y[2:] = x, y[:, 0] = 1, y.fill_(0): slice_scatter, select_scatter, copy, fill."""
    for node in list(e.graph.nodes.values()):
        if node.target is None:
            continue
        if node.op == "copy":
            e.turn(node, "expand", x=node.arguments["src"], shape=list(node.shape))
        elif node.op == "fill":
            _fill(e, node)
        elif node.op == "select_scatter":
            axis = axis_of(node.shape, int(node.arguments["dim"]))
            start = from_end(node.arguments["index"], node.shape[axis])
            shape = [1 if i == axis else d for i, d in enumerate(node.shape)]
            source = e.insert(node, "row", "reshape", shape, x=node.arguments["src"], shape=shape)
            _beside(e, node, axis, start, plus(start, 1), source)
        elif node.op == "slice_scatter" and node.arguments.get("step", 1) == 1:
            axis = axis_of(node.shape, int(node.arguments.get("dim", 0)))
            start, stop = bounds(node.arguments.get("start"), node.arguments.get("end"), node.shape[axis])
            _beside(e, node, axis, start, stop, node.arguments["src"])
    e.graph.drop_dead()


def _fill(e: Editor, node: Node) -> None:
    """A tensor of one value: a number, or a constant without axes."""
    value = node.arguments["value"]
    if isinstance(value, Ref):
        e.turn(node, "expand", x=value, shape=list(node.shape))
    else:
        e.fill(node, float(value), node.dtype)


def _beside(e: Editor, node: Node, axis: int, start: Dim, stop: Dim, source: Ref) -> None:
    """What is ahead of the part that is written, the part, and what is behind it."""
    whole, size = node.arguments["self"], node.shape[axis]
    rests = []
    for first, last in ((0, start), (stop, size)):
        shape = [minus(last, first) if i == axis else d for i, d in enumerate(node.shape)]
        a = {"x": whole, "axis": axis, "start": first, "stop": last, "step": 1}
        rests.append([] if first == last else [e.insert(node, "rest", "slice", shape, **a)])
    parts = [*rests[0], source, *rests[1]]
    e.turn(node, "cat", parts=parts, axis=axis)
