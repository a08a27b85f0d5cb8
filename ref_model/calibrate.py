"""Activation statistics of the float model on a text, and the smoothing they allow.

Smoothing (Xiao et al. 2022, SmoothQuant) moves a channel's magnitude from activations into weights:
x / s before, W * s after a linear layer. Here 1/s is folded into a norm's gain or the up projection's rows,
so the machine does no extra work.
"""

from collections.abc import Callable, Sequence
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
MASSIVE = 8.0
"""A token is massive at that many times the median token's largest activation."""
CALIBRATION_TOKENS = 15360
"""Tokens that compression measures on at most; the shipped texts (docs/calibration.md) have fewer of SmolLM2's."""


def calibration_text() -> str:
    """The text that ships with the project (written for it)."""
    return (Path(__file__).parent / "data" / "calibration.txt").read_text()


def calibration_ids(encode: Callable[[str], list[int]]) -> list[int]:
    """Tokens for compression: the shipped text, then excerpts of public-domain books and speeches.

    encode: the model's tokenizer; at most CALIBRATION_TOKENS. Longer than a context is no harm: windows are shorter.
    """
    books = (Path(__file__).parent / "data" / "calibration_books.txt").read_text()
    return encode(calibration_text() + "\n\n" + books)[:CALIBRATION_TOKENS]


def activation_maxima(checkpoint: Checkpoint, ids: Sequence[int], typical: bool = False) -> Maxima:
    """Run the float language model over token ids and record what enters its linear layers.

    typical: leave out tokens with massive activations (the first one: Sun et al. 2024), which are quantised with a
    scale of their own and would hide all other tokens.
    """
    model = LlavaModel.from_state(checkpoint.config, checkpoint.state(torch.float32))
    maxima: Maxima = {}

    def record(name):
        def hook(_module, args):
            magnitudes = args[0].abs()
            if typical:
                peaks = magnitudes.amax(1)
                magnitudes = magnitudes[peaks <= MASSIVE * peaks.median()]
            maxima[name] = magnitudes.amax(0).numpy()

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


def smoothed_layer(
    checkpoint: Checkpoint, index: int, maxima: Maxima | None, share: float = SMOOTHING
) -> dict[str, np.ndarray]:
    """Float tensors of decoder layer `index` by leaf name, float32, smoothed where `maxima` are given."""
    prefix = f"language_model.layers.{index}."
    state = {
        name.removeprefix(prefix): tensor.numpy()
        for name, tensor in checkpoint.read_layer(prefix, torch.float32).items()
    }
    if maxima is None:
        return state
    qkv, gate, up, down = (
        [f"self_attn.{p}_proj.weight" for p in "qkv"],
        *(f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")),
    )
    s = smoothing(maxima[prefix + "self_attn.q_proj"], [state[name] for name in qkv], share)
    _fold(state, "input_layernorm.weight", qkv, s)
    s = smoothing(maxima[prefix + "mlp.down_proj"], [state[down]], share)
    state[up], state[down] = state[up] / s[:, None], state[down] * s
    s = smoothing(maxima[prefix + "mlp.gate_proj"], [state[gate], state[up]], share)
    _fold(state, "post_attention_layernorm.weight", [gate, up], s)
    return state


def _fold(state: dict[str, np.ndarray], gain: str, weights: Sequence[str], s: np.ndarray) -> None:
    """Divide a norm's gain by s[in] and multiply the columns of the weights behind it."""
    state[gain] = state[gain] / s
    for name in weights:
        state[name] = state[name] * s
