"""Attention of your own: normalised queries and keys, a sliding window, half of each head rotated, and a cache.

Run it for 5 new tokens behind 3 old ones, then for 37 behind 20, with the same program:

    alula verify examples/own_attention.py:Attention
    alula verify examples/own_attention.py:Attention --length seq=37 --length cache=20

Outputs `k` and `v` are inputs with rows appended. Such an output is state: it stays in the machine between two runs.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 64, 4, 2, 16
ROTARY = 8
"""Channels of a head that carry the position: the first ones."""
WINDOW = 16
"""Keys that a query sees, its own included."""


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first `ROTARY` channels by the tables' angles, in pairs (i, i + ROTARY / 2); the others stay."""
    turning, still = x[..., :ROTARY], x[..., ROTARY:]
    low, high = turning.chunk(2, dim=-1)
    turned = turning * cos + torch.cat((-high, low), dim=-1) * sin
    return torch.cat((turned, still), dim=-1)


class Attention(nn.Module):
    """New tokens look at themselves and at the newest ones of the cache.

    x: float[seq, hidden]; cos, sin: float[seq, ROTARY]; past_k, past_v: float[kv_heads, cache, head_dim]. Returns
    float[seq, hidden], and keys and values float[kv_heads, cache + seq, head_dim].
    """

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HEADS * HEAD_DIM, bias=False)
        self.k_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM, bias=False)
        self.v_proj = nn.Linear(HIDDEN, KV_HEADS * HEAD_DIM, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD_DIM, HIDDEN, bias=False)
        self.q_norm, self.k_norm = nn.RMSNorm(HEAD_DIM, eps=1e-6), nn.RMSNorm(HEAD_DIM, eps=1e-6)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past_k: Tensor, past_v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        n = x.shape[0]
        q, k, v = (p(x).view(n, -1, HEAD_DIM).transpose(0, 1) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        k, v = torch.cat((past_k, k), dim=1), torch.cat((past_v, v), dim=1)
        n_keys = k.shape[1]
        causal = torch.ones(n, n_keys, dtype=torch.bool).tril(n_keys - n)
        window = causal.triu(n_keys - n - WINDOW + 1)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=window, enable_gqa=True)
        return self.o_proj(out.transpose(0, 1).reshape(n, -1)), k, v


def inputs(seq: int = 5, cache: int = 3) -> dict[str, Tensor]:
    """Example tensors: `seq` new tokens behind `cache` old ones."""
    random = torch.Generator().manual_seed(0)
    angles = torch.arange(cache, cache + seq)[:, None] * 10_000.0 ** (-torch.arange(0, ROTARY, 2) / ROTARY)
    angles = torch.cat((angles, angles), dim=-1)
    past_k, past_v = (0.3 * torch.randn(KV_HEADS, cache, HEAD_DIM, generator=random) for _ in range(2))
    x = torch.randn(seq, HIDDEN, generator=random)
    return {"x": x, "cos": angles.cos(), "sin": angles.sin(), "past_k": past_k, "past_v": past_v}


dynamic = {"x": {0: "seq"}, "cos": {0: "seq"}, "sin": {0: "seq"}, "past_k": {1: "cache"}, "past_v": {1: "cache"}}
lengths = {"seq": (1, 64), "cache": (0, 64)}
