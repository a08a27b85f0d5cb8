"""What calibration measures: inputs and output gradients of every linear layer of the float model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ref_model.checkpoints.base import Checkpoint
from ref_model.modules import LlavaModel


@dataclass
class Importance:
    """Mean squares of a linear layer: gradient float32[out] of the text's negative log-likelihood by its outputs,
    energy float32[in] of its inputs, tokens weighted by their gradient. Their product approximates the loss's curvature
    by a weight (K-FAC's diagonal)."""

    energy: np.ndarray
    gradient: np.ndarray


def importance(
    checkpoint: Checkpoint, ids: Sequence[int], state: Mapping[str, Tensor] | None = None
) -> dict[str, Importance]:
    """Importance of every linear layer of the language model on a text of token ids, by canonical module name.

    state: tensors of the float model instead of the checkpoint's.
    """
    model = LlavaModel.from_state(checkpoint.config, checkpoint.state(torch.float32) if state is None else state)
    found: dict[str, Importance] = {}

    def watch(name: str):
        def hook(_module, args: tuple[Tensor], output: Tensor) -> None:
            def gradient(g: Tensor) -> None:
                token = g.square().mean(1)
                energy = token @ args[0].detach().square() / token.sum()
                found[name] = Importance(energy.numpy(), g.square().mean(0).numpy())

            output.register_hook(gradient)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith(("vision", "multi")):
            module.register_forward_hook(watch(name))
    tokens = torch.as_tensor(list(ids)[: checkpoint.config.text.context])
    with torch.enable_grad():
        x = model.embed(tokens[:-1]).requires_grad_()
        hidden, _ = model.language_model(x, torch.arange(len(x)), model.language_model.empty_cache())
        functional.cross_entropy(model.lm_head(hidden), tokens[1:], reduction="sum").backward()
    return found
