"""Layers and stems of vision towers: see `modules`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.parts import SEQ, Part
from ref_model.decoder import RMSNorm
from ref_model.vision import quick_gelu
from tests.compiler.modules import (
    PATCH,
    PATCHES,
    VISION,
    VISION_FFN,
    VISION_HEADS,
    Case,
    Rows,
)


class TowerAttention(nn.Module):
    """Attention of all rows to all."""

    def __init__(self, width: int = VISION, heads: int = VISION_HEADS, **options) -> None:
        super().__init__()
        self.heads, self.options = heads, options
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def forward(self, x):
        q, k, v = (each.view(x.shape[0], self.heads, -1).transpose(0, 1) for each in self.project(x))
        heads = functional.scaled_dot_product_attention(q, k, v, **self.options)
        return self.out_proj(heads.transpose(0, 1).reshape(x.shape))


class OneTowerProjection(TowerAttention):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(VISION, 3 * VISION)

    def project(self, x):
        return self.qkv(x).chunk(3, -1)


class TowerNorms(TowerAttention):
    def __init__(self) -> None:
        super().__init__()
        self.q_norm, self.k_norm = RMSNorm(VISION, 1e-6), RMSNorm(VISION, 1e-6)

    def project(self, x):
        q, k, v = super().project(x)
        return self.q_norm(q), self.k_norm(k), v


class ExchangedQueries(TowerAttention):
    """Keys ask, queries answer: the same shapes, another module."""

    def project(self, x):
        return self.k_proj(x), self.q_proj(x), self.v_proj(x)


class Tower(nn.Module):
    def __init__(
        self,
        attention: nn.Module | None = None,
        activation: Rows = quick_gelu,
        norm: Callable[[], nn.Module] = lambda: nn.LayerNorm(VISION, 1e-5),
        scaled: bool = False,
    ) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2, self.activation = norm(), norm(), activation
        self.self_attn = TowerAttention() if attention is None else attention
        self.fc1, self.fc2 = nn.Linear(VISION, VISION_FFN), nn.Linear(VISION_FFN, VISION)
        self.scale = nn.Parameter(torch.ones(VISION)) if scaled else None

    def mlp(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))

    def branch(self, y: Tensor) -> Tensor:
        return y if self.scale is None else y * self.scale

    def forward(self, x):
        x = x + self.branch(self.self_attn(self.layer_norm1(x)))
        return x + self.branch(self.mlp(self.layer_norm2(x)))


class GatedTower(Tower):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.gate, self.fc1 = nn.Linear(VISION, VISION_FFN), nn.Linear(VISION, VISION_FFN, bias)

    def mlp(self, x):
        return self.fc2(functional.silu(self.gate(x)) * self.fc1(x))


class PostNormTower(Tower):
    def forward(self, x):
        x = self.layer_norm1(x + self.self_attn(x))
        return self.layer_norm2(x + self.mlp(x))


class Stem(nn.Module):
    """registers: rows between the class token and the patches."""

    def __init__(self, registers: int = 0, class_last: bool = False) -> None:
        super().__init__()
        self.class_last = class_last
        self.class_embedding = nn.Parameter(torch.zeros(VISION))
        self.registers = nn.Parameter(torch.zeros(registers, VISION)) if registers else None
        self.patch_embedding = nn.Linear(PATCH, VISION, False)
        self.position_embedding = nn.Embedding(PATCHES + 1 + registers, VISION)

    def forward(self, patches):
        rows = [self.class_embedding[None], self.patch_embedding(patches)]
        if self.registers is not None:
            rows.insert(1, self.registers)
        return torch.cat(rows[::-1] if self.class_last else rows) + self.position_embedding.weight


def tower(module: Callable[[], nn.Module]) -> Callable[[], Part]:
    return lambda: Part(module(), {"x": (SEQ, VISION)})


def stem(module: Callable[[], nn.Module], *shape: int) -> Callable[[], Part]:
    return lambda: Part(module(), {"patches": shape or (PATCHES, PATCH)})


VISION_PARTS = {
    "clip": Case("vision_layer", tower(Tower)),
    "gelu": Case("vision_layer", tower(lambda: Tower(activation=functional.gelu))),
    "rms norms": Case("vision_layer", tower(lambda: Tower(norm=lambda: RMSNorm(VISION, 1e-6)))),
    "gated tower": Case("vision_layer", tower(lambda: GatedTower(bias=False))),
    "gated tower with biases": Case("vision_layer", tower(GatedTower), "fc1 has a bias"),
    "queries and keys exchanged": Case("vision_layer", tower(lambda: Tower(ExchangedQueries()))),
    "tanh gelu": Case(
        "vision_layer",
        tower(lambda: Tower(activation=lambda x: functional.gelu(x, approximate="tanh"))),
        "here is gelu_tanh",
    ),
    "layer scale": Case("vision_layer", tower(lambda: Tower(scaled=True)), "operator mul"),
    "one projection of a tower": Case(
        "vision_layer", tower(lambda: Tower(OneTowerProjection())), "operator linear .*not computed from them"
    ),
    "norms of q and k": Case("vision_layer", tower(lambda: Tower(TowerNorms())), "query is the result of"),
    "causal tower": Case(
        "vision_layer",
        tower(lambda: Tower(TowerAttention(is_causal=True))),
        "attention over a cache has to be causal, and no other",
    ),
    "scale of a tower": Case("vision_layer", tower(lambda: Tower(TowerAttention(scale=0.1))), r"scale is 0\.1"),
    "norms behind, in a tower": Case("vision_layer", tower(PostNormTower), "it adds to layer_norm"),
    "stem": Case("stem", stem(Stem)),
    "stem with registers": Case("stem", stem(lambda: Stem(4)), "operator cat .*one class token ahead"),
    "stem with its class token last": Case(
        "stem", stem(lambda: Stem(class_last=True)), "operator cat .*one class token ahead"
    ),
    "stem of a convolution": Case(
        "stem",
        stem(lambda: nn.Sequential(nn.Conv2d(3, VISION, 14, 14)), 1, 3, 56, 56),
        "operator linear .*not computed from them",
    ),
}
