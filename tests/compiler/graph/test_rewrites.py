"""The graph level: what torch's many forms become, and that a wrong rewrite is caught."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.graph import capture
from compiler.graph.edit import Editor
from compiler.graph.ir import Ref
from hw.spec.errors import InternalError, UserError
from tests.compiler.graph.small import (
    LENGTHS,
    SIZE,
    WIDTH,
    Of,
    finished,
    functions,
    graph_of,
    heads,
    linear,
    operators,
)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (functional.silu, "silu"),
        (lambda x: x * torch.sigmoid(x), "silu"),
        (lambda x: torch.sigmoid(x) * x, "silu"),
        (functional.gelu, "gelu"),
        (lambda x: functional.gelu(x, approximate="tanh"), "gelu_tanh"),
        (lambda x: x * torch.sigmoid(1.702 * x), "quick_gelu"),
        (torch.relu, "relu"),
        (lambda x: x**2, "square"),
        (lambda x: x * x, "square"),
        (torch.tanh, "tanh"),
    ],
)
def test_activations(function, name):
    assert functions(graph_of(lambda m, x: function(m.inner(x)), inner=linear())) == [name]


def test_a_sigmoid_of_another_factor_is_no_quick_gelu():
    graph = graph_of(lambda m, x: x * torch.sigmoid(1.7 * x))
    assert operators(graph) == ["scale", "activation", "mul"]


class WrittenOut(nn.Module):
    """RMSNorm as transformers writes it."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.weight, self.offset = nn.Parameter(torch.rand(WIDTH) + 0.5), offset

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
        return (self.offset + self.weight) * wide.to(x.dtype)


@pytest.mark.parametrize("norm", [nn.RMSNorm(WIDTH, 1e-5), nn.LayerNorm(WIDTH), WrittenOut(), WrittenOut(1.0)])
def test_norms(norm):
    graph = graph_of(lambda m, x: m.norm(x), norm=norm)
    assert operators(graph) == ["norm"] and "weight" in next(graph.device()).arguments


def test_fused_linears_are_split():
    graph = graph_of(lambda m, x: torch.mul(*m.both(x).chunk(2, -1)), both=linear(WIDTH, 2 * WIDTH))
    assert operators(graph) == ["linear", "linear", "mul"]


def attention_by_hand(m, x: Tensor, cap: float | None = None) -> Tensor:
    q, k, v = (heads(layer(x)) for layer in (m.q, m.k, m.v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(SIZE)
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    n = x.shape[0]
    scores = scores.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), float("-inf"))
    return (torch.softmax(scores, -1) @ v).transpose(0, 1).reshape(n, -1)


def attention_of_torch(m, x: Tensor, **options) -> Tensor:
    q, k, v = (heads(layer(x)) for layer in (m.q, m.k, m.v))
    return functional.scaled_dot_product_attention(q, k, v, **options).transpose(0, 1).reshape(x.shape[0], -1)


def three() -> dict[str, nn.Module]:
    return {name: linear(bias=False) for name in "qkv"}


@pytest.mark.parametrize("cap", [None, 5.0])
def test_attention_written_out(cap):
    graph = graph_of(lambda m, x: attention_by_hand(m, x, cap), **three())
    (node,) = (n for n in graph.device() if n.op == "attention")
    assert node.arguments["causal"] and "mask" not in node.arguments
    assert node.arguments["scale"] == pytest.approx(1 / math.sqrt(SIZE))
    assert node.arguments.get("softcap") == (None if cap is None else pytest.approx(cap))


def test_attention_of_torch():
    (node,) = (n for n in graph_of(attention_of_torch, **three()).device() if n.op == "attention")
    assert not node.arguments.get("causal") and "mask" not in node.arguments
    causal = graph_of(lambda m, x: attention_of_torch(m, x, is_causal=True, scale=0.3), **three())
    (node,) = (n for n in causal.device() if n.op == "attention")
    assert node.arguments["causal"] and node.arguments["scale"] == 0.3


