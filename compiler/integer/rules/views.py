"""Views: nothing is computed, only the access map changes."""

from ...graph.ir import Dim, Length, Node
from .. import steps as s
from ..translate import Translator, refused, rule
from ..views import View, permuted, reshaped, rows_view, sliced


@rule("reshape")
def reshape(t: Translator, node: Node) -> View:
    view = reshaped(t.view(node.inputs[0]), node.shape)
    if view is None:
        raise refused(node, "it cuts an axis at a place that is no divisor", "axes that are split or joined whole")
    return view


@rule("permute")
def permute(t: Translator, node: Node) -> View:
    return permuted(t.view(node.inputs[0]), node.arguments["order"])


@rule("slice")
def slice_(t: Translator, node: Node) -> View:
    a, name = node.arguments, node.inputs[0]
    axis, start = int(a["axis"]) % len(node.shape), a.get("start", 0)
    if a.get("step", 1) != 1:
        raise refused(node, "it takes every so many places", "a slice of step 1")
    size, count = t.graph.nodes[name].shape[axis], node.shape[axis]
    if str(size) != str(count) and any(isinstance(each, Length) for each in (size, count, start)):
        return _part(t, node, axis, start)
    view = sliced(t.view(name), axis, start, count)
    if view is None:
        raise refused(node, "it cuts an axis that was joined of several", "a slice before the reshape")
    return view


def _part(t: Translator, node: Node, axis: int, start: Dim) -> View:
    """Some rows, where how many there are, how many are taken or where they begin is symbolic."""
    name = node.inputs[0]
    if axis == len(node.shape) - 1:
        raise refused(node, "it takes a symbolic number of channels", "a constant number of channels")
    if t.is_input(name):
        return t.brought(node)
    if axis != len(node.shape) - 2 or any(size != 1 for size in node.shape[:-2]):
        raise refused(node, "it cuts an axis of symbolic length in several places", "rows [n, channels]")
    x = t.rows(name)
    before = t.steps[x]
    return rows_view(t.add(s.Part, node.shape[axis], before.layout, x, start, mult=before.mult), node.shape)


@rule("expand")
def expand(t: Translator, node: Node) -> View:
    view = t.view(node.inputs[0])
    if view.shape == tuple(node.shape):
        return view
    raise refused(node, "it repeats rows or channels", "an operand that broadcasts in `add` or `mul`")
