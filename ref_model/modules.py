"""LLaVA in plain PyTorch: the float reference.

There is no batch dimension: activations are `[seq, width]`, attention heads `[heads, seq, head_dim]`. Every shape that
depends on the prompt (`seq`, `cache`) may be symbolic, so each module goes through `torch.export` with
`Dim("seq", min=1, max=4096)` and `Dim("cache", min=0, max=4095)`. Parameter names are the canonical state names of
`ref_model.checkpoints.names`. Build under `torch.device("meta")` to have shapes without memory.

Sources: Touvron et al. 2023 (LLaMA), Radford et al. 2021 (CLIP), Liu et al. 2023 (LLaVA-1.5); transformers for
the details.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hw.spec.errors import UserError

from .config import LlavaConfig
from .decoder import KvCache, LlamaDecoderLayer, LlamaModel, RMSNorm, apply_rope, causal_mask, rope_tables
from .preprocess import patches as image_patches
from .vision import Projector, VisionLayer, VisionTower

__all__ = [
    "KvCache",
    "LlamaDecoderLayer",
    "LlamaModel",
    "LlavaModel",
    "Projector",
    "RMSNorm",
    "VisionLayer",
    "VisionTower",
    "apply_rope",
    "causal_mask",
    "rope_tables",
]

Order = Sequence[int] | np.ndarray | Tensor
"""Rows of [tile features; newline token], one a visual token."""


class LlavaModel(nn.Module):
    """The whole model; `vision_tower` and `multi_modal_projector` are absent when the configuration has no vision."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.config = config
        if config.vision is not None:
            self.vision_tower = VisionTower(config.vision)
            self.multi_modal_projector = Projector(config.vision.hidden, config.text.hidden, config.projector_bias)
        if config.pinpoints:
            self.image_newline = nn.Parameter(torch.zeros(config.text.hidden))
        self.language_model = LlamaModel(config.text)
        self.lm_head = nn.Linear(config.text.hidden, config.text.vocab, bias=False)
        if config.text.tied_embeddings:
            self.lm_head.weight = self.language_model.embed_tokens.weight

    @classmethod
    def from_state(cls, config: LlavaConfig, state: Mapping[str, Tensor]) -> "LlavaModel":
        """A model in evaluation mode that shares the tensors of `state` (canonical names), without copying them."""
        with torch.device("meta"):
            model = cls(config)
        model.load_state_dict(dict(state), strict=True, assign=True)
        return model.eval().requires_grad_(False)

    def encode_images(self, pixels: Tensor, order: Order | None = None) -> Tensor:
        """Images float[3, H, W] or float[n_images, 3, H, W] -> visual tokens float[n_images * n_features, hidden].

        With pinpoints the images are tiles (`ref_model.anyres.tiles`) and `order` (`ref_model.anyres.layout`) picks
        float[len(order), hidden] from their features and the newline token.
        """
        vision = self.config.vision
        if vision is None:
            raise UserError(f"model {self.config.name} has no vision tower: leave the image out")
        images = pixels[None] if pixels.ndim == 3 else pixels
        if images.shape[1:] != (3, vision.image_size, vision.image_size):
            raise UserError(
                f"image has shape {list(images.shape[1:])}, the tower takes {vision.image_size} x "
                f"{vision.image_size} pixels in 3 channels: use ref_model.preprocess.preprocess"
            )
        if (order is None) == bool(self.config.pinpoints):
            raise UserError(
                f"model {self.config.name} takes images {'as tiles with' if order is None else 'without'} "
                "an order: see ref_model.anyres"
            )
        features = [
            self.multi_modal_projector(self.vision_tower(image_patches(image, vision.patch_size))) for image in images
        ]
        if order is None:
            return torch.cat(features)
        return torch.cat([*features, self.image_newline[None]])[torch.as_tensor(order)]

    def embed(self, input_ids: Tensor, pixels: Tensor | None = None, order: Order | None = None) -> Tensor:
        """Token embeddings float[seq, hidden] of int64[seq], visual tokens put in order at the image token's places.

        `input_ids` holds the image token once per visual token (`ref_model.tokenizer.expand_image_tokens`).
        """
        places = input_ids == (-1 if self.config.image_token_index is None else self.config.image_token_index)
        # The image token may lie outside the table: vocabularies of 32000 with token 32000 exist.
        text_ids = input_ids.masked_fill(places, 0)
        if len(input_ids) > 0 and not 0 <= int(text_ids.min()) <= int(text_ids.max()) < self.config.text.vocab:
            raise UserError(
                f"token ids span {int(text_ids.min())}..{int(text_ids.max())}, the vocabulary has "
                f"{self.config.text.vocab} tokens: use this model's own tokenizer"
            )
        x = self.language_model.embed_tokens(text_ids)
        n_features = 0 if pixels is None else (1 if pixels.ndim == 3 else len(pixels)) * self.config.n_visual_tokens
        n_features = n_features if order is None else len(order)
        if int(places.sum()) != n_features:
            raise UserError(
                f"the prompt has {int(places.sum())} image tokens, the images give {n_features}: "
                "expand each <image> to one token per visual token"
            )
        if pixels is not None:
            x = x.masked_scatter(places[:, None], self.encode_images(pixels, order).to(x.dtype))
        return x

    def prefill(
        self, input_ids: Sequence[int] | Tensor, pixels: Tensor | None = None, order: Order | None = None
    ) -> tuple[Tensor, KvCache]:
        """Run a whole prompt int64[seq]; returns (logits float[seq, vocab], cache)."""
        ids = torch.as_tensor(input_ids, dtype=torch.int64)
        self._require_positions(0, len(ids))
        hidden, cache = self.language_model(
            self.embed(ids, pixels, order), torch.arange(len(ids)), self.language_model.empty_cache()
        )
        return self.lm_head(hidden), cache

    def decode(
        self, input_ids: Sequence[int] | Tensor, cache: KvCache, position: int | None = None
    ) -> tuple[Tensor, KvCache]:
        """Run further text tokens int64[seq] (usually one) after `cache`; returns (logits float[seq, vocab], cache).

        `position` is the first token's; None continues after the cache, which holds only if no token was pruned.
        """
        ids = torch.as_tensor(input_ids, dtype=torch.int64)
        start = cache[0][0].shape[1] if position is None else position
        self._require_positions(start, len(ids))
        hidden, cache = self.language_model(self.embed(ids), torch.arange(start, start + len(ids)), cache)
        return self.lm_head(hidden), cache

    def generate(
        self,
        input_ids: Sequence[int] | Tensor,
        n_new: int,
        pixels: Tensor | None = None,
        eos_id: int | None = None,
        order: Order | None = None,
    ) -> list[int]:
        """Greedy continuation: at most `n_new` token ids, `eos_id` included when it ends the text."""
        logits, cache = self.prefill(input_ids, pixels, order)
        tokens: list[int] = []
        while len(tokens) < n_new:
            tokens.append(int(logits[-1].argmax()))
            if tokens[-1] == eos_id or len(tokens) == n_new:
                break
            logits, cache = self.decode(tokens[-1:], cache)
        return tokens

    def _require_positions(self, start: int, count: int) -> None:
        if count == 0:
            raise UserError("the prompt is empty, at least 1 token is needed: give some text")
        if start + count > self.config.text.context:
            raise UserError(
                f"the text reaches {start + count} tokens, {self.config.name} has a context of "
                f"{self.config.text.context}: shorten the prompt or generate less"
            )