@pytest.mark.parametrize("window", [3, 39])
def test_a_window_is_no_causal_mask(window):
    """Not even a window that only the largest lengths show."""

    def windowed(m, x: Tensor) -> Tensor:
        ones = torch.ones(x.shape[0], x.shape[0], dtype=torch.bool)
        return attention_of_torch(m, x, attn_mask=ones.tril() & ~ones.tril(-window))

    (node,) = (n for n in graph_of(windowed, **three()).device() if n.op == "attention")
    assert "mask" in node.arguments and not node.arguments.get("causal")


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary(interleaved):
    class Rotary(nn.Module):
        def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            x = heads(x)
            if interleaved:
                even, odd = x[..., 0::2], x[..., 1::2]
                c, s = cos[..., : SIZE // 2], sin[..., : SIZE // 2]
                return torch.stack((even * c - odd * s, even * s + odd * c), -1).flatten(-2)
            low, high = x.chunk(2, -1)
            return x * cos + torch.cat((-high, low), -1) * sin

    inputs = {"x": torch.randn(5, WIDTH), "cos": torch.randn(5, SIZE), "sin": torch.randn(5, SIZE)}
    graph = capture(Rotary(), inputs, {name: {0: "seq"} for name in inputs}, LENGTHS)
    (node,) = (n for n in graph.device() if n.op == "rope")
    assert node.arguments["style"] == ("interleaved" if interleaved else "half")
    assert [graph.nodes[name].kind for name in inputs] == ["device", "host", "host"]


def test_swapped_tables_are_no_mistake_of_ours():
    """cos and sin exchanged by the user are exchanged in the graph."""

    class Swapped(nn.Module):
        def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            x = heads(x)
            low, high = x.chunk(2, -1)
            return x * sin + torch.cat((-high, low), -1) * cos

    inputs = {"x": torch.randn(5, WIDTH), "cos": torch.randn(5, SIZE), "sin": torch.randn(5, SIZE)}
    (node,) = (n for n in capture(Swapped(), inputs).device() if n.op == "rope")
    assert (node.operand("cos"), node.operand("sin")) == ("sin", "cos")


@pytest.mark.parametrize(
    ("function", "accepted"),
    [
        (lambda m, x: torch.log_softmax(x, -1), False),
        (lambda m, x: torch.cumsum(x, 0), False),
        (lambda m, x: x.exp(), False),
        (lambda m, x: functional.dropout(x, 0.5, training=True), False),
        (lambda m, x: functional.dropout(x, 0.5, training=False) * 2, True),
    ],
)
def test_what_is_not_understood_is_refused(function, accepted):
    if accepted:
        assert operators(graph_of(function)) == ["scale"]
        return
    with pytest.raises((UserError, InternalError)) as refusal:
        graph_of(function)
    assert "\n" not in str(refusal.value)


FAULTS = {
    "another epsilon": lambda e: _change(e, "norm", epsilon=1e-3),
    "a bias that is lost": lambda e: _change(e, "linear", bias=None),
    "another function": lambda e: _change(e, "activation", function="gelu"),
    "another scale": lambda e: _change(e, "attention", scale=0.2),
    "no mask": lambda e: _change(e, "attention", causal=False),
    "other weights": lambda e: _change(e, "linear", weight=Ref("p_k_weight")),
}


def _change(editor: Editor, op: str, **arguments) -> None:
    node = next(n for n in editor.device() if n.op == op and n.target is None)
    node.arguments = {name: value for name, value in (node.arguments | arguments).items() if value is not None}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_rewrite_is_caught(fault):
    """Each fault is put into the finished graph, as a rewrite would."""

    def forward(m, x: Tensor) -> Tensor:
        return functional.silu(m.out(attention_of_torch(m, m.norm(x), is_causal=True)))

    torch.manual_seed(0)
    layers = three() | {"norm": nn.RMSNorm(WIDTH, 1e-5), "out": linear(), "q": linear(bias=True)}
    checker, editor = finished(Of(forward, **layers))
    FAULTS[fault](editor)
    with pytest.raises(InternalError, match="after a planted fault: result"):
        checker.check("a planted fault")
