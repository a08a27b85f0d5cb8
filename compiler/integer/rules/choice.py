"""Choices: the largest values of a row, and the rows with the largest values."""

import numpy as np

from hw.spec import numerics as nm
from hw.spec.isa import Func, Reduce

from ...graph.ir import Node
from .. import steps as s
from ..steps import Layout
from ..translate import Translator, refused, rule
from ..views import View, rows_view

STEEP = nm.encode_scale(2.0**15)
"""Twice this on a difference of one makes 2**x nothing at all: what is below a limit counts 0, the rest `PROB_MAX`."""
KEPT = nm.PROB_MAX / 2**15
"""What is left of a value that is multiplied by `PROB_MAX` and shifted by 15."""


@rule("route")
def route(t: Translator, node: Node) -> View:
    """All but the k largest values become 0. Values that are equal to the k-th are kept with it."""
    name = node.arguments["x"].name
    p = t.at_mult(t.rows(name))
    left = p
    for number in range(int(node.arguments["k"])):
        top = t.entry(left, Reduce.MAX)
        if number < int(node.arguments["k"]) - 1:
            left = _without(t, left, top)
    kept = t.then(s.Multiply, p, at_least(t, p, top), 15, mult=KEPT)
    return View(kept, t.view(name).axes)


def at_least(t: Translator, x: str, limit: str) -> str:
    """PROB_MAX where a value is no smaller than the row's entry, 0 elsewhere: 2**difference, of great differences."""
    difference = t.then(s.SubtractRows, x, limit)
    for _ in range(2):
        difference = t.then(s.ScaleAll, difference, STEEP)
    return t.then(s.Function, difference, Func.EXP2)


@rule("argmax")
def argmax(t: Translator, node: Node) -> View:
    """The index of a row's largest value, ties to the lowest (operator 13 of docs/machine.md).

    What differs from the largest value by one or more loses at least 65,535; what does not keeps the number of places
    behind it, which is largest at the lowest index.
    """
    x = t.rows(node.arguments["x"].name)
    before = t.steps[x]
    n, groups = before.layout.width, before.layout.groups
    if n >= MOST_PLACES or before.layout != Layout(1, n):
        raise refused(node, f"it looks at {n:,} values in {groups} groups", f"less than {MOST_PLACES:,} in one row")
    difference = t.then(s.SubtractRows, x, t.entry(x, Reduce.MAX))
    lost = t.then(s.ScaleAll, difference, nm.pack_scale(MOST_PLACES, 0))
    places = t.then(s.Add, lost, t.param("places", n - np.arange(n).reshape(1, n)))
    best = t.add(s.FromEntry, before.rows, Layout(1, 1), t.entry(places, Reduce.MAX))
    negative = t.then(s.ScaleAll, best, nm.encode_scale(-1.0))
    index = t.then(s.Add, negative, t.param("all", np.full((1, 1), n)), mult=2.0**-nm.FRAC)
    return View(index, rows_view(index, (*node.shape, 1)).axes[:-1])


MOST_PLACES = 65_535
"""The largest factor of a scale word."""


def _without(t: Translator, x: str, top: str) -> str:
    """The values but for the largest, which become less than all others: 32,767 are taken away from it."""
    return t.then(s.Add, x, t.then(s.ScaleAll, at_least(t, x, top), nm.encode_scale(-(2.0**16))))


@rule("select_rows")
def select_rows(t: Translator, node: Node) -> View:
    """The k rows with the largest scores, in their old order; equal scores: the earlier row."""
    a = node.arguments
    x, scores = t.rows(a["x"].name), _scores(t, node, a["scores"].name)
    before = t.steps[x]
    if str(before.rows) != str(t.steps[scores].rows):
        raise refused(node, "it has more or fewer scores than rows", "one score a row")
    chosen = t.add(s.SelectRows, int(a["k"]), before.layout, x, scores, mult=before.mult)
    return rows_view(chosen, node.shape)


def _scores(t: Translator, node: Node, name: str) -> str:
    """A value with one channel a row."""
    source = t.graph.nodes[name]
    while source.op in ("reshape", "slice") and t.steps[t.view(source.name).base].layout.width != 1:
        source = t.graph.nodes[source.inputs[0]]
    value = t.view(name).base
    if t.steps[value].layout != Layout(1, 1):
        raise refused(node, "its scores are a part of wider rows", "scores of a linear layer with one output")
    return value
