"""The image side of the float reference: CLIP's vision transformer (or one without pre-norm) and LLaVA's projector.

There is no batch dimension; see `ref_model.modules`. Sources: Radford et al. 2021 (CLIP), Liu et al. 2023 (LLaVA-1.5).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .config import VisionConfig


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), CLIP's approximation of GELU; any shape."""
    return x * torch.sigmoid(1.702 * x)


class VisionAttention(nn.Module):
    """Bidirectional multi-head attention with biases, float[n, hidden] -> float[n, hidden]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj = nn.Linear(config.hidden, config.hidden)
        self.k_proj = nn.Linear(config.hidden, config.hidden)
        self.v_proj = nn.Linear(config.hidden, config.hidden)
        self.out_proj = nn.Linear(config.hidden, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            projection(x).view(x.shape[0], self.heads, -1).transpose(0, 1)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        heads = functional.scaled_dot_product_attention(q, k, v)
        return self.out_proj(heads.transpose(0, 1).reshape(x.shape))


class VisionMlp(nn.Module):
    """Linear, activation, linear; float[n, hidden] -> float[n, hidden]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.activation = quick_gelu if config.activation == "quick_gelu" else functional.gelu
        self.fc1 = nn.Linear(config.hidden, config.ffn)
        self.fc2 = nn.Linear(config.ffn, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class VisionLayer(nn.Module):
    """One pre-norm transformer layer, float[n, hidden] -> float[n, hidden]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden, config.ln_eps)
        self.self_attn = VisionAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden, config.ln_eps)
        self.mlp = VisionMlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionEmbeddings(nn.Module):
    """Patches float[n_patches, 3*p*p] -> tokens float[n_patches + 1, hidden], class token first.

    The patch convolution's stride is its kernel size, so it is one linear layer over flattened patches.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(config.hidden))
        self.patch_embedding = nn.Conv2d(3, config.hidden, config.patch_size, config.patch_size, bias=False)
        self.position_embedding = nn.Embedding(config.n_positions, config.hidden)

    def forward(self, patches: Tensor) -> Tensor:
        tokens = functional.linear(patches, self.patch_embedding.weight.flatten(1))
        return torch.cat((self.class_embedding[None, :], tokens)) + self.position_embedding.weight


class VisionEncoder(nn.Module):
    """The executed layers only: those after the feature layer have no effect and are not built."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_executed_vision_layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class VisionTower(nn.Module):
    """CLIP's ViT up to the feature layer: patches float[n_patches, 3*p*p] -> features float[n_features, hidden].

    `ref_model.preprocess.patches` makes the input. There is no post_layernorm, as LLaVA skips it.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden, config.ln_eps) if config.pre_norm else nn.Identity()
        self.encoder = VisionEncoder(config)

    def forward(self, patches: Tensor) -> Tensor:
        x = self.encoder(self.pre_layrnorm(self.embeddings(patches)))
        return x[1:] if self.config.drop_class else x


class Projector(nn.Module):
    """Linear, exact (erf) GELU, linear: float[n, vision hidden] -> float[n, text hidden]."""

    def __init__(self, vision_hidden: int, text_hidden: int, bias: bool = True) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision_hidden, text_hidden, bias)
        self.linear_2 = nn.Linear(text_hidden, text_hidden, bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(functional.gelu(self.linear_1(features)))
