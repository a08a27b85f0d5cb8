"""Views, copies, sums with numbers, and rotary positions."""

import pytest
import torch
from torch.nn import functional

from compiler.graph import capture
from compiler.graph.ir import Graph
from tests.compiler.graph.small import (
    HEADS,
    SIZE,
    VIEWS,
    WIDTH,
    Rotating,
    fixed,
    graph_of,
    linear,
    only,
    operators,
    weight,
)

PLAIN = {
    "views": lambda x: x.unflatten(-1, (4, 8)).movedim(0, -1).mT.flatten(1).view(4, -1),
    "steps": lambda x: x[:, 1::2],
    "from the end": lambda x: x[-1:, -8:],
    "beyond the end": lambda x: x[:, 4:100],
    "one row": lambda x: x[-1],
    "parts": lambda x: x.tensor_split(3, -1)[1],
    "an uneven part": lambda x: x.chunk(5, -1)[4],
    "narrow": lambda x: x.narrow(1, -8, 4),
    "unbind": lambda x: x.view(-1, 4, 8).unbind(1)[2],
    "expand": lambda x: x[:, None].expand(-1, 3, -1).reshape(-1, WIDTH),
    "repeat of one": lambda x: x[:, None].repeat(1, 3, 1),
    "repeat interleaved": lambda x: x.repeat_interleave(2, 1),
}


@pytest.mark.parametrize("function", PLAIN.values(), ids=PLAIN)
def test_views_stay_views(function):
    assert {n.op for n in graph_of(lambda m, x: function(x)).device()} <= set(VIEWS)


BESIDE = {
    "stack": lambda x: torch.stack((x, x), 1),
    "hstack": lambda x: torch.hstack((x, x)),
    "repeat": lambda x: x.repeat(2, 2),
    "roll": lambda x: x.roll((1, -3), (-1, 1)),
    "zeros": lambda x: torch.cat((x.new_zeros(2, WIDTH), x)),
    "pad": lambda x: functional.pad(x, (1, 2, 0, 3), value=0.5),
    "pixel shuffle": lambda x: functional.pixel_shuffle(x[:1].view(1, 8, 2, 2), 2).repeat(1, 2, 1, 1),
}


@pytest.mark.parametrize("function", BESIDE.values(), ids=BESIDE)
def test_copies_are_parts_side_by_side(function):
    assert set(operators(graph_of(lambda m, x: function(x)))) == {"cat"}


def test_backwards_is_a_gather():
    assert operators(graph_of(lambda m, x: x.flip(0, 1))) == ["gather", "gather"]


SUMS = {
    "a number less x": (lambda m, x: 1 - x, ["scale", "offset"]),
    "a constant less x": (lambda m, x: m.w - x, ["scale", "add"]),
    "twice a constant less": (lambda m, x: torch.rsub(x, m.w, alpha=2), ["scale", "add"]),
    "a constant first": (lambda m, x: torch.add(m.w, x, alpha=0.5), ["scale", "add"]),
    "a constant times x": (lambda m, x: (1 + m.w) * x, ["mul"]),
    "by a constant": (lambda m, x: x / m.w, ["mul"]),
    "a tensor without axes": (lambda m, x: x * torch.tensor(8.0) + torch.tensor(1.0), ["scale", "offset"]),
    "a parameter without axes": (lambda m, x: x * m.w[0], ["mul"]),
    "products": (lambda m, x: torch.addcmul(x, x, m.w, value=0.5), ["mul", "add"]),
    "between": (lambda m, x: torch.lerp(x, x * m.w, 0.3), ["mul", "add", "add"]),
    "nothing": (lambda m, x: (x + 0) * 1 + torch.zeros_like(x), []),
    "a length": (lambda m, x: x * x.shape[0], ["mul"]),
    "zeros first": (lambda m, x: sum((x * m.w for _ in range(1)), torch.zeros_like(x)), ["mul"]),
    "places": (lambda m, x: x * torch.arange(x.shape[0])[:, None], ["mul"]),
    "a choice of the host": (lambda m, x: torch.where(torch.arange(WIDTH) > 3, x, m.w), ["mul", "add"]),
    "a softmax over rows": (lambda m, x: torch.softmax(x, 0), ["softmax"]),
    "letters that are not summed": (lambda m, x: torch.einsum("nc,c->nc", x, m.w), ["mul"]),
}


