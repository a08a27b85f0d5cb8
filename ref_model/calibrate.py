"""Activation statistics of the float model on a text, and the smoothing they allow.

Smoothing (Xiao et al. 2022, SmoothQuant) moves a channel's magnitude from activations into weights:
x / s before, W * s after a linear layer. Here 1/s is folded into a norm's gain or the up projection's rows,
so the machine does no extra work.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ref_model.checkpoints import Checkpoint
from ref_model.modules import LlavaModel

Maxima = dict[str, np.ndarray]
"""Canonical module name -> float32[in] largest magnitude of each input channel of that linear layer."""
SMOOTHING = 0.5
"""Share of the activations' magnitude that moves; chosen on SmolLM2-135M, see docs/decisions.md."""


def calibration_text() -> str:
    """The text that ships with the project (written for it)."""
    return (Path(__file__).parent / "data" / "calibration.txt").read_text()


def activation_maxima(checkpoint: Checkpoint, ids: Sequence[int]) -> Maxima:
    """Run the float language model over token ids and record what enters its linear layers."""
    model = LlavaModel.from_state(checkpoint.config, checkpoint.state(torch.float32))
    maxima: Maxima = {}

    def record(name):
        def hook(_module, args):
            maxima[name] = args[0].abs().amax(0).numpy()
        return hook

    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(record(name))
        model.prefill(ids)
    return maxima


def smoothing(activations: np.ndarray, weights: Sequence[np.ndarray], share: float = SMOOTHING) -> np.ndarray:
    """Divisors s float32[in] of the activations for float[out, in] weights that share them; geometric mean 1."""
    largest = np.maximum(np.max([np.abs(w).max(axis=0) for w in weights], axis=0), 1e-4)
    s = np.maximum(activations, 1e-4) ** share / largest ** (1 - share)
    return (s / np.exp(np.log(s).mean())).astype(np.float32)
