"""Products with constants: linear layers, convolutions, pools."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from hw.spec.errors import UserError
from tests.compiler.graph.small import WIDTH, fixed, graph_of, linear, only, operators, weight

LINEAR = {
    "matmul": lambda m, x: x @ m.w.t(),
    "addmm": lambda m, x: torch.addmm(m.b, x, m.w.t()),
    "nn": lambda m, x: torch.einsum("nc,oc->no", x, m.w),
    "constant first": lambda m, x: torch.einsum("oc,nc->no", m.w, x),
    "any axes in front": lambda m, x: torch.einsum("...c,oc->...o", x, m.w),
    "several axes of the result": lambda m, x: torch.einsum("nc,ocd->nod", x, m.w.view(2, 4, WIDTH).transpose(1, 2)),
    "several axes that are summed": lambda m, x: torch.einsum("nab,oab->no", x.view(-1, 4, 8), m.w.view(8, 4, 8)),
    "a vector": lambda m, x: x @ m.w[0],
    "a weight of several factors": lambda m, x: functional.linear(x, m.w * 2 + 1, m.b),
}


@pytest.mark.parametrize("form", LINEAR)
def test_linear_layers(form):
    graph = graph_of(LINEAR[form], w=weight(8, WIDTH), b=weight(8))
    assert operators(graph) == ["linear"]


def test_products_with_factors():
    graph = graph_of(lambda m, x: torch.addmm(m.b, x, m.w, beta=0.5, alpha=2.0), w=weight(WIDTH, 8), b=weight(8))
    assert operators(graph) == ["linear", "scale", "add"]


def test_a_matrix_a_part():
    def function(m, x):
        return x.view(-1, 4, 8).transpose(0, 1) @ m.w

    assert operators(graph_of(function, w=weight(4, 8, 8))) == ["linear"] * 4 + ["cat"]


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.w @ x,
        lambda m, x: torch.einsum("pn,nc->pc", m.w, x),
    ],
)
def test_sums_of_rows(function):
    node = only(fixed(function, 6, WIDTH, w=weight(3, 6)), "mix")
    assert node.arguments["axis"] == 0


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_of_joined_channels_is_a_sum_of_layers(bias):
    graph = graph_of(lambda m, x: m.inner(torch.cat((x, x * x, 2 * x), -1)), inner=nn.Linear(3 * WIDTH, 8, bias=bias))
    assert "cat" not in operators(graph)
    assert operators(graph).count("linear") == 3 and operators(graph).count("add") == 2
    assert sum("bias" in node.arguments for node in graph.device() if node.op == "linear") == bias


@pytest.mark.parametrize("parts", [lambda y: y.chunk(3, -1), lambda y: y.split([8, 8, 16], -1), lambda y: (y[:, 4:8],)])
def test_a_layer_that_is_read_in_parts_is_one_a_part(parts):
    graph = graph_of(lambda m, x: [part * 2 for part in parts(m.inner(x))], inner=linear())
    assert set(operators(graph)) == {"linear", "scale"}
    assert operators(graph).count("linear") == operators(graph).count("scale")


def test_a_layer_that_is_read_as_a_whole_too_stays_one():
    graph = graph_of(lambda m, x: (lambda y: y[:, :8].sum(-1, keepdim=True) + y)(m.inner(x)), inner=linear())
    assert operators(graph).count("linear") == 1


CONVOLUTIONS = {
    "patches": (nn.Conv2d(3, 8, 4, 4), (1, 3, 8, 8)),
    "dense": (nn.Conv2d(3, 8, 3, 2, 1), (1, 3, 7, 7)),
    "depthwise": (nn.Conv2d(4, 4, 3, 1, 1, groups=4), (1, 4, 6, 6)),
    "groups": (nn.Conv2d(4, 8, 3, groups=2), (1, 4, 6, 6)),
    "dilated": (nn.Conv2d(3, 4, 3, (2, 1), (1, 0), 2), (1, 3, 9, 8)),
    "same": (nn.Conv2d(3, 4, 4, padding="same"), (1, 3, 6, 6)),
    "valid": (nn.Conv2d(3, 4, 3, padding="valid"), (1, 3, 6, 6)),
    "no batch": (nn.Conv2d(3, 4, 3), (3, 6, 6)),
    "a batch": (nn.Conv2d(3, 4, 3, padding=1), (2, 3, 4, 4)),
    "one axis": (nn.Conv1d(4, 8, 3, 2, 1), (1, 4, 9)),
    "three axes": (nn.Conv3d(2, 4, 2, 2), (1, 2, 4, 4, 4)),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions_are_linear_layers_of_gathered_tokens(case):
    layer, shape = CONVOLUTIONS[case]
    found = operators(fixed(lambda m, x: m.inner(x), *shape, inner=layer))
    assert [op for op in found if op != "cat"] == ["gather", "linear"]


def test_a_batch_norm_behind_a_convolution():
    graph = fixed(lambda m, x: m.two(m.one(x)), 1, 3, 6, 6, one=nn.Conv2d(3, 8, 3), two=nn.BatchNorm2d(8))
    assert operators(graph) == ["gather", "linear", "mul", "add"]


POOLS = {
    "average": (lambda m, x: functional.avg_pool2d(x, 2), (1, 4, 6, 6)),
    "with a border": (lambda m, x: functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (1, 4, 6, 6)),
    "of a batch": (lambda m, x: functional.avg_pool2d(x, 2), (2, 4, 6, 6)),
    "adaptive": (lambda m, x: functional.adaptive_avg_pool2d(x, (2, 3)), (4, 5, 7)),
    "adaptive, three axes": (lambda m, x: functional.adaptive_avg_pool3d(x, (1, 2, 2)), (1, 4, 2, 4, 4)),
    "one axis": (lambda m, x: functional.avg_pool1d(x, 2), (1, 4, 6)),
    "bilinear": (lambda m, x: functional.interpolate(x, size=(3, 2), mode="bilinear"), (1, 4, 5, 5)),
    "bilinear, smoothed": (
        lambda m, x: functional.interpolate(x, size=(3, 2), mode="bilinear", antialias=True),
        (1, 4, 5, 5),
    ),
    "bicubic": (lambda m, x: functional.interpolate(x, scale_factor=2, mode="bicubic"), (1, 4, 3, 3)),
    "nearest": (lambda m, x: functional.interpolate(x, scale_factor=2), (1, 4, 3, 3)),
    "area": (lambda m, x: functional.interpolate(x, size=2, mode="area"), (1, 4, 5, 5)),
    "linear": (lambda m, x: functional.interpolate(x, size=4, mode="linear"), (1, 4, 6)),
}


@pytest.mark.parametrize("case", POOLS)
def test_pools_are_constant_mixtures_of_tokens(case):
    function, shape = POOLS[case]
    assert operators(fixed(function, *shape)) == ["mix"]


def test_means_and_sums():
    assert operators(graph_of(lambda m, x: x.mean(0, keepdim=True))) == ["mean"]
    assert operators(graph_of(lambda m, x: x.sum(0) / x.shape[0])) == ["mean"]
    assert operators(graph_of(lambda m, x: x.sum((0, 1)))) == ["sum"]
    assert operators(graph_of(lambda m, x: x.sum(0) / WIDTH)) == ["sum", "scale"]


REFUSED = {
    "two activations": (lambda m, x: x @ x.t(), "accepted is a product with a constant matrix"),
    "a weight of activations": (lambda m, x: functional.linear(x, x), "accepted is a weight that is a parameter"),
    "the largest of a window": (lambda m, x: functional.max_pool1d(x[None], 2), "operator max_pool1d"),
    "a quotient": (lambda m, x: m.w / x, "accepted is a quotient by a number or a constant"),
    "a running sum": (lambda m, x: x.cumsum(0), "operator cumsum"),
    "a logarithm": (lambda m, x: functional.log_softmax(x, -1), "accepted is softmax"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    function, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as refusal:
        graph_of(function, w=weight(WIDTH))
    assert "\n" not in str(refusal.value) and "small.py:" in str(refusal.value)
