"""Operators over rows: pooling, resizing, sums of tokens, gathering, joining."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from hw.spec import numerics as nm
from hw.spec.config import GRANULE_LANES
from hw.spec.isa import Reduce

from ...graph.ir import Dim, Length, Node
from .. import steps as s
from ..steps import Array, Layout
from ..translate import Translator, refused, rule
from ..views import View, permuted, rows_view

RECIPROCAL_BITS = 30
"""Fraction bits of one over a symbolic number of rows."""


@rule("mean", "sum")
def reduce(t: Translator, node: Node) -> View:
    """Sums of rows, exact until they saturate; a mean's divisor goes into the multiplier."""
    name, shape = node.inputs[0], t.graph.nodes[node.inputs[0]].shape
    last = len(shape) - 1
    axes = sorted(int(a) % len(shape) for a in node.arguments["axes"])
    if last in axes:
        return _over_channels(t, node, name, axes)
    kept = [i for i in range(last) if i not in axes]
    if any(not isinstance(shape[i], int) for i in axes):
        if any(shape[i] != 1 for i in kept):
            raise refused(node, "it goes over a symbolic number of rows, of several", "a sum over all rows")
        return _all_rows(t, node, name)
    n = prod(int(shape[i]) for i in axes)
    groups = regrouped(t, node, name, (*kept, *axes, last), [shape[i] for i in kept], n)
    before = t.steps[groups]
    mult = before.mult * (n if node.op == "mean" else 1)
    total = t.add(s.SumGroups, before.rows, Layout(1, before.layout.size), groups, mult=mult)
    return rows_view(total, node.shape)


def _over_channels(t: Translator, node: Node, name: str, axes: list[int]) -> View:
    """One entry a row, read back as a channel."""
    if len(axes) > 1:
        raise refused(node, "it goes over rows and channels", "two sums, one after the other")
    x = t.rows(name)
    before = t.steps[x]
    mult = before.mult * (before.layout.width if node.op == "mean" else 1)
    total = t.add(s.FromEntry, before.rows, Layout(1, 1), t.entry(x, Reduce.SUM), mult=mult)
    return View(total, rows_view(total, (*node.shape, 1)).axes[:-1])


def _all_rows(t: Translator, node: Node, name: str) -> View:
    x = t.rows(name)
    before = t.steps[x]
    total = t.add(s.SumRows, 1, before.layout, x, mult=before.mult)
    if node.op == "mean":
        share = t.add(
            s.Input,
            1,
            before.layout,
            node=name,
            share=True,
            mult=2.0 ** (RECIPROCAL_BITS - nm.FRAC),
            name=f"{name}.share",
        )
        total = t.then(s.Multiply, total, share, RECIPROCAL_BITS)
    return rows_view(total, node.shape)


def regrouped(t: Translator, node: Node, name: str, order: Sequence[int], rows: Sequence[Dim], groups: int) -> str:
    """A value of which every row has the channels of `groups` rows side by side, for sums over them."""
    source = t.graph.nodes[name]
    width = int(source.shape[-1])
    count = prod(int(d) for d in rows) if all(isinstance(d, int) for d in rows) else None
    if groups == 1:
        return t.rows(name)
    if t.is_input(name):
        many: Dim = count if count is not None else _only(node, rows)
        return t.add(s.Input, many, Layout(groups, width), node=name, order=tuple(order), name=f"{name}.groups")
    if count is None:
        raise refused(node, "it regroups a symbolic number of rows", "constant lengths where rows are regrouped")
    return t.regrouped(node, permuted(t.view(name), order), (count, groups * width), groups)


def _only(node: Node, rows: Sequence[Dim]) -> Dim:
    symbols = [d for d in rows if d != 1]
    if len(symbols) == 1:
        return symbols[0]
    raise refused(node, "its rows are a product of lengths", "one symbolic length among the axes in front of the last")


@rule("mix")
def mix(t: Translator, node: Node) -> View:
    """A constant matrix over tokens: those of a row's tokens that count are brought together and added up."""
    name = node.arguments["x"].name
    shape, axis = t.graph.nodes[name].shape, int(node.arguments["axis"])
    matrix = t.constant(node.arguments["matrix"].name)
    if len(shape) != 2 or axis % 2 or not isinstance(shape[0], int):
        raise refused(node, "it mixes other than the rows of [tokens, channels]", "a constant number of tokens")
    index, weights = _taps(matrix)
    width = int(shape[1])
    if t.is_input(name):
        taps = t.add(
            s.Input, len(index), Layout(index.shape[1], width), node=name, index=index, name=f"{node.name}.taps"
        )
    else:
        x = t.rows(name)
        before = t.steps[x]
        if before.layout != Layout(1, width):
            raise refused(node, "its tokens lie in groups or in another order", "tokens that are whole rows")
        taps = t.add(s.Rearranged, len(index), Layout(index.shape[1], width), x, index=index, mult=before.mult)
    used = np.unique(weights[index >= 0])
    mult = t.steps[taps].mult
    if len(used) == 1 and used[0] > 0:
        mult /= float(used[0])
    else:
        taps = _weighted(t, taps, weights)
    total = t.add(s.SumGroups, len(index), Layout(1, width), taps, mult=mult)
    return rows_view(total, node.shape)


