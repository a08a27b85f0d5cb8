"""From a float checkpoint to the integers the machine works on: INT8 weights, scale words, fixed-point tables.

Weights are rounded to nearest, symmetric, one scale an output channel. Constant factors that the integer
operators need (docs/machine.md, "Operators as passes") are folded into channel scales here, once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from hw.spec import numerics as nm
from hw.spec import rows
from ref_model.calibrate import Maxima, smoothed_layer
from ref_model.checkpoints import Checkpoint
from ref_model.compress.format import BlockFormat
from ref_model.compress.recipe import Compressor
from ref_model.config import LlavaConfig, TextConfig, VisionConfig
from ref_model.decoder import paired_rows, rope_tables

Array = np.ndarray
QUERY_FACTOR = nm.LOG2_E * 2**14 / 127**2
"""Folded into q rows besides 1/sqrt(head_dim): scores come out in log2 units, K's 127**2 cancelled."""
ATTENTION_OUT_FACTOR = 128 / 127 / 2**4
"""Attention outputs are Q20 and 127/128 of the real ones; the output projection takes that back."""
GATED_FRAC_BITS = 2
"""Extra fraction bits of the gated product (Q18); the down projection takes them back."""
VALUE_LOG2 = 5
"""v rows are scaled by a power of two so that |v| stays below 2**5."""
MAX_G = 40


@dataclass(frozen=True)
class QuantLinear:
    """weight: int8[out, in]; words: int64[out] scale words; shift: G; bias: int64[out] Q16 or None; format: how a
    compressed weight is divided, None for dense INT8."""

    weight: Array
    words: Array
    shift: int
    bias: Array | None = None
    format: BlockFormat | None = None


@dataclass(frozen=True)
class QuantNorm:
    """words: int64[d]; adjust of the second multiplication; epsilon in raw squared units; bias int64[d] and
    mean_word (scale word of 1/d) for a LayerNorm, None for an RMSNorm."""

    words: Array
    adjust: int
    epsilon: int
    bias: Array | None = None
    mean_word: int | None = None

    @property
    def kind(self) -> str:
        return "rms" if self.mean_word is None else "layer"


@dataclass(frozen=True)
class QuantTextLayer:
    """One decoder layer; q and k rows are permuted so that RoPE pairs are neighbours."""

    input_norm: QuantNorm
    q: QuantLinear
    k: QuantLinear
    v: QuantLinear
    o: QuantLinear
    post_norm: QuantNorm
    gate: QuantLinear
    up: QuantLinear
    down: QuantLinear


@dataclass(frozen=True)
class QuantVisionLayer:
    norm1: QuantNorm
    q: QuantLinear
    k: QuantLinear
    v: QuantLinear
    out: QuantLinear
    norm2: QuantNorm
    fc1: QuantLinear
    fc2: QuantLinear
    func: str


class Lazy(Sequence):
    """A sequence whose items are made on demand; the last few are kept."""

    def __init__(self, length: int, make: Callable[[int], object], keep: int = 2):
        self._length, self._make = length, lru_cache(maxsize=keep)(make)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int):  # type: ignore[override]  # no slices
        if not 0 <= index < self._length:
            raise IndexError(index)
        return self._make(index)


@dataclass(frozen=True)
class QuantText:
    """embed: int32[vocab, d] Q16; layers: sequence of QuantTextLayer."""

    config: TextConfig
    embed: Array
    layers: Sequence[QuantTextLayer]
    norm: QuantNorm
    head: QuantLinear

    def rope_table(self, positions: Sequence[int]) -> Array:
        """Table words int64[n, head_dim] in paired lane order for explicit positions."""
        return rope_words(self.config, positions)


@dataclass(frozen=True)
class QuantVision:
    """class_embedding int64[d], position int64[n_positions, d], newline int64[d_text] (LLaVA-NeXT) in Q16."""

    config: VisionConfig
    patch: QuantLinear
    class_embedding: Array
    position: Array
    pre_norm: QuantNorm | None
    layers: Sequence[QuantVisionLayer]
    projector1: QuantLinear
    projector2: QuantLinear
    newline: Array | None = None


@dataclass(frozen=True)
class QuantModel:
    config: LlavaConfig
    vision: QuantVision | None
    text: QuantText


# --- tensors -------------------------------------------------------------------------------------------


def encode_scales(values: Array) -> Array:
    """`hw.spec.numerics.encode_scale` of every element of a float64 array: int64 words."""
    fraction, exponent = np.frexp(np.abs(values.astype(np.float64)))
    mantissa = np.rint(fraction * (1 << nm.MANTISSA_BITS)).astype(np.int64)
    over = mantissa == 1 << nm.MANTISSA_BITS
    mantissa, exponent = np.where(over, mantissa >> 1, mantissa), exponent + over
    shift = nm.MANTISSA_BITS - exponent.astype(np.int64)
    mantissa, shift = np.where(shift > 127, 0, mantissa), np.where((shift > 127) | (mantissa == 0), 0, shift)
    return nm.pack_scale(mantissa, shift, (values < 0).astype(np.int64))


