"""Pictures to visual tokens in models that nobody here wrote: transformers' own towers, projectors and a Q-Former."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tr
from torch import Tensor, nn

import alula
from tests.compiler.test_transformers_layers import trained

SIZE = 32
NARROW = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = NARROW | {"num_key_value_heads": 2, "vocab_size": 160, "pad_token_id": 0}
TOWER = NARROW | {"image_size": SIZE, "patch_size": 8}


def siglip(**more: Any) -> tr.SiglipVisionConfig:
    return tr.SiglipVisionConfig(**TOWER, vision_use_head=False, **more)


def llava(tower: tr.PretrainedConfig) -> tr.LlavaConfig:
    chosen = {"vision_feature_select_strategy": "full", "vision_feature_layer": -1}
    return tr.LlavaConfig(vision_config=tower, text_config=tr.LlamaConfig(**TEXT), **chosen)


def blip2() -> nn.Module:
    former = NARROW | {"encoder_hidden_size": 64, "cross_attention_frequency": 1, "vocab_size": 100}
    text = tr.OPTConfig(hidden_size=64, ffn_dim=128, num_hidden_layers=1, num_attention_heads=4, word_embed_proj_dim=64)
    config = tr.Blip2Config(vision_config=TOWER, qformer_config=former, text_config=text, num_query_tokens=8)
    return tr.Blip2ForConditionalGeneration(config)


def ovis2() -> nn.Module:
    tower = TOWER | {"hidden_stride": 1, "vocab_size": 64, "num_visual_indicator_tokens": 5}
    return tr.Ovis2ForConditionalGeneration(
        tr.Ovis2Config(vision_config=tower, text_config=tr.Qwen2Config(**TEXT), vocab_size=160)
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "aya": lambda: tr.AyaVisionForConditionalGeneration(
        tr.AyaVisionConfig(vision_config=siglip(), text_config=tr.Cohere2Config(**TEXT))
    ),
    "blip2": blip2,
    "deepseek-vl": lambda: tr.DeepseekVLForConditionalGeneration(
        tr.DeepseekVLConfig(vision_config=siglip(), text_config=tr.LlamaConfig(**TEXT))
    ),
    "gemma3": lambda: tr.Gemma3ForConditionalGeneration(
        tr.Gemma3Config(vision_config=siglip(), text_config=tr.Gemma3TextConfig(**TEXT), mm_tokens_per_image=4)
    ),
    "internvl": lambda: tr.InternVLForConditionalGeneration(
        tr.InternVLConfig(
            vision_config=NARROW | {"image_size": [SIZE, SIZE], "patch_size": [8, 8]},
            text_config=tr.Qwen2Config(**TEXT),
        )
    ),
    "llava-pixtral": lambda: tr.LlavaForConditionalGeneration(llava(tr.PixtralVisionConfig(**TOWER))),
    "llava-siglip": lambda: tr.LlavaForConditionalGeneration(llava(siglip())),
    "ovis2": ovis2,
    "paligemma": lambda: tr.PaliGemmaForConditionalGeneration(
        tr.PaliGemmaConfig(vision_config=siglip(projection_dim=64), text_config=tr.GemmaConfig(**TEXT))
    ),
}
OPTIONS: dict[str, dict[str, Any]] = {"llava-pixtral": {"image_sizes": [(SIZE, SIZE)]}}


class Features(nn.Module):
    """float[3, 32, 32] -> the visual tokens that go to the language model."""

    def __init__(self, model: nn.Module, options: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, pixels: Tensor) -> Tensor:
        owner = self.model.model if hasattr(self.model, "model") else self.model
        found = owner.get_image_features(pixel_values=pixels[None], **self.options)
        tokens = getattr(found, "pooler_output", found)
        tokens = tokens[0] if isinstance(tokens, list | tuple) else tokens
        return tokens.reshape(-1, tokens.shape[-1])


def program(name: str) -> "alula.Program":
    torch.manual_seed(2)
    model = trained(MODELS[name]())
    return alula.compile(Features(model, OPTIONS.get(name, {})), {"pixels": torch.randn(3, SIZE, SIZE)})


@pytest.mark.parametrize("name", MODELS)
def test_visual_tokens(name):
    result = program(name).verify("cycle")
    assert result["bit_exact"] and result["float_error"] < 0.04, "of the projector's rows, all layers added up"


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_visual_tokens_in_rtl(name):
    result = program(name).verify("rtl")
    assert result["bit_exact"] and result["cycle_exact"]
