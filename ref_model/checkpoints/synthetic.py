"""Seeded synthetic weights of realistic scale, one tensor at a time.

Each tensor depends only on (seed, canonical name), so any layer of a 7B model can be made without the others. Scales
keep a residual stream near unit variance, attention logits near deviation 2 and output logits near 2.5, so that greedy
decoding is decisive; norm gains vary by channel and a few stand out, as activations of trained models do.
"""

import hashlib
import math

import numpy as np
import torch
from torch import Tensor

from ref_model.config import LlavaConfig

from .base import Checkpoint
from .names import state_shapes, text_layer_shapes

LOGIT_STD = 2.5
ATTENTION_GAIN = math.sqrt(2)
NORM_GAIN_LOG_STD = 0.25
OUTLIER_GAIN = 4.0
CHANNELS_PER_OUTLIER = 128


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8")))


def _norm_gain(generator: np.random.Generator, width: int) -> np.ndarray:
    gain = np.exp(NORM_GAIN_LOG_STD * generator.standard_normal(width, dtype=np.float32))
    outliers = generator.choice(width, max(1, width // CHANNELS_PER_OUTLIER), replace=False)
    gain[outliers] *= OUTLIER_GAIN
    return gain


def _std(config: LlavaConfig, name: str, shape: tuple[int, ...]) -> float:
    """Standard deviation of the values of a tensor that is not a norm gain."""
    if name.endswith(".bias"):
        return 0.05
    if "embedding" in name or "embed_tokens" in name:
        return 0.02 if "patch_embedding" not in name else 1 / math.sqrt(math.prod(shape[1:]))
    unit = 1 / math.sqrt(shape[-1])
    if name == "lm_head.weight":
        return LOGIT_STD * unit
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        return ATTENTION_GAIN * unit
    if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "fc2.weight")):
        # Two branches a layer add up over the depth; this keeps the sum's variance independent of it.
        layers = config.text.layers if name.startswith("language_model") else config.num_executed_vision_layers
        return unit / math.sqrt(2 * layers)
    return unit


def synthetic_tensor(config: LlavaConfig, name: str, seed: int = 0) -> Tensor:
    """float32 tensor of a canonical name; KeyError if the model has no such tensor."""
    return _make(config, name, state_shapes(config)[name], seed)


def _make(config: LlavaConfig, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    if name == "lm_head.weight" and config.text.tied_embeddings:
        name = "language_model.embed_tokens.weight"
    generator = _generator(seed, name)
    if "norm" in name and name.endswith(".weight"):
        return torch.from_numpy(_norm_gain(generator, shape[0]))
    values = generator.standard_normal(shape, dtype=np.float32)
    values *= np.float32(_std(config, name, shape))
    return torch.from_numpy(values)


def synthetic_layer(config: LlavaConfig, index: int, seed: int = 0) -> dict[str, Tensor]:
    """Tensors `language_model.layers.<index>.*` of decoder layer `index`, float32, as in `synthetic_state`."""
    return {name: _make(config, name, shape, seed) for name, shape in text_layer_shapes(config.text, index).items()}


def synthetic_state(config: LlavaConfig, seed: int = 0) -> dict[str, Tensor]:
    """Every tensor, float32 (28 GB for 7B: use `synthetic_layer` there)."""
    return SyntheticCheckpoint(config, seed).state()


class SyntheticCheckpoint(Checkpoint):
    """Random weights behind the interface of a checkpoint."""

    def __init__(self, config: LlavaConfig, seed: int = 0) -> None:
        super().__init__(config, f"synthetic {config.name}")
        self.seed = seed

    def _fetch(self, name: str) -> Tensor:
        return _make(self.config, name, self.shapes[name], self.seed)