@pytest.mark.parametrize("case", SUMS)
def test_sums_and_products(case):
    function, expected = SUMS[case]
    graph = graph_of(function, w=weight(WIDTH))
    assert operators(graph) == expected
    for node in graph.device():
        assert graph.nodes[node.inputs[0]].kind == "device", "a constant comes first"


def test_equal_parts_are_computed_once():
    assert operators(graph_of(lambda m, x: m.inner(x) * m.inner(x.clone()), inner=linear())) == ["linear", "activation"]


def test_views_behind_copies():
    """A view that was possible only because of the copy in front of it."""
    assert operators(fixed(lambda m, x: x.t().contiguous().view(-1) * 2, 6, WIDTH)) == ["scale"]


# --- rotary positions -----------------------------------------------------------------------------------


def rotated(x):
    low, high = x.chunk(2, -1)
    return torch.cat((-high, low), -1)


def neighbours(x):
    return torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)


def halves(x, cos, sin):
    low, high = x.chunk(2, -1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)


def pairs(x, cos, sin):
    twos = x.unflatten(-1, (-1, 2))
    even, odd = twos[..., 0], twos[..., 1]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)


FORMS = {
    "half": (lambda m, x, c, s: x * c + rotated(x) * s, SIZE, ("half", SIZE)),
    "in another order": (lambda m, x, c, s: s[None] * rotated(x) + c[None] * x, SIZE, ("half", SIZE)),
    "the other way round": (lambda m, x, c, s: x * c - rotated(x) * s, SIZE, ("half", SIZE)),
    "the opposite": (
        lambda m, x, c, s: x * c + torch.cat((x[..., 8:], -x[..., :8]), -1) * s,
        SIZE,
        ("half", SIZE),
    ),
    "factors on tables": (lambda m, x, c, s: x * (c * 1.2) + rotated(x) * (s * 1.2), SIZE, ("half", SIZE)),
    "by halves": (lambda m, x, c, s: halves(x, c, s), SIZE // 2, ("half", SIZE)),
    "partial": (
        lambda m, x, c, s: torch.cat((x[..., :8] * c + rotated(x[..., :8]) * s, x[..., 8:]), -1),
        8,
        ("half", 8),
    ),
    "partial, by halves": (
        lambda m, x, c, s: torch.cat((halves(x[..., :8], c, s), x[..., 8:]), -1),
        4,
        ("half", 8),
    ),
    "neighbours with tables of all channels": (
        lambda m, x, c, s: x * c + neighbours(x) * s,
        SIZE,
        ("neighbours", SIZE),
    ),
    "interleaved": (lambda m, x, c, s: pairs(x, c, s), SIZE // 2, ("interleaved", SIZE)),
}


def rotation(function, width: int) -> Graph:
    torch.manual_seed(0)
    inputs = {"x": torch.randn(HEADS, 5, SIZE), "cos": torch.randn(5, width), "sin": torch.randn(5, width)}
    dynamic = {"x": {1: "seq"}, "cos": {0: "seq"}, "sin": {0: "seq"}}
    return capture(Rotating(function), inputs, dynamic, {"seq": (1, 40)})


@pytest.mark.parametrize("form", FORMS)
def test_rotary_positions(form):
    function, width, (style, turned) = FORMS[form]
    graph = rotation(function, width)
    node = only(graph, "rope")
    assert operators(graph) == ["rope"]
    assert (node.arguments["style"], node.arguments["width"]) == (style, turned)
    assert [graph.nodes[name].kind for name in graph.inputs] == ["device", "host", "host"]


LOOKALIKES = {
    "no exchange": lambda m, x, c, s: x * c + torch.cat((-x[..., :8], x[..., 8:]), -1) * s,
    "both positive": lambda m, x, c, s: x * c + torch.cat((x[..., 8:], x[..., :8]), -1) * s,
    "unequal parts": lambda m, x, c, s: x * c + torch.cat((-x[..., 4:], x[..., :4]), -1) * s,
    "another value": lambda m, x, c, s: x * c + rotated(x * 2) * s,
    "twice": lambda m, x, c, s: torch.add(x * c, rotated(x) * s, alpha=2),
}


@pytest.mark.parametrize("case", LOOKALIKES)
def test_what_only_looks_like_a_rotation_stays_sums_and_products(case):
    assert "rope" not in operators(rotation(LOOKALIKES[case], SIZE))
