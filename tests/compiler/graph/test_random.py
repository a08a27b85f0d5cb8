"""Random chains of operators: each is captured, which is to say that every rewrite left its results as they were."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.graph import capture
from compiler.graph.ir import DEVICE
from tests.compiler.graph.small import HEADS, LENGTHS, SEQ, SIZE, WIDTH, heads

CHAINS = 60


class Chain(nn.Module):
    """A few operators, each of the last values."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.steps = [(draw.choice(STEPS), draw.randrange(3), draw.randrange(3)) for _ in range(draw.randint(2, 7))]
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm, self.rms = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH, 1e-5)
        self.w = nn.Parameter(torch.rand(WIDTH))
        self.register_buffer("cos", torch.randn(64, SIZE))
        self.register_buffer("sin", torch.randn(64, SIZE))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values = [x, self.two(x), x * self.w]
        for step, first, second in self.steps:
            values.append(step(self, values[-1 - first], values[-1 - second]))
        return values[-1], values[-2]


def joined(x: Tensor) -> Tensor:
    return x.transpose(0, 1).reshape(-1, WIDTH)


def attended(m: Chain, a: Tensor, b: Tensor) -> Tensor:
    q, k = heads(a), heads(b)
    n = a.shape[0]
    scores = torch.tanh(q @ k.mT / SIZE) * 5
    scores = scores.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf)
    return joined(torch.softmax(scores, -1) @ k)


def turned(m: Chain, a: Tensor, b: Tensor) -> Tensor:
    x, cos, sin = heads(a), m.cos[: a.shape[0]], m.sin[: a.shape[0]]
    low, high = x.chunk(2, -1)
    return joined(x * cos + torch.cat((-high, low), -1) * sin)


def written(m: Chain, a: Tensor, b: Tensor) -> Tensor:
    y = a.clone()
    y[:, :2] = b[:, 2:4]
    y += 1
    return y


def routed(m: Chain, a: Tensor, b: Tensor) -> Tensor:
    w, i = torch.softmax(a, -1).topk(2, -1)
    return b * (w * (i == 3)).sum(-1, keepdim=True)


STEPS: tuple[Callable[[Chain, Tensor, Tensor], Tensor], ...] = (
    lambda m, a, b: m.one(a),
    lambda m, a, b: a + b,
    lambda m, a, b: a * b,
    lambda m, a, b: a - b / 2,
    lambda m, a, b: 1 - m.w * a,
    lambda m, a, b: functional.silu(a) * b,
    lambda m, a, b: a * 0.5 * (1 + torch.erf(a / 2**0.5)),
    lambda m, a, b: m.norm(a),
    lambda m, a, b: m.rms(a) * m.w,
    lambda m, a, b: m.w * a * torch.rsqrt(a.pow(2).mean(-1, keepdim=True) + 1e-5),
    lambda m, a, b: torch.softmax(a, -1),
    lambda m, a, b: torch.softmax(a, 0),
    lambda m, a, b: a.view(-1, HEADS, SIZE).transpose(1, 2).reshape(-1, WIDTH),
    lambda m, a, b: torch.cat((a[:, SIZE:], -b[:, :SIZE]), -1),
    lambda m, a, b: joined(functional.scaled_dot_product_attention(heads(a), heads(b), heads(a), is_causal=True)),
    lambda m, a, b: a.mean(0, keepdim=True) + b,
    lambda m, a, b: a * b.mean(-1, keepdim=True),
    lambda m, a, b: torch.einsum("nc,dc->nd", a, m.two.weight),
    lambda m, a, b: a.clamp(-1, 1),
    lambda m, a, b: torch.where(torch.arange(a.shape[0])[:, None] > 1, a, b),
    lambda m, a, b: torch.stack((a[:, 0::2], b[:, 1::2]), -1).flatten(-2),
    lambda m, a, b: a[:, None].expand(-1, 2, -1).sum(1),
    lambda m, a, b: a.chunk(2, -1)[1].repeat(1, 2),
    lambda m, a, b: functional.pad(a.roll(3, -1), (1, 1))[:, 1:-1],
    lambda m, a, b: functional.glu(torch.cat((a, b), -1), -1),
    lambda m, a, b: torch.maximum(a, b),
    lambda m, a, b: a.t().contiguous().t(),
    attended,
    turned,
    written,
    routed,
)


@pytest.mark.parametrize("seed", range(CHAINS))
def test_a_chain(seed):
    torch.manual_seed(seed)
    graph = capture(Chain(seed), {"x": torch.randn(5, WIDTH)}, *((SEQ, LENGTHS) if seed % 2 else ({}, {})))
    assert all(node.op in DEVICE and node.target is None for node in graph.device())
