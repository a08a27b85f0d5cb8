"""The language side of the float reference: a Llama-family decoder with an explicit key and value cache.

There is no batch dimension; see `ref_model.modules`. Sources: Touvron et al. 2023 (LLaMA), Su et al. 2021 (RoPE).
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .config import RopeScaling, TextConfig

KvCache = list[tuple[Tensor, Tensor]]
"""One (k, v) pair a layer, each float[kv_heads, cache, head_dim]; lengths may differ between layers."""


def frequencies(config: TextConfig, device: torch.device | None = None) -> Tensor:
    """float32[head_dim / 2] rotary frequencies before any scaling, radians a position."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    return 1.0 / config.rope_theta**exponents


def scaled_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    wavelengths = 2 * math.pi / frequencies
    blend = (scaling.original_context / wavelengths - scaling.low) / (scaling.high - scaling.low)
    blend = blend.clamp(0, 1)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies


def rope_tables(config: TextConfig, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each float32[seq, head_dim], of the rotary angles at `position_ids: int64[seq]`.

    Columns i and i + head_dim/2 are equal, because the half-split layout rotates that pair by one angle.
    """
    found = frequencies(config, position_ids.device)
    if config.rope_scaling is not None:
        found = scaled_frequencies(found, config.rope_scaling)
    if config.rope_factors:
        found = found / torch.tensor(config.rope_factors, dtype=torch.float32, device=found.device)
    angles = position_ids.to(torch.float32)[:, None] * found[None, :]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + head_dim/2) of `x: float[heads, seq, head_dim]` by tables of `rope_tables`."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


def paired_rows(heads: int, head_dim: int) -> np.ndarray:
    """Row order that puts rotation pair (i, i + head_dim/2) at rows 2i, 2i+1 of every head."""
    order = np.arange(head_dim).reshape(2, head_dim // 2).T.reshape(-1)
    return (np.arange(heads)[:, None] * head_dim + order).reshape(-1)


def causal_mask(n_query: int, n_key: int, device: torch.device | None = None) -> Tensor:
    """bool[n_query, n_key], True where a query may look: the last query sees every key (lower-right alignment)."""
    return torch.ones(n_query, n_key, dtype=torch.bool, device=device).tril(n_key - n_query)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class LlamaAttention(nn.Module):
    """Grouped-query attention with half-split RoPE and an explicit key and value cache; see `LlamaDecoderLayer`."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden, config.q_width, config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden, config.kv_width, config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden, config.kv_width, config.qkv_bias)
        self.o_proj = nn.Linear(config.q_width, config.hidden, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past_k: Tensor, past_v: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        n_query = x.shape[0]
        q, k, v = (
            projection(x).view(n_query, -1, self.head_dim).transpose(0, 1)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        k = torch.cat((past_k, apply_rope(k, cos, sin)), dim=1)
        v = torch.cat((past_v, v), dim=1)
        if mask is None:
            mask = causal_mask(n_query, k.shape[1], x.device)
        heads = functional.scaled_dot_product_attention(apply_rope(q, cos, sin), k, v, attn_mask=mask, enable_gqa=True)
        return self.o_proj(heads.transpose(0, 1).reshape(n_query, -1)), k, v


class LlamaMlp(nn.Module):
    """down(silu(gate(x)) * up(x)), float[seq, hidden] -> float[seq, hidden]."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden, config.ffn, bias=False)
        self.up_proj = nn.Linear(config.hidden, config.ffn, bias=False)
        self.down_proj = nn.Linear(config.ffn, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaDecoderLayer(nn.Module):
    """One decoder layer.

    x: float[seq, hidden]; cos, sin: float[seq, head_dim] of `rope_tables`; past_k, past_v: float[kv_heads, cache,
    head_dim], keys already rotated, cache may be 0; mask: bool[seq, cache + seq], True where a query may look, None for
    causal. Returns x: float[seq, hidden] and the grown k, v: float[kv_heads, cache + seq, head_dim].
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden, config.rms_eps)
        self.self_attn = LlamaAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden, config.rms_eps)
        self.mlp = LlamaMlp(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past_k: Tensor, past_v: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        attention, k, v = self.self_attn(self.input_layernorm(x), cos, sin, past_k, past_v, mask)
        x = x + attention
        return x + self.mlp(self.post_attention_layernorm(x)), k, v


class LlamaModel(nn.Module):
    """Embedding table, decoder layers and final norm.

    `forward(x: float[seq, hidden], position_ids: int64[seq], cache, mask)` takes embeddings, since LLaVA replaces some,
    and returns (normalised states float[seq, hidden], grown cache).
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab, config.hidden)
        self.layers = nn.ModuleList(LlamaDecoderLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.rms_eps)

    def empty_cache(self) -> KvCache:
        """A cache of length 0 for every layer."""
        empty = self.norm.weight.new_empty(self.config.kv_heads, 0, self.config.head_dim)
        return [(empty, empty)] * self.config.layers

    def forward(
        self, x: Tensor, position_ids: Tensor, cache: KvCache, mask: Tensor | None = None
    ) -> tuple[Tensor, KvCache]:
        cos, sin = (table.to(x.dtype) for table in rope_tables(self.config, position_ids))
        grown: KvCache = []
        for layer, (past_k, past_v) in zip(self.layers, cache, strict=True):
            x, k, v = layer(x, cos, sin, past_k, past_v, mask)
            grown.append((k, v))
        return self.norm(x), grown
