"""Scaling of input channels before rounding, as in AWQ (Lin et al. 2023): strong inputs get finer weights.

Columns of the weights are multiplied by s = rms(input)^SHARE and what makes the inputs is divided by it: a norm's gain,
the rows of the up projection, the rows of v (one s for all query heads that read a channel). The machine has no extra
work. The weights' own magnitudes play no part: dividing by them, as SmoothQuant does, leaves columns of even size and
with them inputs that are harder to round than before.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ref_model.calibrate import MASSIVE
from ref_model.checkpoints.base import Checkpoint
from ref_model.config import TextConfig
from ref_model.modules import LlavaModel

SHARE = 0.3
FAINT = 1e-3
"""Smallest rms of an input, of the layer's mean."""


def input_rms(checkpoint: Checkpoint, ids: Sequence[int]) -> dict[str, np.ndarray]:
    """float32[in] by canonical name: root mean squares of what enters the decoder's linears in the float model.

    Tokens with massive activations (the first one: Sun et al. 2024) are quantised with a scale of their own and would
    hide all others: they are left out.
    """
    model = LlavaModel.from_state(checkpoint.config, checkpoint.state(torch.float32))
    found: dict[str, np.ndarray] = {}

    def record(name: str):
        def hook(_module, args: tuple[Tensor]) -> None:
            peaks = args[0].abs().amax(1)
            rms = args[0][peaks <= MASSIVE * peaks.median()].square().mean(0).sqrt()
            found[name] = rms.clamp(min=FAINT * float(rms.mean()) + 1e-30).numpy()

        return hook

    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and name.startswith("language_model.layers."):
                module.register_forward_pre_hook(record(name))
        model.prefill(ids)
    return found


def scaled_layer(checkpoint: Checkpoint, index: int, rms: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Float tensors of decoder layer `index` by leaf name, float32, input channels scaled; its function stays."""
    prefix, config = f"language_model.layers.{index}.", checkpoint.config.text
    state = {
        name.removeprefix(prefix): tensor.numpy()
        for name, tensor in checkpoint.read_layer(prefix, torch.float32).items()
    }
    attention, gated = [f"self_attn.{p}_proj" for p in "qkv"], ["mlp.gate_proj", "mlp.up_proj"]
    outputs, values = _shared(_divisor(rms[prefix + "self_attn.o_proj"]), config)
    down = _divisor(rms[prefix + "mlp.down_proj"])
    normed, mixed = _divisor(rms[prefix + attention[0]]), _divisor(rms[prefix + gated[0]])
    columns = {"self_attn.o_proj": outputs, "mlp.down_proj": down}
    columns |= dict.fromkeys(attention, normed) | dict.fromkeys(gated, mixed)
    for leaf, s in columns.items():
        state[f"{leaf}.weight"] = state[f"{leaf}.weight"] * s
    rows = {
        "input_layernorm.weight": normed,
        "post_attention_layernorm.weight": mixed,
        "mlp.up_proj.weight": down[:, None],
        "self_attn.v_proj.weight": values[:, None],
        "self_attn.v_proj.bias": values,
    }
    return {leaf: value / rows[leaf] if leaf in rows else value for leaf, value in state.items()}


def _divisor(rms: np.ndarray) -> np.ndarray:
    """s[in] with geometric mean 1."""
    logs = SHARE * np.log(rms)
    return np.exp(logs - logs.mean()).astype(np.float32)


def _shared(s: np.ndarray, config: TextConfig) -> tuple[np.ndarray, np.ndarray]:
    """(s of the output projection's inputs, s of v's rows): one for all query heads of a key and value head."""
    heads = s.reshape(config.kv_heads, -1, config.head_dim)
    mean = np.exp(np.log(heads).mean(1, keepdims=True)).astype(np.float32)
    return np.broadcast_to(mean, heads.shape).reshape(-1), mean.reshape(-1)