def fixed(values, frac: int = nm.FRAC) -> Array:
    """float array -> int64 with `frac` fraction bits, saturated to int32."""
    scaled = np.floor(np.asarray(values, dtype=np.float64) * (1 << frac) + 0.5)
    return np.clip(scaled, nm.INT32_MIN, nm.INT32_MAX).astype(np.int64)


def linear(
    weight: Array,
    bias: Array | None = None,
    factor: float | Array = 1.0,
    compressed: tuple[str, Compressor | None] = ("", None),
) -> QuantLinear:
    """Quantise float[out, in] row by row; `factor` (scalar or [out]) multiplies the result, bias included.

    `compressed`: canonical module name and the compressor that may choose the integers.
    """
    weight = weight.reshape(weight.shape[0], -1)
    name, compressor = compressed
    chosen = None if compressor is None else compressor.compress(name, weight)
    if chosen is None:
        row_max = np.maximum(np.abs(weight).max(axis=1), 1e-30).astype(np.float32)
        integers = np.rint(weight * (np.float32(nm.ACT_MAX) / row_max)[:, None]).astype(np.int8)
        scales, division = row_max.astype(np.float64) / nm.ACT_MAX**2 * factor, None
    else:
        integers, units, division = chosen
        scales = units / nm.ACT_MAX * factor
    shift = math.floor(math.log2(2**31 / (nm.ACT_MAX**2 * weight.shape[1] * scales.max())))
    shift = max(0, min(MAX_G, shift))
    wide_bias = None if bias is None else fixed(bias.astype(np.float64) * factor)
    return QuantLinear(integers, encode_scales(scales * 2.0**shift), shift, wide_bias, division)


def norm(weight: Array, epsilon: float, bias: Array | None = None) -> QuantNorm:
    """RMSNorm, or LayerNorm where there is a bias."""
    width = weight.shape[0]
    half = math.floor(math.log2(math.sqrt(width)))
    words = encode_scales(weight.astype(np.float64) * math.sqrt(width) / 2**half)
    raw_epsilon = min(2**32 - 1, round(epsilon * width * 2 ** (2 * nm.FRAC)))
    if bias is None:
        return QuantNorm(words, -(nm.FRAC + half), raw_epsilon)
    return QuantNorm(words, -(nm.FRAC + half), raw_epsilon, fixed(bias), nm.encode_scale(1 / width))


