"""Vision: encoder layers, stems that make tokens of an image, convolutions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from .case import Case, Inputs, fixed_inputs, row_inputs, trained
from .parts import ACTIVATIONS, NORMS

WIDTH, HEADS, FFN = 48, 3, 80
PATCHES, PATCH_WIDTH = 16, 588
"""A picture of 4 x 4 patches, each of 14 x 14 pixels in 3 colours."""


@dataclass(frozen=True)
class BlockOptions:
    """What published encoders do differently; the defaults are CLIP's.

    activation, norm: names of `ACTIVATIONS` and `NORMS`. gated: an MLP gated by SiLU. post_norm: norms behind the sums.
    qk_norm: norms of queries and keys over all heads together. layer_scale: a learned factor on every channel of what
    is added to the stream. causal: a token sees only itself and those before it.
    """

    width: int = WIDTH
    heads: int = HEADS
    inner: int = FFN
    activation: str = "quick_gelu"
    norm: str = "layer"
    gated: bool = False
    post_norm: bool = False
    fused_qkv: bool = False
    qk_norm: bool = False
    layer_scale: bool = False
    causal: bool = False


class VisionAttention(nn.Module):
    """Attention of tokens to each other, float[seq, width] -> float[seq, width]."""

    def __init__(self, options: BlockOptions) -> None:
        super().__init__()
        self.options, width = options, options.width
        if options.fused_qkv:
            self.qkv_proj = nn.Linear(width, 3 * width)
        else:
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        if options.qk_norm:
            self.q_norm, self.k_norm = NORMS["rms"](width), NORMS["rms"](width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projected(x)
        if self.options.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (part.view(x.shape[0], self.options.heads, -1).transpose(0, 1) for part in (q, k, v))
        heads = functional.scaled_dot_product_attention(q, k, v, is_causal=self.options.causal)
        return self.out_proj(heads.transpose(0, 1).reshape(x.shape))

    def projected(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, each float[seq, width]."""
        if self.options.fused_qkv:
            return self.qkv_proj(x).chunk(3, dim=-1)
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)


class VisionMlp(nn.Module):
    """An MLP of two matrices, or of three with a gate; float[seq, width] -> float[seq, width]."""

    def __init__(self, options: BlockOptions) -> None:
        super().__init__()
        self.activation = ACTIVATIONS["silu" if options.gated else options.activation]
        self.fc1 = nn.Linear(options.width, options.inner)
        self.fc2 = nn.Linear(options.inner, options.width)
        self.gate = nn.Linear(options.width, options.inner) if options.gated else None

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is not None:
            return self.fc2(self.activation(self.gate(x)) * self.fc1(x))
        return self.fc2(self.activation(self.fc1(x)))


class VisionBlock(nn.Module):
    """One encoder layer, float[seq, width] -> float[seq, width]."""

    def __init__(self, options: BlockOptions | None = None) -> None:
        super().__init__()
        self.options = options = options or BlockOptions()
        norm, width = NORMS[options.norm], options.width
        self.norm1, self.norm2 = norm(width), norm(width)
        self.self_attn = VisionAttention(options)
        self.mlp = VisionMlp(options)
        if options.layer_scale:
            self.scale1, self.scale2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.options.post_norm:
            x = self.norm1(x + self.self_attn(x))
            return self.norm2(x + self.mlp(x))
        attention = self.self_attn(self.norm1(x))
        x = x + (attention * self.scale1 if self.options.layer_scale else attention)
        inner = self.mlp(self.norm2(x))
        return x + (inner * self.scale2 if self.options.layer_scale else inner)


class RegisterStem(nn.Module):
    """Patches float[16, 588] -> tokens float[21, width]: a class token, four registers, then the patches."""

    def __init__(self, n_registers: int = 4) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, WIDTH))
        self.registers = nn.Parameter(torch.zeros(n_registers, WIDTH))
        self.patch_embedding = nn.Linear(PATCH_WIDTH, WIDTH, bias=False)
        self.positions = nn.Embedding(1 + n_registers + PATCHES, WIDTH)

    def forward(self, patches: Tensor) -> Tensor:
        tokens = torch.cat((self.class_token, self.registers, self.patch_embedding(patches)))
        return tokens + self.positions.weight


