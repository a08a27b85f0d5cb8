"""Tiny random LLaVA folders, written by transformers itself (model, image processor, tokenizer)."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
import torch
from PIL import Image
from tokenizers import decoders, models, pre_tokenizers, processors

os.environ["HF_HUB_OFFLINE"] = "1"

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    MistralConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.utils import logging

logging.disable_progress_bar()
PATCH = 14
BOS, EOS, IMAGE, PAD = "<s>", "</s>", "<image>", "<pad>"


class Written(NamedTuple):
    """A folder and what transformers itself makes of it."""

    folder: Path
    model: torch.nn.Module
    processor: LlavaProcessor | LlavaNextProcessor

    def inputs(self, image: Image.Image | None, prompt: str) -> dict[str, torch.Tensor]:
        return dict(self.processor(images=image, text=prompt, return_tensors="pt"))

    @torch.no_grad()
    def logits(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.model(**inputs).logits[0]

    def greedy(self, inputs: dict[str, torch.Tensor], n_new: int) -> list[int]:
        made = self.model.generate(**inputs, do_sample=False, max_new_tokens=n_new)
        return made[0, inputs["input_ids"].shape[1] :].tolist()


def photo(width: int, height: int) -> Image.Image:
    """Smooth colours, so that scaling matters."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin(7 * x + 3 * y), np.cos(11 * y - 2 * x), np.sin(5 * x * y + 1)]
    return Image.fromarray((np.stack(waves, axis=2) * 120 + 128).astype(np.uint8))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes, then the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([BOS, EOS, IMAGE, PAD])
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 256)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=PAD)


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights that keep activations near unit size; as initialised they would all but vanish."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1 and "embed" not in name.rsplit(".", 2)[-2]:
            noise *= (2.0 if "lm_head" in name else 1.2) / tensor[0].numel() ** 0.5
        elif "norm" in name:
            noise = noise * 0.2 + ("weight" in name)
        else:
            noise *= 0.1 if name.endswith("bias") else 0.5
        tensor.data = noise


def text_config(family: type = LlamaConfig, **other) -> LlamaConfig | MistralConfig:
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 176,
        "vocab_size": 260,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
    }
    return family(**(sizes | {"bos_token_id": 256, "eos_token_id": 257} | other))


def vision_config(image_size: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=80,
        image_size=image_size,
        patch_size=PATCH,
    )


def _write(folder: Path, model: torch.nn.Module, processor, seed: int) -> Written:
    randomise(model, seed)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return Written(folder, model, processor)


def write_llava(folder: Path, image_size: int = 56, seed: int = 0, strategy: str = "default", **text) -> Written:
    """LLaVA-1.5 with 16 visual tokens (17 with strategy "full")."""
    config = LlavaConfig(
        vision_config=vision_config(image_size),
        text_config=text_config(**text),
        image_token_index=258,
        vision_feature_select_strategy=strategy,
        image_seq_length=(image_size // PATCH) ** 2,
    )
    images = CLIPImageProcessorPil(
        size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}
    )
    processor = LlavaProcessor(
        images,
        byte_tokenizer(),
        patch_size=PATCH,
        num_additional_image_tokens=1,
        vision_feature_select_strategy=strategy,
    )
    return _write(folder, LlavaForConditionalGeneration(config), processor, seed)


def write_llava_next(folder: Path, image_size: int = 28, seed: int = 0, **text) -> Written:
    """LLaVA-NeXT with tiles of 4 patches and the published pinpoints scaled down."""
    s = image_size
    pinpoints = [[s, 2 * s], [2 * s, s], [2 * s, 2 * s], [3 * s, s], [s, 3 * s]]
    config = LlavaNextConfig(
        vision_config=vision_config(s),
        text_config=text_config(**text),
        image_token_index=258,
        image_grid_pinpoints=pinpoints,
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": s}, crop_size={"height": s, "width": s}, image_grid_pinpoints=pinpoints
    )
    processor = LlavaNextProcessor(
        images,
        byte_tokenizer(),
        patch_size=PATCH,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
    )
    return _write(folder, LlavaNextForConditionalGeneration(config), processor, seed)
