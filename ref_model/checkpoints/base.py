"""What every kind of checkpoint offers: a configuration, and tensors by canonical name, read one at a time."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from hw.spec.errors import UserError
from ref_model.config import LlavaConfig

from .names import EMBEDDING, HEAD, Shapes, state_shapes

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Checkpoint(ABC):
    """Weights of one model, read lazily so that a 7B model can be processed layer by layer.

    `config`: the model; `shapes`: canonical name -> shape of everything `read` answers to; `origin`: what to call it in
    messages; `quantised`: how its linears come quantised, such as "Q4_1", empty for floating point.
    """

    quantised = ""
    _tie_checked = False

    def __init__(self, config: LlavaConfig, origin: str) -> None:
        self.config = config
        self.origin = origin
        self.shapes: Shapes = state_shapes(config)

    @abstractmethod
    def _fetch(self, name: str) -> Tensor | None:
        """The stored tensor of a canonical name, in any floating type; None if there is none."""

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor by canonical name, converted to `dtype` (None: as stored).

        UserError if it is missing, not finite, or if its shape is not the configuration's.
        """
        if name == HEAD:
            self._check_tie()
        stored_name = EMBEDDING if name == HEAD and self.config.text.tied_embeddings else name
        tensor = self._fetch(stored_name)
        if tensor is None:
            raise UserError(f"{self.origin} has no tensor {stored_name}: give a complete {self.config.name} checkpoint")
        if tuple(tensor.shape) != self.shapes[name]:
            raise UserError(
                f"{self.origin}: {stored_name} has shape {list(tensor.shape)}, the configuration says "
                f"{list(self.shapes[name])}: use the configuration that came with these weights"
            )
        if tensor.dtype not in DTYPES:
            raise UserError(
                f"{self.origin}: {stored_name} holds {tensor.dtype} values, floating point of 16 bits or "
                "more is needed: give the checkpoint from before quantisation"
            )
        if not tensor.isfinite().all():
            raise UserError(f"{self.origin}: {stored_name} holds infinities or NaN: download the checkpoint again")
        return tensor if dtype is None else tensor.to(dtype)

    def _check_tie(self) -> None:
        """A head stored beside the embedding that it is tied to must equal it: else nobody knows which one is meant."""
        if self._tie_checked or not self.config.text.tied_embeddings:
            return
        head, embedding = self._fetch(HEAD), self._fetch(EMBEDDING)
        if head is not None and embedding is not None and not torch.equal(head, embedding):
            raise UserError(
                f"{self.origin}: the configuration ties {HEAD} to {EMBEDDING}, but both are stored and "
                "differ: set tie_word_embeddings to false if the head is meant"
            )
        self._tie_checked = True

    def read_layer(self, prefix: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """All tensors whose canonical names start with `prefix`, for example `language_model.layers.3.`."""
        return {name: self.read(name, dtype) for name in self.shapes if name.startswith(prefix)}

    def state(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Every tensor. A tied `lm_head.weight` is the same object as the embedding table."""
        state = {name: self.read(name, dtype) for name in self.shapes if name != HEAD}
        self._check_tie()
        state[HEAD] = state[EMBEDDING] if self.config.text.tied_embeddings else self.read(HEAD, dtype)
        return state
