"""Whole models that nobody here wrote: transformers' own, unedited, from pixels or embeddings to their last rows."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

import alula
from tests.compiler.test_transformers_layers import trained

DEPTH = 4
VISION = {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": DEPTH, "image_size": 56, "patch_size": 14}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": DEPTH,
    "vocab_size": 100,
    "max_position_embeddings": 128,
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**VISION, intermediate_size=80, vision_use_head=False)),
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**VISION, intermediate_size=80)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**VISION, mlp_ratio=2)),
    "llama": lambda: LlamaModel(LlamaConfig(**TEXT)),
}


class Pixels(nn.Module):
    """float[1, 3, 56, 56] -> the tower's rows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model(pixel_values=pixel_values).last_hidden_state


class Embeddings(nn.Module):
    """float[1, seq, 64] -> the model's rows; positions, rotary tables and the mask are the model's own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(inputs_embeds=x, use_cache=False).last_hidden_state


def program(name: str) -> "alula.Program":
    torch.manual_seed(2)
    model = trained(MODELS[name]())
    if name == "llama":
        return alula.compile(Embeddings(model), {"x": torch.randn(1, 12, 64)}, {"x": {1: "seq"}}, {"seq": (2, 40)})
    return alula.compile(Pixels(model), {"pixel_values": torch.randn(1, 3, 56, 56)})


@pytest.mark.parametrize("name", MODELS)
def test_whole_models(name):
    found = program(name)
    result = found.verify("cycle")
    assert result["bit_exact"], [case["first_difference"] for case in result["cases"]]
    assert result["float_error"] < 0.03
    assert len(found.words) < 2_000, "layers are a loop"


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_whole_models_in_rtl(name):
    result = program(name).verify("rtl")
    assert result["bit_exact"] and result["cycle_exact"]
