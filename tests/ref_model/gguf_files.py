"""Small GGUF files, written as llama.cpp's converters write them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from ref_model.checkpoints.gguf_file import _LEAVES
from ref_model.config import TextConfig, VisionConfig

_TOP = {"language_model.embed_tokens": "token_embd", "language_model.norm": "output_norm", "lm_head": "output"}
_LEAF = {canonical: stored for stored, canonical in _LEAVES.items()}
_TOWER = {
    "embeddings.class_embedding": "v.class_embd",
    "embeddings.patch_embedding.weight": "v.patch_embd.weight",
    "embeddings.position_embedding.weight": "v.position_embd.weight",
    "pre_layrnorm.weight": "v.pre_ln.weight",
    "pre_layrnorm.bias": "v.pre_ln.bias",
}
_BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
}


def interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of q and k."""
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def add(writer: gguf.GGUFWriter, values: Mapping[str, Any]) -> None:
    """Metadata by the type of each Python value."""
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def text_name(name: str) -> str:
    stem, _, part = name.rpartition(".")
    return f"{_TOP.get(stem) or f'blk.{stem.split(chr(46))[2]}.{_LEAF[stem.split(chr(46), 3)[3]]}'}.{part}"


def write_text(
    path: Path,
    text: TextConfig,
    state: Mapping[str, torch.Tensor],
    more: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    architecture: str = "llama",
    split: int = 0,
) -> None:
    """A language model; more: metadata over the usual; split: tensors a part."""
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=split)
    usual = {
        "block_count": text.layers,
        "context_length": text.context,
        "embedding_length": text.hidden,
        "feed_forward_length": text.ffn,
        "attention.head_count": text.heads,
        "attention.head_count_kv": text.kv_heads,
        "attention.layer_norm_rms_epsilon": text.rms_eps,
        "vocab_size": text.vocab,
        "rope.freq_base": text.rope_theta,
        "rope.dimension_count": text.head_dim,
    }
    add(writer, {f"{architecture}.{key}": value for key, value in usual.items()} | dict(more or {}))
    for name, tensor in state.items():
        values = tensor.numpy()
        heads = {"q_proj": text.heads, "k_proj": text.kv_heads}.get(name.split(".")[-2])
        if heads is not None and architecture == "llama":
            values = interleaved(values, heads)
        writer.add_tensor(text_name(name), np.ascontiguousarray(values))
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    finish(writer)


def write_mmproj(
    path: Path,
    vision: VisionConfig,
    state: Mapping[str, torch.Tensor],
    legacy: bool = True,
    more: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Tower and projector; legacy: the feed-forward's names the wrong way round, as most files have them."""
    writer = gguf.GGUFWriter(path, "clip")
    add(
        writer,
        {
            "clip.has_text_encoder": False,
            "clip.has_vision_encoder": True,
            "clip.has_llava_projector": True,
            "clip.projector_type": "mlp",
            "clip.use_gelu": vision.activation == "gelu",
            "clip.vision.image_size": vision.image_size,
            "clip.vision.patch_size": vision.patch_size,
            "clip.vision.embedding_length": vision.hidden,
            "clip.vision.feed_forward_length": vision.ffn,
            "clip.vision.projection_dim": 768,
            "clip.vision.attention.head_count": vision.heads,
            "clip.vision.attention.layer_norm_epsilon": vision.ln_eps,
            "clip.vision.block_count": vision.num_executed_vision_layers,
            "clip.vision.image_mean": list(vision.pixel_mean),
            "clip.vision.image_std": list(vision.pixel_std),
        }
        | dict(more or {}),
    )
    feed_forward = (
        {"mlp.fc1": "ffn_down", "mlp.fc2": "ffn_up"} if legacy else {"mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down"}
    )
    for name, tensor in state.items():
        writer.add_tensor(_vision_name(name, feed_forward), np.ascontiguousarray(tensor.numpy()))
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    finish(writer)


def _vision_name(name: str, feed_forward: Mapping[str, str]) -> str:
    half, _, rest = name.partition(".")
    if half == "multi_modal_projector":
        return rest.replace("linear_1", "mm.0").replace("linear_2", "mm.2")
    if rest in _TOWER:
        return _TOWER[rest]
    _, _, index, leaf = rest.split(".", 3)
    path, _, part = leaf.rpartition(".")
    return f"v.blk.{index}.{(_BLOCK | feed_forward)[path]}.{part}"