def rope_words(config: TextConfig, positions: Sequence[int]) -> Array:
    """int64[n, head_dim] table words: lane 2i carries (cos, -sin), lane 2i+1 (cos, +sin) of angle i."""
    cos, sin = rope_tables(config, torch.as_tensor(list(positions), dtype=torch.int64))
    c, s = (table.numpy()[:, : config.head_dim // 2] for table in (cos, sin))
    pairs = rows.rope_words(np.stack([c, c], axis=-1), np.stack([-s, s], axis=-1))
    return pairs.reshape(len(c), config.head_dim)


def value_factor(weight: Array, gain: Array, bias: Array | None = None) -> float:
    """Power of two that brings the largest expected |v| (8 deviations for inputs of unit variance) below 2**5."""
    deviation = np.sqrt(((weight.astype(np.float64) * gain) ** 2).sum(axis=1))
    largest = float((8 * deviation + (0 if bias is None else np.abs(bias))).max())
    return 2.0 ** (VALUE_LOG2 - math.ceil(math.log2(max(largest, 1e-9))))


# --- models --------------------------------------------------------------------------------------------


class _Reader:
    def __init__(self, checkpoint: Checkpoint, prefix: str):
        self.checkpoint, self.prefix = checkpoint, prefix

    def __call__(self, name: str) -> Array:
        return self.checkpoint.read(self.prefix + name, torch.float32).numpy()

    def optional(self, name: str) -> Array | None:
        return self(name) if self.prefix + name in self.checkpoint.shapes else None


def text_layer(
    checkpoint: Checkpoint, index: int, maxima: Maxima | None = None, compressor: Compressor | None = None
) -> QuantTextLayer:
    """Quantise decoder layer `index`, smoothed where calibration `maxima` are given."""
    prefix, c = f"language_model.layers.{index}.", checkpoint.config.text
    read = smoothed_layer(checkpoint, index, maxima) if compressor is None else compressor.layer(checkpoint, index)
    rows = {"q": paired_rows(c.heads, c.head_dim), "k": paired_rows(c.kv_heads, c.head_dim), "v": np.arange(c.kv_width)}
    v_factor = value_factor(
        read["self_attn.v_proj.weight"], read["input_layernorm.weight"], read.get("self_attn.v_proj.bias")
    )
    factors = {"q": QUERY_FACTOR / math.sqrt(c.head_dim), "k": 1.0, "v": v_factor}

    def attention(p: str) -> QuantLinear:
        name = f"self_attn.{p}_proj"
        bias = read.get(f"{name}.bias")
        return linear(
            read[f"{name}.weight"][rows[p]],
            None if bias is None else bias[rows[p]],
            factors[p],
            (prefix + name, compressor),
        )

    def projection(name: str, factor: float = 1.0) -> QuantLinear:
        return linear(read[f"{name}.weight"], None, factor, (prefix + name, compressor))

    return QuantTextLayer(
        input_norm=norm(read["input_layernorm.weight"], c.rms_eps),
        q=attention("q"),
        k=attention("k"),
        v=attention("v"),
        o=projection("self_attn.o_proj", ATTENTION_OUT_FACTOR / v_factor),
        post_norm=norm(read["post_attention_layernorm.weight"], c.rms_eps),
        gate=projection("mlp.gate_proj"),
        up=projection("mlp.up_proj"),
        down=projection("mlp.down_proj", 2.0**-GATED_FRAC_BITS),
    )


def vision_layer(checkpoint: Checkpoint, index: int, compressor: Compressor | None = None) -> QuantVisionLayer:
    """Quantise vision layer `index`."""
    prefix, c = f"vision_tower.encoder.layers.{index}.", checkpoint.config.vision
    read = _Reader(checkpoint, prefix)
    assert c is not None

    def projection(name, factor=1.0):
        return linear(read(f"{name}.weight"), read(f"{name}.bias"), factor, (prefix + name, compressor))

    gain = read("layer_norm1.weight")
    v_bias = read("self_attn.v_proj.bias") + read("self_attn.v_proj.weight") @ read("layer_norm1.bias")
    v_factor = value_factor(read("self_attn.v_proj.weight"), gain, v_bias)
    # The factor undoes the value scaling and leaves the bias alone.
    out = linear(
        read("self_attn.out_proj.weight"),
        None,
        ATTENTION_OUT_FACTOR / v_factor,
        (prefix + "self_attn.out_proj", compressor),
    )
    return QuantVisionLayer(
        norm1=norm(gain, c.ln_eps, read("layer_norm1.bias")),
        q=projection("self_attn.q_proj", QUERY_FACTOR / math.sqrt(c.head_dim)),
        k=projection("self_attn.k_proj"),
        v=projection("self_attn.v_proj", v_factor),
        out=replace(out, bias=fixed(read("self_attn.out_proj.bias"))),
        norm2=norm(read("layer_norm2.weight"), c.ln_eps, read("layer_norm2.bias")),
        fc1=projection("mlp.fc1"),
        fc2=projection("mlp.fc2"),
        func=c.activation,
    )


def _vision(checkpoint: Checkpoint, compressor: Compressor | None) -> QuantVision | None:
    c = checkpoint.config.vision
    if c is None:
        return None
    read, projector = _Reader(checkpoint, "vision_tower."), _Reader(checkpoint, "multi_modal_projector.")

    def projection(name: str) -> QuantLinear:
        return linear(
            projector(f"{name}.weight"),
            projector.optional(f"{name}.bias"),
            compressed=(f"multi_modal_projector.{name}", compressor),
        )

    return QuantVision(
        config=c,
        patch=linear(
            read("embeddings.patch_embedding.weight"),
            compressed=("vision_tower.embeddings.patch_embedding", compressor),
        ),
        class_embedding=fixed(read("embeddings.class_embedding")),
        position=fixed(read("embeddings.position_embedding.weight")),
        pre_norm=norm(read("pre_layrnorm.weight"), c.ln_eps, read("pre_layrnorm.bias")) if c.pre_norm else None,
        layers=Lazy(c.num_executed_vision_layers, lambda i: vision_layer(checkpoint, i, compressor), keep=64),
        projector1=projection("linear_1"),
        projector2=projection("linear_2"),
        newline=fixed(_Reader(checkpoint, "")("image_newline")) if checkpoint.config.pinpoints else None,
    )


def quantise(
    checkpoint: Checkpoint,
    keep_layers: int = 64,
    with_vision: bool = True,
    maxima: Maxima | None = None,
    compression: Compressor | None = None,
) -> QuantModel:
    """The integer model of a checkpoint.

    Layers are quantised on first use, `keep_layers` of them stay in memory. `maxima` (from
    `ref_model.calibrate.activation_maxima`) turns on smoothing. `compression` (from
    `ref_model.compress.Compression.compressor`) chooses integers for the layers in its plan and does its own smoothing.
    """
    c = checkpoint.config
    read = _Reader(checkpoint, "")
    text = QuantText(
        config=c.text,
        embed=fixed(read("language_model.embed_tokens.weight")).astype(np.int32),
        layers=Lazy(c.text.layers, lambda i: text_layer(checkpoint, i, maxima, compression), keep=keep_layers),
        norm=norm(read("language_model.norm.weight"), c.text.rms_eps),
        head=linear(read("lm_head.weight"), compressed=("lm_head", compression)),
    )
    return QuantModel(c, _vision(checkpoint, compression) if with_vision else None, text)
