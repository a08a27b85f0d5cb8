"""Views: nothing is computed, only the access map changes."""

from ...graph.ir import Node
from ..translate import Translator, refused, rule
from ..views import View, permuted, reshaped, sliced


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
    a = node.arguments
    axis = int(a["axis"]) % len(node.shape)
    start = a.get("start", 0)
    if a.get("step", 1) != 1 or not isinstance(start, int):
        raise refused(node, "it takes every so many places, or from a symbolic place on", "a slice of step 1")
    view = sliced(t.view(node.inputs[0]), axis, start, node.shape[axis])
    if view is None:
        raise refused(node, "it cuts an axis that was joined of several", "a slice before the reshape")
    return view


@rule("expand")
def expand(t: Translator, node: Node) -> View:
    view = t.view(node.inputs[0])
    if view.shape == tuple(node.shape):
        return view
    raise refused(node, "it repeats rows or channels", "an operand that broadcasts in `add` or `mul`")
