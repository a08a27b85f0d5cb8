"""What calibration measures for the bit allocator: how much the loss depends on every weight."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ref_model.checkpoints.base import Checkpoint
from ref_model.modules import LlavaModel

WINDOWS = 24
WINDOW_TOKENS = 64


def importance(checkpoint: Checkpoint, ids: Sequence[int],
               state: Mapping[str, Tensor] | None = None) -> dict[str, np.ndarray]:
    """float32[out, in] by canonical module name, for the linears of the language model without a tied head: the Fisher
    information's diagonal, squared gradients of the negative log-likelihood of stretches spread over the text.

    A stretch's gradient is summed before it is squared: an error of v or of the down projection has the same direction
    for many tokens, which squares of single tokens' gradients do not show.

    state: tensors of the float model instead of the checkpoint's.
    """
    model = LlavaModel.from_state(checkpoint.config, checkpoint.state(torch.float32) if state is None else state)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
               and not name.startswith(("vision", "multi"))
               and not (name == "lm_head" and checkpoint.config.text.tied_embeddings)}
    found = {name: torch.zeros_like(module.weight) for name, module in linears.items()}
    for module in linears.values():
        module.weight.requires_grad_(True)
    for start in np.linspace(0, max(0, len(ids) - WINDOW_TOKENS), WINDOWS).astype(int):
        tokens = torch.as_tensor(list(ids[start:start + WINDOW_TOKENS]))
        with torch.enable_grad():
            hidden, _ = model.language_model(model.embed(tokens[:-1]), torch.arange(len(tokens) - 1),
                                             model.language_model.empty_cache())
            functional.cross_entropy(model.lm_head(hidden), tokens[1:], reduction="sum").backward()
        for name, module in linears.items():
            assert module.weight.grad is not None
            found[name].addcmul_(module.weight.grad, module.weight.grad)
            module.weight.grad = None
    return {name: total.numpy() for name, total in found.items()}
