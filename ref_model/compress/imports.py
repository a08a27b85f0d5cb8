"""Weights that come quantised (GGUF, GPTQ, AWQ): what quantising them again for the machine costs."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ref_model.calibrate import Maxima, smoothed_layer
from ref_model.checkpoints.base import Checkpoint
from ref_model.decoder import paired_rows

from .recipe import Compressor


@dataclass(frozen=True)
class RequantisationError:
    """Relative Frobenius error ||W - W'|| / ||W|| by canonical module name, with the worst and the mean of them."""

    tensors: dict[str, float]

    @property
    def worst(self) -> tuple[str, float]:
        name = max(self.tensors, key=self.tensors.__getitem__)
        return name, self.tensors[name]

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.tensors.values())))


def requantisation_error(
    checkpoint: Checkpoint, compressor: Compressor | None = None, maxima: Maxima | None = None
) -> RequantisationError:
    """Error of every linear of the language model against the checkpoint's dequantised weights.

    Both sides are taken after smoothing, which changes no product. compressor None: dense INT8 by row maxima, smoothed
    where calibration `maxima` are given.
    """
    errors = {}
    for name, weight in _linears(checkpoint, compressor, maxima):
        packed = None if compressor is None else compressor.compress(name, weight)
        if packed is None:
            top = np.maximum(np.abs(weight).max(axis=1, keepdims=True), 1e-30)
            restored = np.rint(weight / top * 127) * top / 127
        else:
            restored = packed[0] * packed[1][:, None]
        errors[name] = float(np.linalg.norm(weight - restored) / max(float(np.linalg.norm(weight)), 1e-30))
    return RequantisationError(errors)


def _linears(
    checkpoint: Checkpoint, compressor: Compressor | None, maxima: Maxima | None
) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float[out, in] as the quantiser sees it) of every linear of the language model."""
    text = checkpoint.config.text
    rows = {
        "self_attn.q_proj": paired_rows(text.heads, text.head_dim),
        "self_attn.k_proj": paired_rows(text.kv_heads, text.head_dim),
    }
    for index in range(text.layers):
        state = smoothed_layer(checkpoint, index, maxima) if compressor is None else compressor.layer(checkpoint, index)
        for leaf, value in state.items():
            path = leaf.removesuffix(".weight")
            if value.ndim == 2:
                yield f"language_model.layers.{index}.{path}", value[rows[path]] if path in rows else value
    yield "lm_head", checkpoint.read("lm_head.weight", torch.float32).numpy()
