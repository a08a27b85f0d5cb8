"""The parts of LLaVA that the hand-written kernels compute: one module of each kind, and what it is called with.

A model repeats its layers, so one module a kind is enough. Weights are not needed: modules are built without them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ref_model.config import LlavaConfig
from ref_model.modules import LlamaDecoderLayer, Projector, RMSNorm, VisionLayer
from ref_model.vision import VisionEmbeddings

from .graph.ir import Dim, Length

MAX_CONTEXT = 1 << 17
SEQ, CACHE = Length("seq"), Length("cache")
LENGTHS = {"seq": (1, MAX_CONTEXT), "cache": (0, MAX_CONTEXT)}
"""Symbolic lengths with their ranges: rows of this run, and those of the runs before."""
Shape = tuple[Dim, ...]


@dataclass(frozen=True)
class Part:
    """A module of a model, and what it is called with: a shape for every input of `forward`, in order.

    The inputs' names say what they are for: the program brings a layer's RoPE tables as `cos` and `sin`, whatever
    the module calls them.
    """

    module: nn.Module
    inputs: Mapping[str, Shape]


class Head(nn.Module):
    """Final norm and vocabulary projection, float[n, hidden] -> float[n, vocab]."""

    def __init__(self, config) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden, config.rms_eps)
        self.lm_head = nn.Linear(config.hidden, config.vocab, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.lm_head(self.norm(x))


class Stem(nn.Module):
    """Patch embedding, class token, positions, pre-norm where there is one; float[n_patches, 3*p*p] -> float[n + 1,
    hidden]."""

    def __init__(self, config) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden, config.ln_eps) if config.pre_norm else nn.Identity()

    def forward(self, patches: Tensor) -> Tensor:
        return self.pre_layrnorm(self.embeddings(patches))


def decoder_inputs(hidden: int, kv_heads: int, head_dim: int) -> dict[str, Shape]:
    """What a decoder layer is called with: rows, tables of its positions, and the keys and values before them."""
    table, past = (SEQ, head_dim), (kv_heads, CACHE, head_dim)
    return {"x": (SEQ, hidden), "cos": table, "sin": table, "past_k": past, "past_v": past}


def parts(config: LlavaConfig) -> dict[str, Part]:
    """`layer` and `head` of the language model; `stem`, `vision_layer` and `projector` where there is a tower."""
    text, vision = config.text, config.vision
    with torch.device("meta"):
        found = {
            "layer": Part(LlamaDecoderLayer(text), decoder_inputs(text.hidden, text.kv_heads, text.head_dim)),
            "head": Part(Head(text), {"x": (SEQ, text.hidden)}),
        }
        if vision is not None:
            found |= {
                "stem": Part(Stem(vision), {"patches": (vision.n_patches, vision.patch_width)}),
                "vision_layer": Part(VisionLayer(vision), {"x": (SEQ, vision.hidden)}),
                "projector": Part(
                    Projector(vision.hidden, text.hidden, config.projector_bias), {"x": (SEQ, vision.hidden)}
                ),
            }
    return found
