"""Decoder layers: see `modules`."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.parts import Part, decoder_inputs
from ref_model.decoder import RMSNorm, apply_rope, causal_mask
from ref_model.vision import quick_gelu
from tests.compiler.modules import (
    FFN,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    Case,
    Rows,
)


class Attention(nn.Module):
    """Grouped attention over a cache; subclasses change one step of it."""

    def __init__(self, head_dim: int = HEAD_DIM, qkv_bias: bool = False, o_bias: bool = False) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = nn.Linear(HIDDEN, HEADS * head_dim, qkv_bias)
        self.k_proj = nn.Linear(HIDDEN, KV_HEADS * head_dim, qkv_bias)
        self.v_proj = nn.Linear(HIDDEN, KV_HEADS * head_dim, qkv_bias)
        self.o_proj = nn.Linear(HEADS * head_dim, HIDDEN, o_bias)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return apply_rope(x, cos, sin)

    def norm_heads(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return q, k

    def mask(self, seq: int, keys: int) -> Tensor | None:
        return causal_mask(seq, keys, self.o_proj.weight.device)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

    def forward(self, x, cos, sin, past_k, past_v):
        seq = x.shape[0]
        q, k, v = (each.view(seq, -1, self.head_dim).transpose(0, 1) for each in self.project(x))
        q, k = self.norm_heads(q, k)
        k = torch.cat((past_k, self.rotate(k, cos, sin)), dim=1)
        v = torch.cat((past_v, v), dim=1)
        heads = self.attend(self.rotate(q, cos, sin), k, v, self.mask(seq, k.shape[1]))
        return self.o_proj(heads.transpose(0, 1).reshape(seq, -1)), k, v


class HeadNorms(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.q_norm, self.k_norm = RMSNorm(HEAD_DIM, 1e-6), RMSNorm(HEAD_DIM, 1e-6)

    def norm_heads(self, q, k):
        return self.q_norm(q), self.k_norm(k)


class OneProjection(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD_DIM, bias=False)

    def project(self, x):
        return self.qkv(x).split([HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM], -1)


class Window(Attention):
    def mask(self, seq, keys):
        old = torch.ones(seq, keys, dtype=torch.bool, device=self.o_proj.weight.device).tril(keys - seq - 4)
        return super().mask(seq, keys) & ~old


class Prefix(Attention):
    def mask(self, seq, keys):
        return super().mask(seq, keys) | (torch.arange(keys, device=self.o_proj.weight.device) < 3)[None]


class StrictMask(Attention):
    """A row does not see itself."""

    def mask(self, seq, keys):
        return torch.ones(seq, keys, dtype=torch.bool, device=self.o_proj.weight.device).tril(keys - seq - 1)


class FirstKeys(Attention):
    """Row i sees the first i keys of the cache: upper-left alignment."""

    def mask(self, seq, keys):
        return torch.ones(seq, keys, dtype=torch.bool, device=self.o_proj.weight.device).tril()


class Bidirectional(Attention):
    def mask(self, seq, keys):
        return None


class SoftCap(Attention):
    def attend(self, q, k, v, mask):
        k, v = (each.repeat_interleave(HEADS // KV_HEADS, 0) for each in (k, v))
        scores = torch.tanh(q @ k.transpose(1, 2) / math.sqrt(HEAD_DIM) / 50.0) * 50.0
        return torch.softmax(scores.masked_fill(~mask, -math.inf), -1) @ v


class Options(Attention):
    """Further arguments of scaled_dot_product_attention."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.options = options

    def attend(self, q, k, v, mask):
        return functional.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True, **self.options)


class HeadGate(Attention):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.ones(HEADS, 1, 1))

    def attend(self, q, k, v, mask):
        return super().attend(q, k, v, mask) * self.gate


