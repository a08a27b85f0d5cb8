"""GGUF files of the llama and qwen2 architectures (llama.cpp), any block format that the `gguf` library dequantises.

llama.cpp interleaves the rotary pairs, so its converter permutes the rows of q and k; they are put back here, as RoPE
in this project is half-split.
"""

import re
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
from torch import Tensor

from hw.spec.errors import UserError
from ref_model.config import LlavaConfig, RopeScaling, TextConfig
from ref_model.decoder import frequencies, scaled_frequencies

from .base import Checkpoint
from .gguf_reader import as_torch, dequantised, metadata, number, parts, refuse_unknown
from .names import EMBEDDING, HEAD

ARCHITECTURES = ("llama", "qwen2")
READ = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.dimension_count",
    "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.finetuned", "rope.scaling.original_context_length", "attention.sliding_window", "expert_count",
)  # fmt: skip
"""Keys of the architecture that `_config` reads, or that only say something where one of them does."""
FIXED = {
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.max_alibi_bias": (0,),
    "pooling_type": (0,),
    "attention.clamp_kqv": (0,),
    "logit_scale": (1,),
    "residual_scale": (1,),
    "embedding_scale": (1,),
    "use_parallel_residual": (False,),
    "tensor_data_layout": ("Meta AI original pth",),
    "rope.scaling.attn_factor": (1,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
}
_PART_SUFFIX = re.compile(r"-\d{5}-of-\d{5}$")
ROPE_FACTORS = "rope_freqs.weight"
PUBLISHED_ROPE = {"low": 1.0, "high": 4.0, "original_context": 8192}
"""What every published model with Llama-3 scaling has; see `_rope_scaling`."""
FLOATS = {"F64", "F32", "F16", "BF16"}
_TOP = {"token_embd.weight": EMBEDDING, "output_norm.weight": "language_model.norm.weight", "output.weight": HEAD}
_LEAVES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
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


def _rope_scaling(factors: np.ndarray, text: TextConfig, path: Path) -> tuple[RopeScaling | None, tuple[float, ...]]:
    """(scaling, divisors of the frequencies): what `rope_freqs.weight` means, by one of the two.

    llama.cpp's converter turns Llama-3's scaling into divisors, rounded to single precision. Where the divisors are
    those of the published scaling, that scaling is taken, so that the tables equal the original checkpoint's in every
    bit; any others count as they are.
    """
    if factors.shape != (text.head_dim // 2,) or not np.isfinite(factors).all() or not (factors > 0).all():
        raise UserError(
            f"{path}: {ROPE_FACTORS} of shape {list(factors.shape)} holds {factors.min():g}.."
            f"{factors.max():g}, {text.head_dim // 2} positive numbers are needed: download it again"
        )
    if (factors == 1).all():
        return None, ()
    scaling = RopeScaling(factor=float(factors.max()), **PUBLISHED_ROPE)  # type: ignore[arg-type]
    plain = frequencies(text)
    published = (plain / scaled_frequencies(plain, scaling)).numpy()
    if np.allclose(published, factors, rtol=2e-6, atol=0):
        return scaling, ()
    return None, tuple(map(float, factors))


def _check_rope(reader: gguf.GGUFReader, path: Path, prefix: str) -> None:
    """UserError for scaling that the metadata asks for: llama.cpp takes a factor without a type for a linear one."""
    factor = number(reader, path, f"{prefix}.rope.scaling.factor", 0, whole=False)
    kind = metadata(reader, f"{prefix}.rope.scaling.type", "linear" if factor not in (0, 1) else "none")
    if kind != "none" and not (kind == "linear" and factor in (0, 1)):
        raise UserError(
            f"{path}: RoPE scaling is {kind!r} by {factor:g}, GGUF files are supported without, or with "
            f"{ROPE_FACTORS}: choose another model"
        )


def _tokens(reader: gguf.GGUFReader, path: Path, prefix: str) -> int:
    tokens = metadata(reader, "tokenizer.ggml.tokens", [])
    count = len(tokens) if isinstance(tokens, list) else 0
    return number(reader, path, f"{prefix}.vocab_size", count) or count


def _config(reader: gguf.GGUFReader, path: Path, stored: dict[str, gguf.ReaderTensor]) -> LlavaConfig:
    prefix = metadata(reader, "general.architecture")
    if prefix == "clip":
        raise UserError(
            f"{path} is the vision half of a pair (architecture 'clip'): give it as --mmproj, and the "
            "language model's file as --model"
        )
    if prefix not in ARCHITECTURES:
        raise UserError(
            f"{path}: architecture is {prefix!r}, supported are {', '.join(ARCHITECTURES)}: choose another model"
        )
    kind = metadata(reader, "general.type", "model")
    if kind != "model":
        raise UserError(f"{path} holds {kind!r}, not a model: give the model's own file")
    if number(reader, path, f"{prefix}.expert_count", 0):
        raise UserError(f"{path} is a mixture of experts, which is not supported: choose a dense model")
    refuse_unknown(reader, path, prefix, READ, FIXED)
    _check_rope(reader, path, prefix)

    def value(key: str, default: float | None = None) -> int:
        return number(reader, path, f"{prefix}.{key}", default)

    def real(key: str, default: float | None = None) -> float:
        return float(number(reader, path, f"{prefix}.{key}", default, whole=False))

    hidden, heads = value("embedding_length"), value("attention.head_count")
    head_dim = value("attention.key_length", hidden // max(heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if value(key, head_dim) != head_dim:
            raise UserError(
                f"{path}: metadata {prefix}.{key} is {value(key)}, only the whole head's {head_dim} is "
                "supported: choose another model"
            )
    context, window = value("context_length"), value("attention.sliding_window", 0)
    text = TextConfig(
        hidden=hidden,
        layers=value("block_count"),
        heads=heads,
        kv_heads=value("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn=value("feed_forward_length"),
        vocab=_tokens(reader, path, prefix),
        rope_theta=real("rope.freq_base", 10000.0),
        # Stored in single precision: the shortest decimal that rounds to it is what the model's author wrote.
        rms_eps=float(str(np.float32(real("attention.layer_norm_rms_epsilon")))),
        context=min(context, window) if window else context,
        tied_embeddings="output.weight" not in stored,
        qkv_bias="blk.0.attn_q.bias" in stored,
        shortened=f"its sliding window of {window:,} tokens is shorter than its context of {context:,}"
        if 0 < window < context
        else "",
    )
    if ROPE_FACTORS in stored:
        scaling, factors = _rope_scaling(dequantised(stored[ROPE_FACTORS], str(path)), text, path)
        text = replace(text, rope_scaling=scaling, rope_factors=factors)
    return LlavaConfig(name=_PART_SUFFIX.sub("", path.stem), text=text)


class GgufCheckpoint(Checkpoint):
    """A GGUF file, or all parts of a split one given the first; tensors come dequantised, float32 (F16 as float16)."""

    def __init__(self, path: Path) -> None:
        readers = parts(path)
        tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
        super().__init__(_config(readers[0], path, tensors), str(path))
        self.reader = readers[0]
        self._interleaved = metadata(readers[0], "general.architecture") == "llama"
        self._stored: dict[str, gguf.ReaderTensor] = {}
        for tensor in tensors.values():
            if tensor.name == ROPE_FACTORS:
                continue
            name = canonical_name(tensor.name)
            if name not in self.shapes:
                raise UserError(
                    f"{path}: tensor {tensor.name} has no place in a Llama model: this architecture is not supported"
                )
            self._stored[name] = tensor
        types = {tensor.tensor_type.name for tensor in tensors.values() if len(tensor.shape) > 1}
        self.quantised = "+".join(sorted(types - FLOATS))

    def _fetch(self, name: str) -> Tensor | None:
        if name not in self._stored:
            return None
        stored = self._stored[name]
        values = dequantised(stored, self.origin)
        heads = self.config.text.heads if ".q_proj." in name else self.config.text.kv_heads
        if self._interleaved and (".q_proj." in name or ".k_proj." in name):
            if values.shape != self.shapes[name]:
                return as_torch(values)  # which `read` refuses, by its shape
            values = half_split_rows(values, heads)
        return as_torch(values)
