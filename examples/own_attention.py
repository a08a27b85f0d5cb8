"""An attention of one's own: normalised queries and keys, half of each head rotated, a window of 24 keys, a cache.

Qwen3 normalises queries and keys, Phi rotates a part of a head, Mistral looks at a window: together nobody has them,
and nothing in the compiler knows this layer. The keys and values of earlier tokens come in as `past_k` and `past_v` and
go out longer: the machine keeps such state in its memory channels.

    alula verify examples/own_attention.py:WindowedLayer --length seq=1,37 --length cache=0,13
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, ROTATED, WINDOW = 64, 4, 2, 24, 12, 24


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The first ROTATED channels of every head turned by the angles of their positions."""
    turned, rest = x[..., :ROTATED], x[..., ROTATED:]
    low, high = turned.chunk(2, -1)
    return torch.cat((turned * cos + torch.cat((-high, low), -1) * sin, rest), -1)


class WindowedLayer(nn.Module):
    """float[seq, HIDDEN], with the keys and values of `cache` earlier tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(HIDDEN, eps=1e-6)
        self.qkv = nn.Linear(HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD_DIM, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(HEAD_DIM, eps=1e-6), nn.RMSNorm(HEAD_DIM, eps=1e-6)
        self.out = nn.Linear(HEADS * HEAD_DIM, HIDDEN, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, past_k: Tensor, past_v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = x.shape[0]
        widths = [HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM]
        q, k, v = (part.view(n, -1, HEAD_DIM) for part in self.qkv(self.norm(x)).split(widths, -1))
        q, k = rotate(self.q_norm(q).transpose(0, 1), cos, sin), rotate(self.k_norm(k).transpose(0, 1), cos, sin)
        k, v = torch.cat((past_k, k), 1), torch.cat((past_v, v.transpose(0, 1)), 1)
        ones = torch.ones(n, k.shape[1], dtype=torch.bool)
        behind = k.shape[1] - n
        seen = ones.tril(behind) & ~ones.tril(behind - WINDOW)
        heads = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
        return x + self.out(heads.transpose(0, 1).reshape(n, -1)), k, v


def inputs() -> dict[str, Tensor]:
    """Example tensors, by the names of `forward`'s parameters."""
    angles = torch.arange(5, 13)[:, None] * 10.0 ** -torch.arange(ROTATED // 2)
    table = torch.cat((angles, angles), -1)
    past = 0.3 * torch.randn(2, KV_HEADS, 5, HEAD_DIM)
    return {"x": torch.randn(8, HIDDEN), "cos": table.cos(), "sin": table.sin(), "past_k": past[0], "past_v": past[1]}


dynamic = {"x": {0: "seq"}, "cos": {0: "seq"}, "sin": {0: "seq"}, "past_k": {1: "cache"}, "past_v": {1: "cache"}}
lengths = {"seq": (1, 64), "cache": (0, 64)}
