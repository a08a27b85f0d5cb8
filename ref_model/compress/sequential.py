"""Layer by layer through the model: each linear layer is quantised for the inputs that it will really get.

The hidden states of the calibration text pass the layers already quantised; within a layer the order is q, k, v, then
o, then gate and up, then down, and last of all the head (GPTQ's "true sequential"). The text also passes the float
layers: weights are first moved towards those that give the float model's outputs for the quantised model's inputs
(quantisation error propagation, Arai and Ichikawa 2025).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ref_model.checkpoints.base import Checkpoint
from ref_model.config import TextConfig
from ref_model.decoder import LlamaDecoderLayer, RMSNorm, paired_rows, rope_tables

from .format import BlockFormat
from .gptq import damped

Packed = tuple[np.ndarray, np.ndarray, BlockFormat]
Quantiser = Callable[[str, np.ndarray, Tensor], Packed | None]
"""(canonical name, float[out, in], hessian float[in, in] of its inputs) -> integers, factors and format."""
WINDOW_TOKENS = 512
CORRECTION = 0.5
"""Share of the error of a layer's inputs that its weights make up for: more would fit the calibration text's noise."""
CORRECTION_DAMPING = 0.03


def machine_rows(config: TextConfig, name: str, n_out: int) -> np.ndarray:
    """Checkpoint's row at each of the machine's rows of a linear layer: rotation pairs are neighbours in q and k."""
    heads = {"q_proj": config.heads, "k_proj": config.kv_heads}.get(name.rpartition(".")[2])
    return np.arange(n_out) if heads is None else paired_rows(heads, config.head_dim)


class Sequential:
    """Quantises decoder layers in order and keeps the results in `packed`, by canonical name."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        ids: Sequence[int],
        layer_state: Callable[[int], dict[str, np.ndarray]],
        quantiser: Quantiser,
    ) -> None:
        self.checkpoint, self.layer_state, self.quantiser = checkpoint, layer_state, quantiser
        self.packed: dict[str, Packed | None] = {}
        self.next_layer = 0
        tokens = torch.as_tensor(list(ids))
        table = checkpoint.read("language_model.embed_tokens.weight", torch.float32)
        self.hidden = [table[part] for part in tokens.split(min(WINDOW_TOKENS, checkpoint.config.text.context))]
        self.exact = list(self.hidden)

    def take(self, name: str) -> Packed | None:
        """Result for a linear of the decoder or for `lm_head`; runs as far as it needs."""
        layers = self.checkpoint.config.text.layers
        index = layers if name == "lm_head" else int(name.split(".")[2])
        with torch.no_grad():
            while self.next_layer < min(index + 1, layers):
                self._layer(self.next_layer)
                self.next_layer += 1
            if name == "lm_head" and name not in self.packed:
                self._head()
        return self.packed[name]

    def _head(self) -> None:
        config = self.checkpoint.config.text
        norm = RMSNorm(config.hidden, config.rms_eps)
        norm.weight = nn.Parameter(self.checkpoint.read("language_model.norm.weight", torch.float32))
        weight = self.checkpoint.read("lm_head.weight", torch.float32).numpy()
        self.packed["lm_head"] = self.quantiser("lm_head", weight, hessian([norm(x) for x in self.hidden]))
        self.hidden = self.exact = []

    def _layer(self, index: int) -> None:
        config, prefix = self.checkpoint.config.text, f"language_model.layers.{index}."
        state = self.layer_state(index)
        layer, exact = _built(config, state), _built(config, state)

        def settle(path: str, leaves: Sequence[str], inputs: list[Tensor], wanted: list[Tensor]) -> None:
            h = hessian(inputs)
            correction = _correction(h, hessian(wanted, inputs))
            for leaf in leaves:
                self._settle(f"{prefix}{path}.{leaf}", getattr(getattr(layer, path), leaf), h, correction)

        normed, wanted = (
            [x.input_layernorm(r) for r in hidden] for x, hidden in ((layer, self.hidden), (exact, self.exact))
        )
        settle("self_attn", ("q_proj", "k_proj", "v_proj"), normed, wanted)
        heads, wanted = self._attend(layer, normed), self._attend(exact, wanted)
        size = [_size(r) for r in self.hidden]
        settle("self_attn", ("o_proj",), _divided(heads, size), _divided(wanted, size))
        self.hidden = _added(self.hidden, heads, layer.self_attn.o_proj)
        self.exact = _added(self.exact, wanted, exact.self_attn.o_proj)
        normed, wanted = (
            [x.post_attention_layernorm(r) for r in hidden] for x, hidden in ((layer, self.hidden), (exact, self.exact))
        )
        settle("mlp", ("gate_proj", "up_proj"), normed, wanted)
        gated, wanted = (
            [functional.silu(x.mlp.gate_proj(r)) * x.mlp.up_proj(r) for r in rows]
            for x, rows in ((layer, normed), (exact, wanted))
        )
        self.exact = _added(self.exact, wanted, exact.mlp.down_proj)
        size = [_size(r) for r in self.exact]
        settle("mlp", ("down_proj",), _divided(gated, size), _divided(wanted, size))
        self.hidden = _added(self.hidden, gated, layer.mlp.down_proj)

    def _settle(self, name: str, module: nn.Linear, h: Tensor, correction: Tensor) -> None:
        """Quantise one linear layer (rows in machine order) and go on with what it became."""
        order = machine_rows(self.checkpoint.config.text, name, module.out_features)
        weight = module.weight + module.weight @ correction
        packed = self.packed[name] = self.quantiser(name, weight.numpy()[order], h)
        if packed is not None:
            module.weight.data[order] = torch.from_numpy((packed[0] * packed[1][:, None]).astype(np.float32))

    def _attend(self, layer: LlamaDecoderLayer, normed: list[Tensor]) -> list[Tensor]:
        """What enters the output projection."""
        attention, config = layer.self_attn, self.checkpoint.config.text
        projection, attention.o_proj = attention.o_proj, nn.Identity()  # type: ignore[assignment]
        empty = torch.zeros(config.kv_heads, 0, config.head_dim)
        heads = []
        for x in normed:
            cos, sin = rope_tables(config, torch.arange(len(x)))
            heads.append(attention(x, cos, sin, empty, empty, None)[0])
        attention.o_proj = projection
        return heads


