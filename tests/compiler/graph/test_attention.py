"""Attention of torch and written out; masks of every shape; batches."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from compiler.graph import capture
from compiler.graph.ir import Graph
from hw.spec.errors import UserError
from tests.compiler.graph.small import HEADS, SIZE, OfMasked, OfThree, fixed, graph_of, only, operators, weight

LENGTHS = {"n": (1, 40), "m": (1, 40)}
sdpa = functional.scaled_dot_product_attention


def of_three(function, groups: int = HEADS, lead: tuple[int, ...] = (), lengths=LENGTHS, **tensors) -> Graph:
    """The graph of a function of queries of n rows and keys and values of m."""
    torch.manual_seed(0)
    inputs = {"q": torch.randn(*lead, HEADS, 5, SIZE)} | {x: torch.randn(*lead, groups, 7, SIZE) for x in "kv"}
    dynamic = {name: {1 + len(lead): "n" if name == "q" else "m"} for name in inputs}
    return capture(OfThree(function, **tensors), inputs, dynamic, lengths)


def of_masked(function, shape: tuple[int, ...], axes: dict[int, str], boolean: bool = False) -> Graph:
    torch.manual_seed(0)
    mask = torch.randn(shape)
    inputs = {"q": torch.randn(HEADS, 5, SIZE)} | {x: torch.randn(HEADS, 7, SIZE) for x in "kv"}
    inputs["mask"] = mask > -0.5 if boolean else mask
    dynamic = {"q": {1: "n"}, "k": {1: "m"}, "v": {1: "m"}, "mask": axes}
    return capture(OfMasked(function), inputs, dynamic, LENGTHS)


def softmax_of(scores: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(scores, -1, dtype=torch.float32).to(v.dtype) @ v


WRITTEN = {
    "product": lambda m, q, k, v: softmax_of(q @ k.mT / 4, v),
    "factors on both sides": lambda m, q, k, v: softmax_of((q / 2) @ (k * 0.5).mT, v),
    "einsum": lambda m, q, k, v: torch.einsum(
        "hnm,hmd->hnd", torch.einsum("hnd,hmd->hnm", q, k).mul(0.25).softmax(-1), v
    ),
    "einsum, heads in the middle": lambda m, q, k, v: torch.einsum(
        "hnm,mhd->nhd",
        (torch.einsum("nhd,mhd->hnm", q.transpose(0, 1), k.transpose(0, 1)) / 4).softmax(-1),
        v.transpose(0, 1),
    ),
    "bmm": lambda m, q, k, v: torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)) * 0.25, -1), v),
    "baddbmm": lambda m, q, k, v: torch.bmm(
        torch.softmax(torch.baddbmm(q[:, :, :1] * 0, q, k.mT, beta=0, alpha=0.25), -1), v
    ),
    "dropout": lambda m, q, k, v: functional.dropout(torch.softmax(q @ k.mT / 4, -1), 0.1, False) @ v,
    "reshaped": lambda m, q, k, v: torch.softmax((q @ k.mT / 4)[None], -1)[0] @ v,
}


@pytest.mark.parametrize("form", WRITTEN)
def test_written_out(form):
    graph = of_three(WRITTEN[form])
    assert operators(graph) == ["attention"]
    assert only(graph, "attention").arguments["scale"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    "repeated",
    [
        lambda x: x.repeat_interleave(2, 0),
        lambda x: x[:, None].expand(-1, 2, -1, -1).reshape(2 * x.shape[0], x.shape[1], SIZE),
        lambda x: x,
    ],
)
def test_groups_are_not_repeated(repeated):
    graph = of_three(lambda m, q, k, v: sdpa(q, repeated(k), repeated(v)), groups=1)
    node = only(graph, "attention")
    assert [graph.nodes[node.operand(name) or ""].shape[0] for name in "qkv"] == [2, 1, 1]


def test_a_cap_between_factors():
    graph = of_three(lambda m, q, k, v: torch.softmax(torch.tanh(q @ k.mT * 0.25 / 50) * 30, -1) @ v)
    arguments = only(graph, "attention").arguments
    assert arguments["softcap"] == 30 and arguments["scale"] == pytest.approx(0.25 / 50 * 30)


MASKS = {
    "bool": (lambda m, q, k, v, mask: sdpa(q, k, v, mask), (5, 7), {0: "n", 1: "m"}, True),
    "float": (lambda m, q, k, v, mask: sdpa(q, k, v, mask * 2), (5, 7), {0: "n", 1: "m"}, False),
    "with axes of 1": (lambda m, q, k, v, mask: sdpa(q, k, v, mask[0]), (1, 1, 5, 7), {2: "n", 3: "m"}, False),
    "of keys": (lambda m, q, k, v, mask: sdpa(q, k, v, mask), (7,), {0: "m"}, False),
    "of keys, bool": (lambda m, q, k, v, mask: sdpa(q, k, v, mask[None]), (7,), {0: "m"}, True),
    "where": (
        lambda m, q, k, v, mask: torch.softmax(torch.where(mask, q @ k.mT, -torch.inf), -1) @ v,
        (5, 7),
        {0: "n", 1: "m"},
        True,
    ),
    "where it is hidden": (
        lambda m, q, k, v, mask: torch.softmax(torch.where(~mask, -torch.inf, q @ k.mT), -1) @ v,
        (5, 7),
        {0: "n", 1: "m"},
        True,
    ),
    "two": (
        lambda m, q, k, v, mask: torch.softmax((q @ k.mT + mask).masked_fill(mask < -1, -torch.inf), -1) @ v,
        (5, 7),
        {0: "n", 1: "m"},
        False,
    ),
    "scaled with the scores": (
        lambda m, q, k, v, mask: torch.softmax((mask + q @ k.mT) * 0.25, -1) @ v,
        (5, 7),
        {0: "n", 1: "m"},
        False,
    ),
    "numbers for a float mask": (
        lambda m, q, k, v, mask: torch.softmax(q @ k.mT + (1 - mask) * -5.0, -1) @ v,
        (5, 7),
        {0: "n", 1: "m"},
        False,
    ),
}


@pytest.mark.parametrize("form", MASKS)
def test_masks_of_the_host(form):
    graph = of_masked(*MASKS[form])
    assert operators(graph) == ["attention"]
    mask = graph.nodes[only(graph, "attention").operand("mask") or ""]
    assert (mask.kind, [str(d) for d in mask.shape]) == ("host", ["n", "m"])
    assert graph.nodes["mask"].kind == "host"


def test_a_mask_of_heads():
    graph = of_masked(lambda m, q, k, v, mask: sdpa(q, k, v, mask), (HEADS, 5, 7), {1: "n", 2: "m"})
    assert graph.nodes[only(graph, "attention").arguments["mask"].name].shape == (HEADS, "n", "m")
    slopes = of_three(lambda m, q, k, v: sdpa(q, k, v, m.a[:, None, None] * torch.arange(k.shape[1])), a=torch.randn(2))
    assert operators(slopes) == ["attention"]


def causal(n: int, m: int) -> Tensor:
    return torch.ones(n, m, dtype=torch.bool).tril(m - n)


@pytest.mark.parametrize(
    ("function", "recognised"),
    [
        (lambda m, q, k, v: sdpa(q, k, v, causal(q.shape[1], k.shape[1])), True),
        (lambda m, q, k, v: sdpa(q, k, v, torch.zeros(q.shape[1], k.shape[1]).masked_fill(
            ~causal(q.shape[1], k.shape[1]), -1e9)), True),
        (lambda m, q, k, v: sdpa(q, k, v, is_causal=True), False),
        (lambda m, q, k, v: sdpa(q, k, v, causal(q.shape[1], k.shape[1]) * m.b), False),
    ],
)  # fmt: skip
def test_causal_is_lower_right(function, recognised):
    """torch's is_causal begins at the upper left; a mask times a parameter may be another one tomorrow."""
    graph = of_three(function, lengths={"n": (1, 40), "m": (40, 80)}, b=weight(1))
    arguments = only(graph, "attention").arguments
    assert bool(arguments.get("causal")) == recognised and ("mask" in arguments) != recognised


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"attn_mask": torch.randn(5, 5)}])
def test_a_batch_is_one_attention_with_a_mask_of_blocks(options):
    def function(m, x):
        x = x.view(4, 5, HEADS, SIZE).transpose(1, 2)
        return sdpa(x, x, x, **options)

    graph = fixed(function, 20, HEADS * SIZE)
    assert operators(graph) == ["attention"]
    assert graph.nodes[only(graph, "attention").operand("mask") or ""].shape == (20, 20)