def _taps(matrix: Array) -> tuple[Array, Array]:
    """(tokens that count for every result, -1 for none; their weights), each [out, largest number]."""
    most = int((matrix != 0).sum(axis=1).max())
    index = np.full((len(matrix), max(1, most)), -1)
    weights = np.zeros(index.shape)
    for row, coefficients in enumerate(matrix):
        places = np.nonzero(coefficients)[0]
        index[row, : len(places)], weights[row, : len(places)] = places, coefficients[places]
    return index, weights


def _weighted(t: Translator, taps: str, weights: Array) -> str:
    """Every token times its weight, a constant over its channels."""
    before = t.steps[taps]
    values = np.repeat(weights[..., None], before.layout.size, axis=2)
    constant = t.add(s.Input, before.rows, before.layout, literal=values, name=f"{taps}.weights")
    return t.then(s.Multiply, taps, constant, nm.FRAC)


@rule("lookup")
def lookup(t: Translator, node: Node) -> View:
    """Rows that the host looks up."""
    return t.brought(node)


@rule("gather")
def gather(t: Translator, node: Node) -> View:
    """Rows by a list, which is constant or comes from the host."""
    name, index_name = node.arguments["x"].name, node.arguments["index"].name
    shape, axis = t.graph.nodes[name].shape, int(node.arguments["axis"])
    if len(shape) != 2 or axis % 2:
        raise refused(node, "it gathers other than rows", "rows of [tokens, channels]")
    if not t.is_constant(index_name):
        return _gather_at_run_time(t, node, name, index_name)
    index = t.constant(index_name).astype(np.int64).reshape(-1, 1)
    width = int(shape[1])
    if t.is_input(name):
        taken = t.add(s.Input, len(index), Layout(1, width), node=name, index=index, name=f"{node.name}.rows")
    elif isinstance(shape[0], Length):
        least = shape[0].at({symbol: limits.least for symbol, limits in t.graph.lengths.items()})
        if index.max() >= least:
            raise refused(
                node, f"it takes row {index.max()}, there may be {least}", f"a length of {index.max() + 1} at least"
            )
        return _gathered(t, node, name, t.add(s.Input, len(index), Layout(1, 1), literal=index, **LIST))
    else:
        x = t.rows(name)
        before = t.steps[x]
        taken = t.add(s.Rearranged, len(index), before.layout, x, index=index, mult=before.mult)
    return rows_view(taken, node.shape)


LIST: dict[str, Any] = {"whole": True, "mult": 2.0**-nm.FRAC}
"""Of the numbers of a list, which are as they are."""


def _gather_at_run_time(t: Translator, node: Node, name: str, index_name: str) -> View:
    """Row by row, as the sequencer reads the list."""
    (count,) = t.graph.nodes[index_name].shape
    numbers = t.add(s.Input, count, Layout(1, 1), node=index_name, name=f"{index_name}.list", **LIST)
    return _gathered(t, node, name, numbers)


def _gathered(t: Translator, node: Node, name: str, numbers: str) -> View:
    x = t.rows(name)
    before = t.steps[x]
    return rows_view(
        t.add(s.GatherRows, t.steps[numbers].rows, before.layout, x, numbers, mult=before.mult), node.shape
    )


@rule("cat")
def cat(t: Translator, node: Node) -> View:
    """Rows behind each other, or channels of the same rows side by side."""
    names = [ref.name for ref in node.arguments["parts"]]
    axis = int(node.arguments["axis"]) % len(node.shape)
    beside = axis == len(node.shape) - 1
    if not beside and any(d != 1 for d in node.shape[:axis]):
        raise refused(node, "it joins inner axes", "parts that are joined row behind row, or channel beside channel")
    parts = [t.rows(name) for name in names]
    mult = next((t.steps[p].mult for p in parts if t.steps[p].mult != 1.0), 1.0)
    parts = [t.at_mult(part, mult) for part in parts]
    layouts = [t.steps[part].layout for part in parts]
    layout = Layout(1, int(node.shape[-1])) if beside else layouts[0]
    if beside:
        _check_beside(node, layouts)
    elif any(other != layout for other in layouts):
        raise refused(node, "its parts do not lie alike", "parts of the same channels")
    joined = t.add(s.Joined, t.flat(node), layout, tuple(parts), beside, mult=mult)
    return rows_view(joined, node.shape)


def _check_beside(node: Node, layouts: list[Layout]) -> None:
    """Stores write whole granules: every part but the last one fills its own."""
    if any(layout != Layout(1, layout.size) for layout in layouts):
        raise refused(node, "its parts lie in groups or in another order", "parts that are whole rows")
    if odd := [layout.size for layout in layouts[:-1] if layout.size % GRANULE_LANES]:
        raise refused(node, f"a part has {odd[0]} channels", f"parts of a multiple of {GRANULE_LANES} channels")
