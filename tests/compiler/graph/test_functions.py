"""Functions of single values and norms, in all the ways in which people write them."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from hw.spec.errors import UserError
from tests.compiler.graph.small import WIDTH, fixed, functions, graph_of, linear, only, operators, weight

ROOT = math.sqrt(2 / math.pi)
FORMS = {
    "erf": (lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))), "gelu"),
    "half of a product with erf": (lambda x: 0.5 * (x * (1.0 + torch.erf(x * 0.7071067811865476))), "gelu"),
    "tanh of a cube": (lambda x: 0.5 * x * (1.0 + torch.tanh(ROOT * (x + 0.044715 * torch.pow(x, 3.0)))), "gelu_tanh"),
    "tanh of a square": (lambda x: 0.5 * x * (1 + torch.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x))), "gelu_tanh"),
    "in place": (lambda x: functional.silu(x, inplace=True), "silu"),
    "power": (lambda x: torch.pow(x, 2.0), "square"),
    "hardswish": (functional.hardswish, "hardswish"),
    "quick": (lambda x: torch.sigmoid(x * 1.702) * x, "quick_gelu"),
}


@pytest.mark.parametrize("form", FORMS)
def test_functions_written_out(form):
    function, name = FORMS[form]
    assert functions(graph_of(lambda m, x: function(m.inner(x)), inner=linear())) == [name]


def test_a_gelu_of_a_product():
    """What the function is of may be a product itself."""
    graph = graph_of(lambda m, x: FORMS["erf"][0](m.a(x) * m.b(x) * 2), a=linear(), b=linear())
    assert functions(graph) == ["gelu"]


PIECES = {
    "clamp": lambda x: x.clamp(-1, 2),
    "clamp below": lambda x: x.clamp(min=0.5),
    "clamp above": lambda x: x.clamp(max=0.5),
    "relu6": functional.relu6,
    "hardsigmoid": functional.hardsigmoid,
    "leaky relu": lambda x: functional.leaky_relu(x, 0.1),
    "absolute": lambda x: x.abs(),
    "larger": lambda x: torch.maximum(x, x.flip(-1)),
    "smaller": lambda x: torch.minimum(x, x * 2),
}


@pytest.mark.parametrize("function", PIECES.values(), ids=PIECES)
def test_straight_pieces_are_sums_of_ramps(function):
    assert set(functions(graph_of(lambda m, x: function(x)))) == {"relu"}


def test_glu_and_powers():
    assert functions(graph_of(lambda m, x: functional.glu(x, -1))) == ["sigmoid"]
    assert functions(graph_of(lambda m, x: x**3)) == ["square"]
    assert functions(graph_of(lambda m, x: x**4)) == ["square", "square"]


def mean_of_squares(x):
    return x.pow(2).mean(-1, keepdim=True)


def centred(x):
    return x - x.mean(-1, keepdim=True)


NORMS = {
    "x / sqrt": (lambda x: x / torch.sqrt(mean_of_squares(x) + 1e-5), "rms"),
    "1 / sqrt": (lambda x: (1 / torch.sqrt((x * x).mean(-1, True) + 1e-5)) * x, "rms"),
    "power of -1/2": (lambda x: x * (torch.square(x).mean((-1,), keepdim=True) + 1e-5).pow(-0.5), "rms"),
    "epsilon first": (lambda x: torch.rsqrt(1e-5 + mean_of_squares(x)) * x, "rms"),
    "the last axis by its number": (lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5), "rms"),
    "sum by width": (lambda x: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) / WIDTH + 1e-5), "rms"),
    "centred": (lambda x: centred(x) * torch.rsqrt(mean_of_squares(centred(x)) + 1e-5), "layer"),
    "variance": (lambda x: centred(x) / torch.sqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5), "layer"),
    "correction": (lambda x: centred(x) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt(), "layer"),
}


@pytest.mark.parametrize("form", NORMS)
def test_norms_written_out(form):
    function, kind = NORMS[form]
    graph = graph_of(lambda m, x: m.w * function(x), w=weight(WIDTH))
    assert operators(graph) == ["norm"]
    assert only(graph, "norm").arguments["kind"] == kind
    assert only(graph, "norm").arguments["epsilon"] == 1e-5
    assert "weight" in only(graph, "norm").arguments


def test_a_factor_in_front_of_a_norm():
    graph = graph_of(lambda m, x: (m.w * x) * torch.rsqrt(mean_of_squares(x) + 1e-5), w=weight(WIDTH))
    assert operators(graph) == ["norm"] and "weight" in only(graph, "norm").arguments
    graph = graph_of(lambda m, x: 2.0 * x * torch.rsqrt(mean_of_squares(x) + 1e-5))
    assert operators(graph) == ["norm", "scale"]


LOOKALIKES = {
    "of another value": lambda m, x: x * torch.rsqrt(mean_of_squares(m.inner(x)) + 1e-5),
    "over rows": lambda m, x: x * torch.rsqrt(x.pow(2).mean(0, keepdim=True) + 1e-5),
    "unbiased variance": lambda m, x: centred(x) / torch.sqrt(x.var(-1, keepdim=True) + 1e-5),
    "no epsilon": lambda m, x: x * torch.rsqrt(mean_of_squares(x)),
    "a cube": lambda m, x: x * torch.rsqrt(x.pow(4).mean(-1, keepdim=True) + 1e-5),
}


@pytest.mark.parametrize("case", LOOKALIKES)
def test_what_only_looks_like_a_norm_is_refused(case):
    with pytest.raises(UserError, match=r"module Of: operator \w+ with result .* has no rule"):
        graph_of(LOOKALIKES[case], inner=linear())


def test_norms_over_groups_and_several_axes():
    two = graph_of(lambda m, x: functional.layer_norm(x.view(-1, 4, 8), (4, 8), m.w, m.w), w=weight(4, 8))
    assert operators(two) == ["norm"] and set(only(two, "norm").arguments) >= {"weight", "bias"}
    grouped = fixed(lambda m, x: m.norm(x), 1, 4, 6, 6, norm=nn.GroupNorm(2, 4))
    assert operators(grouped) == ["norm", "mul", "add"]
    batch = fixed(lambda m, x: m.norm(x), 1, 4, 6, 6, norm=nn.BatchNorm2d(4))
    assert operators(batch) == ["mul", "add"]
