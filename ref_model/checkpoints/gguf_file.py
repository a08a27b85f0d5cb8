"""GGUF files of the llama architecture (llama.cpp), any block format that the `gguf` library dequantises.

llama.cpp interleaves the rotary pairs, so its converter permutes the rows of q and k; they are put back here, as RoPE
in this project is half-split.
"""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from hw.spec.errors import UserError
from ref_model.config import LlavaConfig, TextConfig

from .base import Checkpoint
from .names import EMBEDDING, HEAD

ARCHITECTURES = ("llama", "qwen2")
FLOATS = {"F64", "F32", "F16", "BF16"}
_TOP = {"token_embd.weight": EMBEDDING, "output_norm.weight": "language_model.norm.weight", "output.weight": HEAD}
_LEAVES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def canonical_name(stored: str) -> str | None:
    """Canonical name of a GGUF tensor, None if it has no place in a Llama model."""
    if stored in _TOP:
        return _TOP[stored]
    parts = stored.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LEAVES:
        return f"language_model.layers.{parts[1]}.{_LEAVES[parts[2]]}.{parts[3]}"
    return None


def half_split_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's permutation of q or k: within a head, rows (2i, 2i+1) go to (i, i + head_dim/2)."""
    pairs = weight.reshape(heads, -1, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def open_reader(path: Path) -> gguf.GGUFReader:
    """The library's reader; UserError if `path` is not a complete GGUF file."""
    try:
        return gguf.GGUFReader(path)
    except FileNotFoundError:
        raise UserError(f"no file {path}: give the path of a GGUF file") from None
    except (ValueError, KeyError, IndexError, OSError, OverflowError, struct.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a complete GGUF file ({error}): download it again") from error


def metadata(reader: gguf.GGUFReader, key: str, default: Any = None) -> Any:
    """One metadata value as a Python object, `default` if the key is absent."""
    field = reader.get_field(key)
    return default if field is None else field.contents()


def _config(reader: gguf.GGUFReader, path: Path) -> LlavaConfig:
    architecture = metadata(reader, "general.architecture")
    if architecture not in ARCHITECTURES:
        raise UserError(f"{path}: architecture is {architecture!r}, supported are {', '.join(ARCHITECTURES)}: "
                        "choose another model")

    def value(key: str, default: float | None = None) -> Any:
        found = metadata(reader, f"{architecture}.{key}", default)
        if not isinstance(found, int | float):
            raise UserError(f"{path}: metadata {architecture}.{key} is {found!r}, a number is needed: "
                            "convert the model again")
        return found

    scaling = metadata(reader, f"{architecture}.rope.scaling.type", "none")
    if scaling != "none":
        raise UserError(f"{path}: RoPE scaling is {scaling!r}, GGUF files are supported without: "
                        "use the safetensors checkpoint")
    if metadata(reader, f"{architecture}.expert_count", 0):
        raise UserError(f"{path} is a mixture of experts, which is not supported: choose a dense model")
    names = {tensor.name for tensor in reader.tensors}
    hidden, heads = value("embedding_length"), value("attention.head_count")
    text = TextConfig(
        hidden=hidden,
        layers=value("block_count"),
        heads=heads,
        kv_heads=value("attention.head_count_kv", heads),
        head_dim=value("attention.key_length", value("rope.dimension_count", hidden // heads)),
        ffn=value("feed_forward_length"),
        vocab=metadata(reader, f"{architecture}.vocab_size") or len(metadata(reader, "tokenizer.ggml.tokens", [])),
        rope_theta=float(value("rope.freq_base", 10000.0)),
        # Stored in single precision: the shortest decimal that rounds to it is what the model's author wrote.
        rms_eps=float(str(np.float32(value("attention.layer_norm_rms_epsilon")))),
        context=value("context_length"),
        tied_embeddings="output.weight" not in names,
        qkv_bias="blk.0.attn_q.bias" in names,
    )
    return LlavaConfig(name=path.stem, text=text)


class GgufCheckpoint(Checkpoint):
    """A GGUF file; tensors come dequantised, float32 (F16 as float16)."""

    def __init__(self, path: Path) -> None:
        reader = open_reader(path)
        super().__init__(_config(reader, path), str(path))
        self._interleaved = metadata(reader, "general.architecture") == "llama"
        self._stored: dict[str, gguf.ReaderTensor] = {}
        for tensor in reader.tensors:
            name = canonical_name(tensor.name)
            if name not in self.shapes:
                raise UserError(f"{path}: tensor {tensor.name} has no place in a Llama model: "
                                "this architecture is not supported")
            self._stored[name] = tensor
        types = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}
        self.quantised = "+".join(sorted(types - FLOATS))

    def _fetch(self, name: str) -> Tensor | None:
        if name not in self._stored:
            return None
        stored = self._stored[name]
        try:
            values = gguf.quants.dequantize(stored.data, stored.tensor_type)
            if self._interleaved and ".q_proj." in name:
                values = half_split_rows(values, self.config.text.heads)
            elif self._interleaved and ".k_proj." in name:
                values = half_split_rows(values, self.config.text.kv_heads)
        except NotImplementedError:
            raise UserError(f"{self.origin}: {stored.name} is in format {stored.tensor_type.name}, which the gguf "
                            "library does not dequantise: choose another quantisation of the model") from None
        except ValueError as error:
            raise UserError(f"{self.origin}: {stored.name} of shape {list(stored.shape)} does not fit the model "
                            f"({error}): download it again") from error
        # A copy: F32 tensors are read-only views of the mapped file, which PyTorch has no notion of.
        return torch.from_numpy(np.array(values))