def test_a_batch_of_symbolic_lengths():
    graph = of_three(lambda m, q, k, v: sdpa(q, k, v), lead=(3,))
    assert [str(d) for d in only(graph, "attention").shape] == [str(HEADS), "3 * (n)", str(SIZE)]


REFUSED = {
    "a mask of activations": lambda m, q, k, v: sdpa(q, k, v, (q[0] * 2).sum(-1, keepdim=True) + k[0, :, 0]),
    "a mask that hides little": lambda m, q, k, v: torch.softmax((q @ k.mT).masked_fill(m.b > 0, -5.0), -1) @ v,
    "no softmax": lambda m, q, k, v: (q @ k.mT) @ v,
    "weights as a result": lambda m, q, k, v: (torch.softmax(q @ k.mT, -1), torch.softmax(q @ k.mT, -1) @ v),
    "dropout": lambda m, q, k, v: sdpa(q, k, v, dropout_p=1.0),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_products_are_refused(case):
    message = r"module OfThree: operator \w+ with result .*(depends on activations|has no rule): accepted is"
    with pytest.raises(UserError, match=message):
        of_three(REFUSED[case], b=torch.ones(1))


def test_two_layers_share_their_mask_and_tables():
    def layer(x, mask):
        x = x.view(x.shape[0], HEADS, SIZE).transpose(0, 1)
        scores = (x @ x.mT / math.sqrt(SIZE)).masked_fill(~mask, -torch.inf)
        return (torch.softmax(scores, -1) @ x).transpose(0, 1).flatten(1)

    def two(m, x):
        mask = causal(x.shape[0], x.shape[0])
        return layer(layer(x, mask), mask)

    graph = graph_of(two)
    assert operators(graph) == ["attention"] * 2
    assert all(node.arguments.get("causal") for node in graph.device() if node.op == "attention")