class ChangedTables(Attention):
    """change: what becomes of (cos, sin) before they rotate."""

    def __init__(self, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.change = change

    def rotate(self, x, cos, sin):
        return apply_rope(x, *self.change(cos, sin))


class PartialRotation(Attention):
    def rotate(self, x, cos, sin):
        first, rest = x[..., :8], x[..., 8:]
        return torch.cat((apply_rope(first, cos[..., :8], sin[..., :8]), rest), -1)


class Interleaved(Attention):
    def rotate(self, x, cos, sin):
        even, odd = x[..., 0::2], x[..., 1::2]
        c, s = cos[..., : HEAD_DIM // 2], sin[..., : HEAD_DIM // 2]
        return torch.stack((even * c - odd * s, even * s + odd * c), -1).flatten(-2)


class Turned(Attention):
    """Rotates the other way: (high, -low)."""

    def rotate(self, x, cos, sin):
        low, high = x.chunk(2, dim=-1)
        return x * cos + torch.cat((high, -low), dim=-1) * sin


class UnrotatedKeys(Attention):
    def forward(self, x, cos, sin, past_k, past_v):
        seq = x.shape[0]
        q, k, v = (each.view(seq, -1, self.head_dim).transpose(0, 1) for each in self.project(x))
        k, v = torch.cat((past_k, k), dim=1), torch.cat((past_v, v), dim=1)
        heads = self.attend(self.rotate(q, cos, sin), k, v, self.mask(seq, k.shape[1]))
        return self.o_proj(heads.transpose(0, 1).reshape(seq, -1)), k, v


class ExchangedCaches(Attention):
    """Keys behind past values, values behind past keys."""

    def forward(self, x, cos, sin, past_k, past_v):
        return super().forward(x, cos, sin, past_v, past_k)


class NewFirst(Attention):
    """New keys ahead of the past ones."""

    def forward(self, x, cos, sin, past_k, past_v):
        seq = x.shape[0]
        q, k, v = (each.view(seq, -1, self.head_dim).transpose(0, 1) for each in self.project(x))
        k, v = torch.cat((self.rotate(k, cos, sin), past_k), dim=1), torch.cat((v, past_v), dim=1)
        heads = self.attend(self.rotate(q, cos, sin), k, v, self.mask(seq, k.shape[1]))
        return self.o_proj(heads.transpose(0, 1).reshape(seq, -1)), k, v


class ValuesForKeys(Attention):
    """v_proj's rows are keys as well."""

    def project(self, x):
        return self.q_proj(x), self.v_proj(x), self.v_proj(x)


class WidthMerged(Attention):
    """Heads merged without being transposed back."""

    def forward(self, x, cos, sin, past_k, past_v):
        seq = x.shape[0]
        q, k, v = (each.view(seq, -1, self.head_dim).transpose(0, 1) for each in self.project(x))
        k = torch.cat((past_k, self.rotate(k, cos, sin)), dim=1)
        v = torch.cat((past_v, v), dim=1)
        heads = self.attend(self.rotate(q, cos, sin), k, v, self.mask(seq, k.shape[1]))
        return self.o_proj(heads.reshape(seq, -1)), k, v


class LowRank(nn.Module):
    """A linear layer with a low-rank one beside it."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.base, self.a, self.b = nn.Linear(n_in, n_out, False), nn.Linear(n_in, 8, False), nn.Linear(8, n_out, False)

    def forward(self, x):
        return self.base(x) + self.b(self.a(x)) * 2.0


class GatedMlp(nn.Module):
    def __init__(
        self,
        activation: Rows = functional.silu,
        gate_bias: bool = False,
        up_bias: bool = False,
        down: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.gate_proj, self.up_proj = nn.Linear(HIDDEN, FFN, gate_bias), nn.Linear(HIDDEN, FFN, up_bias)
        self.down_proj = nn.Linear(FFN, HIDDEN, False) if down is None else down

    def forward(self, x):
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class UpFirst(GatedMlp):
    def forward(self, x):
        return self.down_proj(self.up_proj(x) * self.activation(self.gate_proj(x)))


class OneGateUp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up, self.down_proj = nn.Linear(HIDDEN, 2 * FFN, False), nn.Linear(FFN, HIDDEN, False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down_proj(functional.silu(gate) * up)


class PlainMlp(nn.Module):
    def __init__(self, activation: Rows) -> None:
        super().__init__()
        self.activation, self.fc1, self.fc2 = activation, nn.Linear(HIDDEN, FFN), nn.Linear(FFN, HIDDEN)

    def forward(self, x):
        return self.fc2(self.activation(self.fc1(x)))


class Experts(nn.Module):
    """The best two of four, weighted by a router."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(HIDDEN, 4, False), nn.ModuleList(GatedMlp() for _ in range(4))

    def forward(self, x):
        weights, chosen = torch.softmax(self.router(x), -1).topk(2, -1)
        return sum((weights * (chosen == i)).sum(-1, keepdim=True) * expert(x) for i, expert in enumerate(self.experts))


class Decoder(nn.Module):
    """norm, attention, norm, feed-forward layer, each branch added to the rows."""

    def __init__(
        self,
        attention: nn.Module | None = None,
        mlp: nn.Module | None = None,
        norm: Callable[[], nn.Module] = lambda: RMSNorm(HIDDEN, 1e-5),
    ) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = norm(), norm()
        self.self_attn = Attention() if attention is None else attention
        self.mlp = GatedMlp() if mlp is None else mlp

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch

    def forward(self, x, cos, sin, past_k, past_v):
        attention, k, v = self.self_attn(self.input_layernorm(x), cos, sin, past_k, past_v)
        x = self.add(x, attention)
        return self.add(x, self.mlp(self.post_attention_layernorm(x))), k, v


class Added(Decoder):
    def __init__(self, how: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.how = how

    def add(self, x, branch):
        return self.how(x, branch)


class Parallel(Decoder):
    def forward(self, x, cos, sin, past_k, past_v):
        rows = self.input_layernorm(x)
        attention, k, v = self.self_attn(rows, cos, sin, past_k, past_v)
        return x + attention + self.mlp(rows), k, v


class PostNorm(Decoder):
    def forward(self, x, cos, sin, past_k, past_v):
        attention, k, v = self.self_attn(x, cos, sin, past_k, past_v)
        x = self.input_layernorm(x + attention)
        return self.post_attention_layernorm(x + self.mlp(x)), k, v


class Sandwich(Decoder):
    def __init__(self) -> None:
        super().__init__()
        self.after_attention, self.after_mlp = RMSNorm(HIDDEN, 1e-5), RMSNorm(HIDDEN, 1e-5)

    def forward(self, x, cos, sin, past_k, past_v):
        attention, k, v = self.self_attn(self.input_layernorm(x), cos, sin, past_k, past_v)
        x = x + self.after_attention(attention)
        return x + self.after_mlp(self.mlp(self.post_attention_layernorm(x))), k, v


class FirstResidual(Decoder):
    """The feed-forward branch is added to the rows from before the attention."""

    def forward(self, x, cos, sin, past_k, past_v):
        attention, k, v = self.self_attn(self.input_layernorm(x), cos, sin, past_k, past_v)
        return x + self.mlp(self.post_attention_layernorm(x + attention)), k, v


class TwoLayers(nn.Module):
    def __init__(self, rows_only: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.rows_only = Decoder(), Decoder(), rows_only

    def forward(self, x, cos, sin, past_k, past_v):
        x, _, _ = self.first(x, cos, sin, past_k, past_v)
        results = self.second(x, cos, sin, past_k, past_v)
        return results[0] if self.rows_only else results


class RowsOnly(Decoder):
    def forward(self, x, cos, sin, past_k, past_v):
        return super().forward(x, cos, sin, past_k, past_v)[0]


class ExchangedResults(Decoder):
    def forward(self, x, cos, sin, past_k, past_v):
        x, k, v = super().forward(x, cos, sin, past_k, past_v)
        return x, v, k


class NoRotation(nn.Module):
    """A decoder layer without positions."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Decoder(ChangedTables(lambda cos, sin: (cos, sin)))
        self.layer.self_attn.rotate = lambda x, cos, sin: x

    def forward(self, x, past_k, past_v):
        return self.layer(x, None, None, past_k, past_v)


class SharedNorm(Decoder):
    """One norm, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.post_attention_layernorm = self.input_layernorm


class GemmaNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(HIDDEN))

    def forward(self, x):
        return functional.rms_norm(x, (HIDDEN,), None, 1e-6) * (1 + self.weight)


class WrittenRms(nn.Module):
    """RMSNorm as transformers writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(HIDDEN))

    def forward(self, x):
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class FunctionalNorm(nn.Module):
    """how(x, weight)."""

    def __init__(self, how: Callable[[Tensor, Tensor], Tensor], width: int = HIDDEN) -> None:
        super().__init__()
        self.how, self.weight = how, nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.how(x, self.weight)


def decoder(module: Callable[[], nn.Module], head_dim: int = HEAD_DIM) -> Callable[[], Part]:
    return lambda: Part(module(), decoder_inputs(HIDDEN, KV_HEADS, head_dim))


def attention(module: Callable[[], nn.Module]) -> Callable[[], Part]:
    return decoder(lambda: Decoder(module()))


def mlp(module: Callable[[], nn.Module]) -> Callable[[], Part]:
    return decoder(lambda: Decoder(mlp=module()))


def norms(how: Callable[[Tensor, Tensor], Tensor], width: int = HIDDEN) -> Callable[[], Part]:
    return decoder(lambda: Decoder(norm=lambda: FunctionalNorm(how, width)))


def without_positions() -> Part:
    inputs = decoder_inputs(HIDDEN, KV_HEADS, HEAD_DIM)
    return Part(NoRotation(), {name: inputs[name] for name in ("x", "past_k", "past_v")})


def low_rank_query() -> nn.Module:
    found = Decoder()
    found.self_attn.q_proj = LowRank(HIDDEN, HEADS * HEAD_DIM)
    return found


DECODERS = {
    "llama": Case("layer", decoder(Decoder)),
    "biases of q, k, v": Case("layer", attention(lambda: Attention(qkv_bias=True))),
    "bias of o": Case("layer", attention(lambda: Attention(o_bias=True))),
    "head_dim 80": Case("layer", decoder(lambda: Decoder(Attention(80)), 80)),
    "head_dim 96": Case("layer", decoder(lambda: Decoder(Attention(96)), 96)),
    "head_dim 72": Case("layer", decoder(lambda: Decoder(Attention(72)), 72), "head_dim is 72"),
    "layer norms": Case("layer", decoder(lambda: Decoder(norm=lambda: nn.LayerNorm(HIDDEN)))),
    "no positions": Case("layer", without_positions),
    "rows without caches as results": Case("layer", decoder(RowsOnly)),
    "scale as by default": Case("layer", attention(lambda: Options(scale=HEAD_DIM**-0.5))),
    "plain mlp, gelu": Case("layer", mlp(lambda: PlainMlp(functional.gelu))),
    "plain mlp, quick gelu": Case("layer", mlp(lambda: PlainMlp(quick_gelu))),
    "bias of the gate": Case("layer", mlp(lambda: GatedMlp(gate_bias=True))),
    "up * silu(gate)": Case("layer", mlp(UpFirst)),
    "branch + x": Case("layer", decoder(lambda: Added(lambda x, branch: branch + x))),
    # what is understood and has no kernel
    "bias of up": Case(
        "layer", mlp(lambda: GatedMlp(up_bias=True)), r"Decoder\.mlp: operator mul .*up_proj has a bias"
    ),
    "norms of heads": Case("layer", attention(HeadNorms), r"self_attn\.q_norm: operator norm .*whole rows"),
    "sliding window": Case("layer", attention(Window), "its mask is neither absent nor"),
    "prefix mask": Case("layer", attention(Prefix), "its mask is neither absent nor"),
    "strict mask": Case("layer", attention(StrictMask), "a query sees no key"),
    "mask of the first keys": Case("layer", attention(FirstKeys), "its mask is neither absent nor"),
    "no mask over a cache": Case("layer", attention(Bidirectional), "has to be causal"),
    "soft cap": Case("layer", attention(SoftCap), "kernels have no soft cap"),
    "scale of attention": Case(
        "layer",
        attention(lambda: Options(scale=1.0)),
        r"Decoder\.self_attn: operator attention .*scale is 1,",
    ),
    "dropout in attention": Case("layer", attention(lambda: Options(dropout_p=0.5)), "leave out what is random"),
    "gate of heads": Case("layer", attention(HeadGate), "side by side"),
    "one projection": Case("layer", attention(OneProjection), "operator linear .*not computed from them"),
    "partial rotation": Case("layer", attention(PartialRotation), "its query is the result of rope"),
    "interleaved rotation": Case("layer", attention(Interleaved), "its query is the result of rope"),
    "rotation the other way": Case("layer", attention(Turned), r"sin is add\.negative"),
    "tables times 1.2": Case(
        "layer",
        attention(lambda: ChangedTables(lambda cos, sin: (cos * 1.2, sin * 1.2))),
        "cos is mul, it has to be the input cos",
    ),
    "cos and sin exchanged": Case(
        "layer", attention(lambda: ChangedTables(lambda cos, sin: (sin, cos))), "cos is sin, it has to be the input cos"
    ),
    "one table for both": Case(
        "layer", attention(lambda: ChangedTables(lambda cos, sin: (cos, cos))), "input sin has no effect"
    ),
    "tables that are not used": Case(
        "layer", attention(lambda: ChangedTables(lambda cos, sin: (cos, cos))), "has no effect"
    ),
    "keys without rotation": Case("layer", attention(UnrotatedKeys), "queries and keys have to be rotated, or neither"),
    "caches exchanged": Case("layer", attention(ExchangedCaches), "past_k is past_v, it has to be the input past_k"),
    "new keys first": Case("layer", attention(NewFirst), "key is the result of cat"),
    "values for keys": Case("layer", attention(ValuesForKeys), "its value is the result of append"),
    "heads that are not transposed back": Case("layer", attention(WidthMerged), "torch.export refuses"),
    "results exchanged": Case("layer", decoder(ExchangedResults), "return the rows"),
    "low rank beside q": Case("layer", decoder(low_rank_query), "query is the result of"),
    "low rank beside down": Case("layer", mlp(lambda: GatedMlp(down=LowRank(FFN, HIDDEN))), r"mlp\S*: operator"),
    "geglu": Case(
        "layer", mlp(lambda: GatedMlp(functional.gelu)), r"Decoder\.mlp: operator mul .*kernels multiply silu"
    ),
    "geglu, tanh": Case(
        "layer",
        mlp(lambda: GatedMlp(lambda x: functional.gelu(x, approximate="tanh"))),
        "here is gelu_tanh",
    ),
    "reglu": Case("layer", mlp(lambda: GatedMlp(functional.relu)), "here is relu"),
    "plain mlp, tanh gelu": Case(
        "layer",
        mlp(lambda: PlainMlp(lambda x: functional.gelu(x, approximate="tanh"))),
        "here is gelu_tanh",
    ),
    "plain mlp, relu": Case("layer", mlp(lambda: PlainMlp(functional.relu)), "here is relu"),
    "plain mlp, relu squared": Case("layer", mlp(lambda: PlainMlp(lambda x: functional.relu(x) ** 2)), "here is relu"),
    "plain mlp, gelu of 1.7": Case(
        "layer", mlp(lambda: PlainMlp(lambda x: x * torch.sigmoid(1.7 * x))), r"operator scale .*here by 1\.7"
    ),
    "one layer for gate and up": Case("layer", mlp(OneGateUp), "operator linear .*not computed from them"),
    "experts": Case("layer", mlp(Experts), "operator softmax"),
    "parallel branches": Case("layer", decoder(Parallel), "it works on rms_norm, kernels on what came before it"),
    "norms behind": Case("layer", decoder(PostNorm), "it adds to rms_norm"),
    "norms on both sides": Case("layer", decoder(Sandwich), "module Sandwich: operator add .*no kernel computes it"),
    "residual of another value": Case("layer", decoder(FirstResidual), "adds to x"),
    "alpha": Case(
        "layer",
        decoder(lambda: Added(lambda x, branch: torch.add(x, branch, alpha=0.22))),
        "operator add .*kernels add operands as they are",
    ),
    "branch times 0.22": Case(
        "layer", decoder(lambda: Added(lambda x, branch: x + branch * 0.22)), r"operator scale .*here by 0\.22"
    ),
    "difference": Case(
        "layer", decoder(lambda: Added(lambda x, branch: x - branch)), "operator add .*kernels add operands as they are"
    ),
    "two layers": Case("layer", decoder(TwoLayers), "keys and all values of its one attention"),
    "two layers, rows only": Case(
        "layer", decoder(lambda: TwoLayers(rows_only=True)), "its operators are .*kernels take"
    ),
    "a norm used twice": Case("layer", decoder(SharedNorm), "used twice"),
    "norm of 1 + weight": Case(
        "layer",
        decoder(lambda: Decoder(norm=GemmaNorm)),
        "input_layernorm: operator norm .*whose weight is a parameter",
    ),
    "norm written out": Case("layer", decoder(lambda: Decoder(norm=WrittenRms)), ""),
    "layer norm without bias": Case(
        "layer",
        norms(lambda x, weight: functional.layer_norm(x, (HIDDEN,), weight)),
        "kernels take layer norms with a bias",
    ),
    "norm of a computed weight": Case(
        "layer",
        norms(lambda x, weight: functional.rms_norm(x, (HIDDEN,), 2 * weight, 1e-6)),
        "whose weight is a parameter",
    ),
    "rms norm without eps": Case(
        "layer", norms(lambda x, weight: functional.rms_norm(x, (HIDDEN,), weight)), "and an epsilon"
    ),
    "norm of groups": Case(
        "layer",
        norms(
            lambda x, weight: functional.rms_norm(x.view(x.shape[0], -1, 16), (16,), weight, 1e-6).reshape(x.shape), 16
        ),
        "operator norm .*whole rows",
    ),
}
