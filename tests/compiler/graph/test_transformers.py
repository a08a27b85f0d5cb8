"""Layers as package transformers writes them, captured without a change."""

import pytest
import torch
from torch import Tensor, nn

from compiler.graph import capture
from tests.compiler.graph.small import only, operators

models = pytest.importorskip("transformers.models")

SIZE = 16
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 1}
TEXT = SIZES | {"num_key_value_heads": 2, "head_dim": SIZE, "vocab_size": 100}
LENGTHS = {"seq": (1, 40)}


class Decoder(nn.Module):
    """A decoder layer of what every layer of a model is called with."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
        result = self.layer(hidden_states=hidden, attention_mask=mask, position_embeddings=(cos, sin))
        return result[0] if isinstance(result, tuple) else result


class Encoder(nn.Module):
    """A layer of a vision tower."""

    def __init__(self, layer: nn.Module, *arguments) -> None:
        super().__init__()
        self.layer, self.arguments = layer, arguments

    def forward(self, hidden: Tensor) -> Tensor:
        result = self.layer(hidden, *self.arguments)
        return result[0] if isinstance(result, tuple) else result


def made(family: str, prefix: str, kind: str, sizes: dict, attention: str, *arguments) -> nn.Module:
    """A layer of a family, from its configuration's class and its own."""
    from importlib import import_module

    config = getattr(import_module(f"transformers.models.{family}.configuration_{family}"), f"{prefix}Config")(**sizes)
    config._attn_implementation = attention
    stem = prefix.removesuffix("Vision")
    layer = getattr(import_module(f"transformers.models.{family}.modeling_{family}"), f"{stem}{kind}")
    return layer(config, *arguments)


DECODERS = {
    "llama": ("llama", "Llama", "eager", "silu"),
    "llama, sdpa": ("llama", "Llama", "sdpa", "silu"),
    "qwen3": ("qwen3", "Qwen3", "sdpa", "silu"),
    "gemma": ("gemma", "Gemma", "sdpa", "gelu_tanh"),
    "gemma2": ("gemma2", "Gemma2", "eager", "gelu_tanh"),
    "cohere": ("cohere", "Cohere", "eager", "silu"),
}


@pytest.mark.parametrize("model", DECODERS)
def test_decoder_layers(model):
    family, prefix, attention, function = DECODERS[model]
    torch.manual_seed(0)
    inputs = {"hidden": torch.randn(1, 5, 64), "cos": torch.randn(1, 5, SIZE), "sin": torch.randn(1, 5, SIZE)}
    hidden = ~torch.ones(5, 5, dtype=torch.bool).tril()
    inputs["mask"] = torch.zeros(1, 1, 5, 5).masked_fill(hidden, torch.finfo(torch.float32).min)
    dynamic = {name: {1: "seq"} for name in ("hidden", "cos", "sin")} | {"mask": {2: "seq", 3: "seq"}}
    layer = Decoder(made(family, prefix, "DecoderLayer", TEXT, attention, 0))
    graph = capture(layer, inputs, dynamic, LENGTHS)
    assert [graph.nodes[name].kind for name in inputs] == ["device", "host", "host", "host"]
    found = operators(graph)
    assert found.count("rope") == 2 and found.count("attention") == 1 and found.count("linear") == 7
    assert only(graph, "activation").arguments["function"] == function
    assert graph.nodes[only(graph, "attention").operand("k") or ""].shape[0] == 2
    assert ("softcap" in only(graph, "attention").arguments) == (model == "gemma2")


ENCODERS = {
    "siglip": ("siglip", "SiglipVision", "EncoderLayer", "gelu_tanh", (None,)),
    "clip": ("clip", "CLIPVision", "EncoderLayer", "quick_gelu", (None,)),
    "dinov2": ("dinov2", "Dinov2", "Layer", "gelu", ()),
}


@pytest.mark.parametrize("model", ENCODERS)
def test_encoder_layers(model):
    family, prefix, kind, function, arguments = ENCODERS[model]
    torch.manual_seed(0)
    sizes = SIZES | {"image_size": 28, "patch_size": 14}
    if model == "dinov2":
        sizes["mlp_ratio"] = sizes.pop("intermediate_size") // 32
    layer = Encoder(made(family, prefix, kind, sizes, "sdpa"), *arguments)
    graph = capture(layer, {"hidden": torch.randn(1, 5, 64)}, {"hidden": {1: "seq"}}, LENGTHS)
    assert operators(graph).count("attention") == 1 and operators(graph).count("norm") == 2
    assert only(graph, "activation").arguments["function"] == function
