"""Layers that nobody here wrote: transformers' own, unedited, called as transformers calls them."""

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaConfig, GemmaDecoderLayer
from transformers.models.gemma2.modeling_gemma2 import Gemma2Config, Gemma2DecoderLayer
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaDecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3Config, Qwen3DecoderLayer
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer, SiglipVisionConfig

import alula

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 1,
    "vocab_size": 100,
}
DECODERS = {
    "llama": (LlamaConfig, LlamaDecoderLayer, {}),
    "qwen3": (Qwen3Config, Qwen3DecoderLayer, {}),
    "gemma": (GemmaConfig, GemmaDecoderLayer, {}),
    "gemma2": (Gemma2Config, Gemma2DecoderLayer, {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0}),
}

WITHOUT_SOFTCAP = [name for name in DECODERS if name != "gemma2"]
"""transformers' sdpa leaves soft caps out."""


class Decoder(nn.Module):
    """float[1, seq, hidden], tables of its positions, and a mask that is added to the scores."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        out = self.layer(x, position_embeddings=(cos, sin), attention_mask=mask)
        return out[0] if isinstance(out, tuple) else out


class Encoder(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x, attention_mask=None)
        return out[0] if isinstance(out, tuple) else out


def trained(module: nn.Module) -> nn.Module:
    """Weights of the magnitude of trained ones; norms stay near what they are made with."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def decoder(name: str, attention: str) -> "alula.Program":
    of_config, of_layer, more = DECODERS[name]
    config = of_config(**SIZES, **more)
    config._attn_implementation = attention
    n = 12
    angles = torch.arange(n)[:, None] * 10.0 ** -torch.arange(SIZES["head_dim"] // 2)
    table = torch.cat((angles, angles), -1)[None]
    inputs = {
        "x": torch.randn(1, n, SIZES["hidden_size"]),
        "cos": table.cos(),
        "sin": table.sin(),
        "mask": torch.full((n, n), float("-inf")).triu(1)[None, None],
    }
    dynamic = {"x": {1: "seq"}, "cos": {1: "seq"}, "sin": {1: "seq"}, "mask": {2: "seq", 3: "seq"}}
    return alula.compile(trained(Decoder(of_layer(config, 0))), inputs, dynamic, {"seq": (1, 64)})


@pytest.mark.parametrize(
    ("name", "attention"),
    [(name, "eager") for name in DECODERS]
    + [pytest.param(name, "sdpa", marks=pytest.mark.slow) for name in WITHOUT_SOFTCAP],
)
def test_decoder_layers(name, attention):
    result = decoder(name, attention).verify("cycle", seq=[1, 12, 40])
    assert result["bit_exact"], [case["first_difference"] for case in result["cases"]]
    assert result["float_error"] < 0.03


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_siglip_layer(attention):
    config = SiglipVisionConfig(hidden_size=48, intermediate_size=80, num_attention_heads=3)
    config._attn_implementation = attention
    module = trained(Encoder(SiglipEncoderLayer(config)))
    program = alula.compile(module, {"x": torch.randn(1, 16, 48)}, {"x": {1: "seq"}}, {"seq": (1, 64)})
    result = program.verify("cycle", seq=[1, 16, 40])
    assert result["bit_exact"] and result["float_error"] < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_decoder_layers_in_rtl(name):
    result = decoder(name, "eager").verify("rtl", seq=[1, 12, 40])
    assert result["bit_exact"] and result["cycle_exact"]
