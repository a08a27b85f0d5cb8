"""Causal attention with a cache, and its published variants."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ref_model.modules import RMSNorm, apply_rope, causal_mask

HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 64, 4, 2, 16


@dataclass(frozen=True)
class AttentionOptions:
    """What published decoders do differently; the defaults are Llama's.

    interleaved: the channels 2i and 2i + 1 turn together, instead of i and i + width / 2. rotary_width: so many
    channels of a head turn, the first ones, and the tables have as many columns; 0 means all. table_factor: a number
    that both tables are multiplied with. window: keys that a query sees, itself included; 0 means all. prefix: keys
    at the front that every query sees, later ones included. soft_cap: scores stay between plus and minus this; 0
    means no cap. scale: of the scores; 0 means 1 / sqrt(head_dim). head_gate: a learned number that each head's
    result is multiplied with. slopes: scores fall with the distance of query and key, for every head by another slope.
    """

    head_dim: int = HEAD_DIM
    qkv_bias: bool = False
    output_bias: bool = False
    fused_qkv: bool = False
    qk_norm: bool = False
    interleaved: bool = False
    rotary_width: int = 0
    table_factor: float = 1.0
    window: int = 0
    prefix: int = 0
    soft_cap: float = 0.0
    scale: float = 0.0
    head_gate: bool = False
    slopes: bool = False


class Projections(nn.Module):
    """Queries, keys and values from three matrices, or from one.

    float[seq, hidden] -> float[heads, seq, head_dim], and twice float[kv_heads, seq, head_dim].
    """

    def __init__(self, options: AttentionOptions) -> None:
        super().__init__()
        self.head_dim = options.head_dim
        self.widths = [heads * options.head_dim for heads in (HEADS, KV_HEADS, KV_HEADS)]
        self.fused = options.fused_qkv
        if self.fused:
            self.qkv_proj = nn.Linear(HIDDEN, sum(self.widths), options.qkv_bias)
        else:
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(HIDDEN, w, options.qkv_bias) for w in self.widths)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv_proj(x).split(self.widths, dim=-1) if self.fused else self._apart(x)
        return self._heads(q), self._heads(k), self._heads(v)

    def _apart(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self.head_dim).transpose(0, 1)


class Attention(nn.Module):
    """Attention of new tokens to themselves and to a cache.

    x: float[seq, hidden]; cos, sin: float[seq, rotary width], absent where nothing turns; past_k, past_v:
    float[kv_heads, cache, head_dim]. Returns float[seq, hidden] and the grown keys and values,
    float[kv_heads, cache + seq, head_dim].
    """

    def __init__(self, options: AttentionOptions) -> None:
        super().__init__()
        self.options = options
        self.projections = Projections(options)
        self.o_proj = nn.Linear(HEADS * options.head_dim, HIDDEN, options.output_bias)
        if options.qk_norm:
            self.q_norm = RMSNorm(options.head_dim, eps=1e-6)
            self.k_norm = RMSNorm(options.head_dim, eps=1e-6)
        if options.head_gate:
            self.gate = nn.Parameter(torch.ones(HEADS, 1, 1))

    def forward(
        self, x: Tensor, past_k: Tensor, past_v: Tensor, cos: Tensor | None = None, sin: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.projections(x)
        if self.options.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if cos is not None and sin is not None:
            q, k = rotated(q, cos, sin, self.options), rotated(k, cos, sin, self.options)
        k, v = torch.cat((past_k, k), dim=1), torch.cat((past_v, v), dim=1)
        heads = attended(q, k, v, mask(x.shape[0], k.shape[1], self.options), self.options)
        if self.options.head_gate:
            heads = heads * self.gate
        return self.o_proj(heads.transpose(0, 1).reshape(x.shape[0], -1)), k, v


def rotated(x: Tensor, cos: Tensor, sin: Tensor, options: AttentionOptions) -> Tensor:
    """Rotary position embedding of x: float[heads, seq, head_dim]."""
    width = cos.shape[1]
    if options.table_factor != 1.0:
        cos, sin = cos * options.table_factor, sin * options.table_factor
    if options.interleaved:
        return _rotated_neighbours(x, cos[:, : width // 2], sin[:, : width // 2])
    if width == options.head_dim:
        return apply_rope(x, cos, sin)
    return torch.cat((apply_rope(x[..., :width], cos, sin), x[..., width:]), dim=-1)


def _rotated_neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def mask(n_query: int, n_key: int, options: AttentionOptions) -> Tensor:
    """bool[n_query, n_key], True where a query may look; the last query is the last key's token. With slopes
    float[HEADS, n_query, n_key], added to the scores."""
    visible = causal_mask(n_query, n_key)
    if options.window:
        too_old = torch.ones(n_query, n_key, dtype=torch.bool).tril(n_key - n_query - options.window)
        visible = visible & ~too_old
    if options.prefix:
        visible = visible | (torch.arange(n_key) < options.prefix)[None]
    if options.slopes:
        distance = torch.arange(n_key)[None] - torch.arange(n_key - n_query, n_key)[:, None]
        added = 0.5 ** torch.arange(1, HEADS + 1)[:, None, None] * distance
        return added.masked_fill(~visible, -torch.inf)
    return visible


def attended(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, options: AttentionOptions) -> Tensor:
    """float[heads, seq, head_dim]: values weighted by the softmax of the scores."""
    if options.soft_cap:
        return _attended_with_cap(q, k, v, visible, options.soft_cap)
    scale = options.scale or None
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True, scale=scale)


def _attended_with_cap(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, cap: float) -> Tensor:
    """In single operations, because torch's fused attention has no cap."""
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, dim=0) for x in (k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    scores = torch.tanh(scores / cap) * cap
    return torch.softmax(scores.masked_fill(~visible, float("-inf")), dim=-1) @ v
