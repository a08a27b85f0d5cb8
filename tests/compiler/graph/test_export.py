"""What torch.export gives is read as it is, and what it cannot give is refused in one line."""

import pytest
import torch
from torch import Tensor, nn

from compiler.graph import capture, constants, evaluate, values_of
from hw.spec.errors import UserError
from tests.compiler.graph.small import LENGTHS, SEQ, WIDTH, Of, graph_of, linear, only, operators, weight


class _Signature(nn.Module):
    """Inputs in an order of their own, one of them optional."""

    def forward(self, x: Tensor, y: Tensor, *, z: Tensor | None = None) -> Tensor:
        return x - 2 * y + (0 if z is None else 3 * z)


def test_inputs_are_told_apart_by_name():
    x, y, z = (torch.randn(3, WIDTH) for _ in range(3))
    for inputs in ({"x": x, "y": y}, {"z": z, "y": y, "x": x}):
        graph = capture(_Signature(), inputs)
        values = evaluate(graph, inputs, {}, torch.float32)
        torch.testing.assert_close(values[graph.outputs[0]], _Signature()(**inputs))


class _Keywords(nn.Module):
    def forward(self, x: Tensor, **others: Tensor) -> Tensor:
        return x - others["b"] * others["a"]


def test_keywords_of_any_name():
    inputs = {name: torch.randn(5, WIDTH) for name in "bax"}
    graph = capture(_Keywords(), inputs)
    assert only(graph, "mul").inputs == ("b", "a")


def test_results_of_any_structure():
    graph = graph_of(lambda m, x: {"a": x * 2, "b": (x + 1, [x, x * 2])})
    assert len(graph.outputs) == 4 and "x" in graph.outputs


def test_tied_weights_are_one():
    one, two = linear(), linear()
    two.weight = one.weight
    graph = graph_of(lambda m, x: m.two(m.one(x)), one=one, two=two)
    assert len({node.operand("weight") for node in graph.device()}) == 1


@pytest.mark.parametrize("least", [0, 1])
def test_the_least_lengths(least):
    graph = graph_of(lambda m, x: m.inner(x), lengths={"seq": (least, 40)}, inner=linear())
    assert str(only(graph, "linear").shape[0]) == "seq"


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: torch.cat((x[:1] * 0, x[:-1])) + x,
        lambda m, x: x[::2] * 2,
        lambda m, x: x[1:] - x[:-1],
    ],
)
def test_lengths_of_one_in_between(function):
    """torch.export asks whether seq - 1 is 1; the answer is that it may be."""
    graph_of(function, lengths={"seq": (2, 40)})


def written(m, x: Tensor) -> Tensor:
    y = m.inner(x)
    y[:, 0] = 0.0
    y[:, 2:4] = x[:, :2]
    y += 1
    whole = torch.zeros(x.shape[0] + 2, WIDTH)
    whole[:2] = x[:1]
    whole[2:] = torch.relu_(y)
    return whole


def test_writes_into_parts_are_parts_side_by_side():
    graph = graph_of(written, inner=linear())
    assert "activation" in operators(graph) and "cat" in operators(graph)


def test_values_of_constants_and_of_the_host():
    def function(m, x):
        return x * (1 + m.w) + torch.arange(x.shape[0])[:, None]

    graph = graph_of(function, w=weight(WIDTH))
    assert graph.module is not None
    (factor,) = (only(graph, "mul").operand("y"),)
    torch.testing.assert_close(constants(graph)[factor], 1 + graph.module.w.detach())
    (places,) = (only(graph, "add").operand("y"),)
    assert values_of(graph, [places], {}, {"seq": 3})[places].flatten().tolist() == [0, 1, 2]


def test_constants_are_tensors():
    """Parameters in parts, as multi-head attention has them, are a list on the way."""
    graph = graph_of(lambda m, x: x @ m.w.chunk(2)[1], w=weight(2 * WIDTH, 8))
    assert all(isinstance(value, Tensor) for value in constants(graph).values())


REFUSED = {
    "a list": (lambda x: {"x": [x]}, {}, {}, "input x is of type list: pass tensors"),
    "an axis beyond the last": (lambda x: {"x": x}, {"x": {2: "seq"}}, LENGTHS, "dynamic names axis 2 of 'x', which"),
    "no range": (lambda x: {"x": x}, SEQ, {}, "the length 'seq' has no range"),
    "an unknown input": (lambda x: {"x": x, "y": x}, {}, {}, "inputs names 'y', forward takes x"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_arguments(case):
    inputs, dynamic, lengths, message = REFUSED[case]
    with pytest.raises(UserError, match=message) as refusal:
        capture(Of(lambda m, x: x * 2), inputs(torch.randn(5, WIDTH)), dynamic, lengths)
    assert "\n" not in str(refusal.value)


class _Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        self.runs.add_(1)
        return x * self.runs


MODULES = {
    "a branch on a length": (Of(lambda m, x: x * 2 if x.shape[0] > 3 else x), r"it only holds for 4 <= seq"),
    "a shape that depends on values": (
        Of(lambda m, x: x[(x[:, 0] > 0).nonzero()[:, 0]]),
        r"operator aten.nonzero.default, small.py:\d+: its shape or a number in it depends on values",
    ),
    "a number from activations": (
        Of(lambda m, x: x * x.sum().item()),
        r"operator mul, small.py:\d+: it takes a number computed from activations",
    ),
    "a fraction of a length": (
        Of(lambda m, x: x * x.shape[0] ** -0.5),
        r"operator mul, small.py:\d+: it takes .* or a fraction computed from a length: take a tensor",
    ),
    "a buffer that changes": (_Counter(), "it changes a buffer or an input: return what is new instead"),
    "a result that is no tensor": (Of(lambda m, x: (x * 2, None)), "a result is no tensor"),
}


@pytest.mark.parametrize("case", MODULES)
def test_what_cannot_be_exported(case):
    module, message = MODULES[case]
    with pytest.raises(UserError, match=message) as refusal:
        capture(module, {"x": torch.randn(5, WIDTH)}, SEQ, LENGTHS)
    assert "\n" not in str(refusal.value)


def test_control_flow_is_refused():
    class Chosen(nn.Module):
        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))

    with pytest.raises(UserError, match=r"operator cond.*it has a graph of its own: straight code"):
        capture(Chosen(), {"x": torch.randn(4, 8)})