class PatchConvolution(nn.Module):
    """A picture float[1, 3, 56, 56] -> tokens float[16, width], as a convolution that steps by a patch."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, WIDTH, kernel_size=14, stride=14)

    def forward(self, x: Tensor) -> Tensor:
        return self.patch_embedding(x).flatten(2)[0].t()


class JoinedProjection(nn.Module):
    """Attention whose queries, keys and values are axes of one product, float[seq, width] -> float[seq, width].

    by_head: every head has its three side by side; else all queries come first, then all keys.
    """

    def __init__(self, by_head: bool) -> None:
        super().__init__()
        self.by_head = by_head
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        qkv, n = self.qkv(self.norm(x)), x.shape[0]
        if self.by_head:
            q, k, v = qkv.view(n, HEADS, -1).transpose(0, 1).chunk(3, dim=-1)
        else:
            q, k, v = qkv.reshape(n, 3, HEADS, -1).permute(1, 2, 0, 3).unbind(0)
        heads = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(heads.transpose(0, 1).reshape(n, WIDTH))


class DepthwiseConvolution(nn.Module):
    """Tokens of a 4 x 4 grid, float[16, width] -> float[16, width]; every channel has a kernel of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(WIDTH, WIDTH, kernel_size=3, padding=1, groups=WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x.t().reshape(1, WIDTH, 4, 4)).reshape(WIDTH, PATCHES).t()


def case(module: Callable[[], nn.Module], about: str, inputs: Inputs) -> Case:
    """A case of this family whose lengths are fixed."""
    return Case(lambda: trained(module()), inputs, "vision", about)


def rows_case(module: Callable[[], nn.Module], about: str, width: int = WIDTH) -> Case:
    """A case of this family that takes any number of rows up to 64."""
    return Case(
        lambda: trained(module()), row_inputs(width), "vision", about, {"x": {0: "seq"}}, lengths={"seq": (1, 64)}
    )


def block(about: str, **options) -> Case:
    """An encoder layer; options of `BlockOptions`."""
    chosen = BlockOptions(**options)
    return rows_case(partial(VisionBlock, chosen), about, chosen.width)


CASES = {
    "clip": block("The layer of CLIP, LLaVA-1.5's vision tower."),
    "siglip": block("The layer of SigLIP, with the tanh formula of GELU.", activation="gelu_tanh"),
    "siglip-head-72": block(
        "SigLIP So400m's heads of 72 channels.", width=144, heads=2, inner=160, activation="gelu_tanh"
    ),
    "dinov2": block(
        "A learned factor on every channel (LayerScale), as in DINOv2.", activation="gelu", layer_scale=True
    ),
    "internvit": block(
        "Queries, keys and values from one matrix, as in InternViT-300M.", activation="gelu", fused_qkv=True
    ),
    "internvit-6b": block(
        "Norms of queries and keys over the whole width, RMSNorm and LayerScale, as in InternViT-6B.",
        activation="gelu",
        norm="rms",
        qk_norm=True,
        layer_scale=True,
    ),
    "qkv-by-axes": rows_case(
        partial(JoinedProjection, False), "One product, split by axes, as in timm's ViT and BLIP-2's EVA tower."
    ),
    "qkv-by-head": rows_case(
        partial(JoinedProjection, True), "One product, three parts a head, as in GPT-NeoX and BLOOM."
    ),
    "eva": block("An MLP gated by SiLU, as in EVA-02.", gated=True),
    "vision-rms-norm": block("RMSNorm in an encoder, as in AIMv2.", norm="rms"),
    "bert": block("Norms behind the sums, as in BERT and the Q-Former.", activation="gelu", post_norm=True),
    "causal-encoder": block("A causal mask without a cache, as in CLIP's text tower.", causal=True),
    "register-stem": case(
        RegisterStem,
        "Tokens that belong to no patch, as DINOv2 with registers has them.",
        fixed_inputs(PATCHES, PATCH_WIDTH, name="patches"),
    ),
    "patch-convolution": case(
        PatchConvolution, "Patches embedded by a convolution, as in every ViT.", fixed_inputs(1, 3, 56, 56)
    ),
    "convolution": case(
        partial(nn.Conv2d, 3, 16, kernel_size=3, stride=2, padding=1),
        "A dense 3 x 3 convolution, as in the stem of FastViT.",
        fixed_inputs(1, 3, 16, 16, name="input"),
    ),
    "depthwise-convolution": case(
        DepthwiseConvolution, "A 3 x 3 kernel for every channel, as in MobileVLM's LDP.", fixed_inputs(PATCHES, WIDTH)
    ),
    "batch-norm": Case(
        lambda: trained(nn.BatchNorm1d(WIDTH)),
        row_inputs(WIDTH, name="input"),
        "vision",
        "A norm with fixed statistics, as in MobileCLIP.",
        {"input": {0: "seq"}},
        {"seq": (1, 64)},
    ),
}
