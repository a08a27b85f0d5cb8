"""Hugging Face `config.json` -> `LlavaConfig`, for LLaVA-1.5, LLaVA-NeXT and the Llama family, transformers 4.x and
5.x. How images are to be prepared comes from the preprocessor's file beside it.

Files omit what equals transformers' defaults, so the defaults here are those of `LlamaConfig` and `CLIPVisionConfig`.
Anything that would change the arithmetic and is not implemented is refused, never ignored.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hw.spec.errors import UserError
from ref_model.config import LlavaConfig, Rgb, RopeScaling, TextConfig, VisionConfig

from .json_file import read_json
from .known_keys import LLAVA, PREPROCESSOR, TEXT, VISION, refuse_unknown

TEXT_TYPES = ("llama", "mistral", "qwen2")
WORKS = (
    "supported are llava and llava_next with a clip_vision_model tower and a llama, mistral or qwen2 language "
    "model, and these language models alone; choose another model"
)
TEXT_KEYS = (
    "hidden_act", "mlp_bias", "attention_bias", "hidden_size", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size", "rms_norm_eps", "tie_word_embeddings",
    "rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings", "sliding_window", "use_sliding_window",
    "layer_types", "quantization_config",
)  # fmt: skip
VISION_KEYS = (
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
)
LLAVA_KEYS = (
    "text_config",
    "vision_config",
    "projector_hidden_act",
    "image_token_index",
    "image_token_id",
    "tie_word_embeddings",
    "multimodal_projector_bias",
    "vision_feature_layer",
    "vision_feature_select_strategy",
    "image_grid_pinpoints",
    "quantization_config",
)
"""Keys that this file reads, of the three objects."""
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
    },
    "mistral": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 32000,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    "qwen2": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 22016,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
    },
}
CLIP_DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "image_size": 224,
    "patch_size": 32,
}
LLAVA_VISION_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 336,
    "patch_size": 14,
}
NEXT_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


def _number(values: Mapping[str, Any], key: str, kind: type = int) -> Any:
    value = values.get(key)
    accepted = (int, float) if kind is float else (int,)
    if isinstance(value, bool) or not isinstance(value, accepted) or not math.isfinite(value):
        raise UserError(f"config.json: {key} is {value!r}, a number is needed: correct the file")
    return kind(value)


def _part(top: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object inside the file; empty if it is absent."""
    value = top.get(key)
    if not isinstance(value, Mapping | None):
        raise UserError(f"config.json: {key} is {value!r}, an object is needed: correct the file")
    return value or {}


def _flag(values: Mapping[str, Any], key: str, default: bool) -> bool:
    value = values.get(key, default)
    if not isinstance(value, bool | None):
        raise UserError(f"config.json: {key} is {value!r}, true or false is needed: correct the file")
    return bool(value)


def _require(values: Mapping[str, Any], key: str, *supported: Any, file: str = "config.json") -> None:
    """Refuse a setting outside `supported`, whose first value is the default."""
    value = values.get(key, supported[0])
    if value not in supported:
        choices = " or ".join(repr(choice) for choice in supported)
        raise UserError(f"{file}: {key} is {value!r}, supported is {choices}: convert the model or choose another")