def _built(config: TextConfig, state: dict[str, np.ndarray]) -> LlamaDecoderLayer:
    with torch.device("meta"):
        layer = LlamaDecoderLayer(config)
    layer.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()}, assign=True)
    return layer.requires_grad_(False)


def _added(residual: list[Tensor], inputs: list[Tensor], projection: nn.Module) -> list[Tensor]:
    return [r + projection(x) for r, x in zip(residual, inputs, strict=True)]


def _size(x: Tensor) -> Tensor:
    """Root mean square of every row of the residual, [n, 1]."""
    return x.square().mean(1, keepdim=True).sqrt()


def _divided(inputs: list[Tensor], size: list[Tensor]) -> list[Tensor]:
    """Inputs[n, in] of a layer that adds to the residual, each row divided by the residual's size[n, 1].

    The next norm makes errors relative to it; tokens with massive activations would otherwise be all that counts.
    """
    return [x / s for x, s in zip(inputs, size, strict=True)]


def _correction(h: Tensor, cross: Tensor) -> Tensor:
    """float[in, in] that takes weights to the change that makes up for inputs that are not the float model's.

    Least squares of (wanted inputs - inputs) by the inputs: (cross - h) h^-1 with cross the mean of wanted^T inputs.
    """
    solved = torch.linalg.solve(damped(h, CORRECTION_DAMPING).double(), (cross - h).T.double()).T
    return CORRECTION * solved.float()


def hessian(left: Sequence[Tensor], right: Sequence[Tensor] | None = None) -> Tensor:
    """float[in, in]: mean of x^T y over the rows of all x[n, in] of `left` and y of `right` (the same if None)."""
    total = torch.zeros(left[0].shape[1], left[0].shape[1])
    for x, y in zip(left, left if right is None else right, strict=True):
        total.addmm_(x.T, y)
    return total / sum(len(x) for x in left)