def _rope(values: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) from 4.x `rope_theta` + `rope_scaling` or 5.x `rope_parameters`."""
    rope = dict(_part(values, "rope_scaling")) | dict(_part(values, "rope_parameters"))
    theta = _number({"rope_theta": rope.get("rope_theta", values.get("rope_theta", 10000.0))}, "rope_theta", float)
    kind = rope.get("rope_type", rope.get("type", "default"))
    refuse_unknown(rope, ROPE_KEYS, frozenset(), "config.json: RoPE parameter")
    if kind in ("default", None):
        return theta, None
    if kind == "llama3":
        return theta, RopeScaling(
            _number(rope, "factor", float),
            _number(rope, "low_freq_factor", float),
            _number(rope, "high_freq_factor", float),
            _number(rope, "original_max_position_embeddings"),
        )
    raise UserError(f"config.json: rope_type is {kind!r}, supported are 'default' and 'llama3': choose another model")


ROPE_KEYS = (
    "rope_theta",
    "rope_type",
    "type",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)


def _context(family: str, values: Mapping[str, Any]) -> int:
    """Positions for which full attention is what the model computes: a sliding window shortens them."""
    context = _number(values, "max_position_embeddings")
    kinds = values.get("layer_types") or []
    windowed = {"qwen2": _flag(values, "use_sliding_window", False), "mistral": True}.get(family, False)
    if not windowed and any(kind != "full_attention" for kind in kinds):
        raise UserError(
            f"config.json: layer_types has {next(k for k in kinds if k != 'full_attention')!r}, supported "
            "is 'full_attention': choose another model"
        )
    if not windowed or values.get("sliding_window") is None:
        return context
    return min(context, _number(values, "sliding_window"))


def text_config(given: Mapping[str, Any], tied: bool = False) -> TextConfig:
    """`TextConfig` of a Llama, Mistral or Qwen2 `config.json`, or of the `text_config` inside a LLaVA one.

    tied: the file around it says that the head is the embedding; to say so in either place is enough, as in
    transformers.
    """
    family = given.get("model_type", "llama")
    if family not in TEXT_TYPES:
        raise UserError(f"config.json: language model type is {family!r}: {WORKS}")
    refuse_unknown(given, TEXT_KEYS, TEXT, "config.json")
    values = FAMILY_DEFAULTS[family] | dict(given)
    _require(values, "hidden_act", "silu")
    _require(values, "mlp_bias", False)
    _require(values, "attention_bias", False, *((True, None) if family == "qwen2" else ()))
    hidden, heads = _number(values, "hidden_size"), _number(values, "num_attention_heads")
    theta, scaling = _rope(values)
    context, full = _context(family, values), _number(values, "max_position_embeddings")
    return TextConfig(
        hidden=hidden,
        layers=_number(values, "num_hidden_layers"),
        heads=heads,
        kv_heads=heads if values.get("num_key_value_heads") is None else _number(values, "num_key_value_heads"),
        head_dim=hidden // max(heads, 1) if values.get("head_dim") is None else _number(values, "head_dim"),
        ffn=_number(values, "intermediate_size"),
        vocab=_number(values, "vocab_size"),
        rope_theta=theta,
        rms_eps=_number({"rms_norm_eps": 1e-6} | values, "rms_norm_eps", float),
        context=context,
        shortened=f"its sliding window of {context:,} tokens is not implemented" if context < full else "",
        tied_embeddings=tied or _flag(values, "tie_word_embeddings", False),
        qkv_bias=family == "qwen2",
        rope_scaling=scaling,
    )


def _vision_config(top: Mapping[str, Any]) -> VisionConfig:
    given = _part(top, "vision_config")
    values = CLIP_DEFAULTS | dict(given) if "vision_config" in top else LLAVA_VISION_DEFAULTS
    tower = values.get("model_type", "clip_vision_model")
    if tower != "clip_vision_model":
        raise UserError(f"config.json: the vision tower is {tower!r}: {WORKS}")
    refuse_unknown(given, VISION_KEYS, VISION, "config.json: vision_config")
    _require(values, "num_channels", 3)
    _require(top, "vision_feature_select_strategy", "default", "full")
    layer = top.get("vision_feature_layer", -2)
    if isinstance(layer, list) and len(layer) == 1:
        (layer,) = layer
    if isinstance(layer, list):
        raise UserError(
            f"config.json: vision_feature_layer is {layer}, the features of {len(layer)} layers side by "
            "side; one layer is supported: choose another model"
        )
    return VisionConfig(
        image_size=_number(values, "image_size"),
        patch_size=_number(values, "patch_size"),
        hidden=_number(values, "hidden_size"),
        layers=_number(values, "num_hidden_layers"),
        heads=_number(values, "num_attention_heads"),
        ffn=_number(values, "intermediate_size"),
        activation=values.get("hidden_act", "quick_gelu"),
        ln_eps=_number({"layer_norm_eps": 1e-5} | values, "layer_norm_eps", float),
        feature_layer=_number({"vision_feature_layer": layer}, "vision_feature_layer"),
        drop_class=top.get("vision_feature_select_strategy", "default") == "default",
    )


def _pinpoints(top: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """(height, width) pairs of `image_grid_pinpoints`, LLaVA-NeXT only."""
    given = top.get("image_grid_pinpoints")
    try:
        return NEXT_PINPOINTS if given is None else tuple((int(height), int(width)) for height, width in given)
    except (TypeError, ValueError):
        raise UserError(
            f"config.json: image_grid_pinpoints is {given!r}, pairs of numbers are needed: correct the file"
        ) from None


def _rgb(values: Mapping[str, Any], key: str, default: Rgb, file: str) -> Rgb:
    given = values.get(key, default)
    try:
        red, green, blue = map(float, given)
    except (TypeError, ValueError):
        raise UserError(f"{file}: {key} is {given!r}, three numbers are needed: correct the file") from None
    return red, green, blue


def _preprocessor(folder: Path) -> tuple[str, dict[str, Any]]:
    """(file name, settings of the image processor) as transformers 5.x or 4.x stores them; empty without a file."""
    for file, inner in (("processor_config.json", True), ("preprocessor_config.json", False)):
        if (folder / file).exists():
            top = read_json(folder / file)
            values = top.get("image_processor") if inner else top
            if isinstance(values, dict):
                return file, values
    return "", {}


PREPROCESSOR_KEYS = (
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "do_normalize",
    "resample",
    "size",
    "crop_size",
    "image_grid_pinpoints",
    "do_pad",
    "image_mean",
    "image_std",
    "rescale_factor",
    "do_convert_rgb",
    "image_processor_type",
)


def _with_preprocessing(config: LlavaConfig, folder: Path) -> LlavaConfig:
    """The configuration with the preprocessor's mean and deviation; UserError if it prepares images otherwise than
    `ref_model.preprocess` and `ref_model.anyres` do."""
    file, values = _preprocessor(folder)
    vision = config.vision
    if vision is None or not values:
        return config
    edge = vision.image_size
    refuse_unknown(values, PREPROCESSOR_KEYS, PREPROCESSOR, file)
    factor = values.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or abs(factor * 255 - 1) > 1e-6:
        raise UserError(f"{file}: rescale_factor is {factor!r}, supported is 1/255: choose another model")
    _require(values, "do_convert_rgb", True, None, file=file)
    for key in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        _require(values, key, True, file=file)
    _require(values, "resample", 3, file=file)
    _require(values, "size", {"shortest_edge": edge}, edge, file=file)
    _require(values, "crop_size", {"height": edge, "width": edge}, edge, file=file)
    if config.pinpoints:
        _require(values, "image_grid_pinpoints", [list(pair) for pair in config.pinpoints], file=file)
    elif values.get("image_processor_type") == "LlavaImageProcessor":
        _require(values, "do_pad", False, None, file=file)
    return replace(
        config,
        vision=replace(
            vision,
            pixel_mean=_rgb(values, "image_mean", vision.pixel_mean, file),
            pixel_std=_rgb(values, "image_std", vision.pixel_std, file),
        ),
    )


def _llava_config(name: str, top: Mapping[str, Any]) -> LlavaConfig:
    if "mm_vision_tower" in top:
        raise UserError(
            f"{name} is in the original LLaVA layout, which keeps its vision tower elsewhere: "
            "use the llava-hf conversion of the model"
        )
    refuse_unknown(top, LLAVA_KEYS, LLAVA, "config.json")
    _require(top, "projector_hidden_act", "gelu")
    index = top.get("image_token_index", top.get("image_token_id", 32000))
    return LlavaConfig(
        name=name,
        text=text_config(_part(top, "text_config"), _flag(top, "tie_word_embeddings", False)),
        vision=_vision_config(top),
        image_token_index=_number({"image_token_index": index}, "image_token_index"),
        projector_bias=_flag(top, "multimodal_projector_bias", True),
        pinpoints=_pinpoints(top) if top.get("model_type") == "llava_next" else (),
    )


def read_config(path: Path) -> LlavaConfig:
    """The model that a `config.json` describes; UserError if it is missing, malformed or not supported."""
    top = read_json(path)
    packing = top.get("quantization_config")
    if packing and not (isinstance(packing, dict) and packing.get("quant_method") in ("gptq", "awq")):
        method = packing.get("quant_method") if isinstance(packing, dict) else None
        raise UserError(
            f"{path.parent} is already quantised, by {method or 'a method without a name'} and not by GPTQ "
            "or AWQ: give the floating-point checkpoint"
        )
    name, kind = path.resolve().parent.name, top.get("model_type")
    if kind in ("llava", "llava_next") or "mm_vision_tower" in top:
        return _with_preprocessing(_llava_config(name, top), path.parent)
    if kind is None:
        raise UserError(f"{path} has no model_type: {WORKS}")
    if kind not in TEXT_TYPES:
        sees = "a model with a vision tower" if "vision_config" in top else "a model"
        raise UserError(f"{path}: model_type is {kind!r}, {sees} that is not supported: {WORKS}")
    return LlavaConfig(name=name, text=text_config(top))
