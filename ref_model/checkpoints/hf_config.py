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

from .files import read_json
from .hf_keys import LLAVA_KEYS, ROPE_KEYS, TEXT_KEYS, VISION_KEYS, refuse_unknown, shown

TEXT_TYPES = ("llama", "mistral", "qwen2")
SUPPORTED = ("llava", "llava_next", *TEXT_TYPES)
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
        what = "a number is needed" if kind is float else "a whole number is needed"
        raise UserError(f"config.json: {key} is {shown(value)}, {what}: correct the file")
    return kind(value)


def _flag(values: Mapping[str, Any], key: str, default: bool) -> bool:
    value = values.get(key, default)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise UserError(f"config.json: {key} is {shown(value)}, true or false is needed: correct the file")


def _part(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An object inside another one; empty where it is absent."""
    value = values.get(key)
    if value is None or isinstance(value, dict):
        return dict(value or {})
    raise UserError(f"config.json: {key} is {shown(value)}, an object is needed: correct the file")


def _require(values: Mapping[str, Any], key: str, *supported: Any, file: str = "config.json") -> None:
    """Refuse a setting outside `supported`, whose first value is the default."""
    value = values.get(key, supported[0])
    if value not in supported:
        choices = " or ".join(repr(choice) for choice in supported)
        raise UserError(f"{file}: {key} is {shown(value)}, supported is {choices}: convert the model or choose another")


def _rope(values: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) from 4.x `rope_theta` + `rope_scaling` or 5.x `rope_parameters`."""
    rope = _part(values, "rope_scaling") | _part(values, "rope_parameters")
    theta = _number({"rope_theta": rope.get("rope_theta", values.get("rope_theta", 10000.0))}, "rope_theta", float)
    kind = rope.get("rope_type", rope.get("type", "default")) or "default"
    if not isinstance(kind, str) or kind not in ROPE_KEYS:
        raise UserError(f"config.json: rope_type is {shown(kind)}, supported are {' and '.join(map(repr, ROPE_KEYS))}: "
                        "choose another model")
    refuse_unknown(rope, ROPE_KEYS[kind], "config.json, RoPE")
    if rope.get("partial_rotary_factor") is not None:
        _require(rope, "partial_rotary_factor", 1)
    if kind == "default":
        return theta, None
    return theta, RopeScaling(
        _number(rope, "factor", float),
        _number(rope, "low_freq_factor", float),
        _number(rope, "high_freq_factor", float),
        _number(rope, "original_max_position_embeddings"),
    )


def _window(family: str, values: Mapping[str, Any]) -> int | None:
    """Positions that a sliding window lets a query see, None where every layer attends to everything."""
    kinds = values.get("layer_types")
    kinds = [] if kinds is None else kinds if isinstance(kinds, list) else [kinds]
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise UserError(f"config.json: layer_types has {shown(kind)}, supported are 'full_attention' and "
                            "'sliding_attention': choose another model")
    asked = {"mistral": True, "qwen2": _flag(values, "use_sliding_window", False)}.get(family, False)
    if not asked and "sliding_attention" not in kinds:
        return None
    return None if values.get("sliding_window") is None else _number(values, "sliding_window")


def text_config(given: Mapping[str, Any], tied: bool = False) -> TextConfig:
    """`TextConfig` of a Llama, Mistral or Qwen2 `config.json`, or of the `text_config` inside a LLaVA one.

    tied: the model around it ties the head to the embedding, whatever the part says (as transformers does).
    """
    family = given.get("model_type", "llama")
    if family not in TEXT_TYPES:
        raise UserError(
            f"config.json: language model type is {shown(family)}, supported are {', '.join(TEXT_TYPES)}: "
            "choose another model"
        )
    values = FAMILY_DEFAULTS[family] | dict(given)
    refuse_unknown(values, TEXT_KEYS)
    _require(values, "hidden_act", "silu")
    _require(values, "mlp_bias", False)
    _require(values, "attention_bias", False, *((True, None) if family == "qwen2" else ()))
    hidden, heads = _number(values, "hidden_size"), _number(values, "num_attention_heads")
    theta, scaling = _rope(values)
    context, window = _number(values, "max_position_embeddings"), _window(family, values)
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
        context=context if window is None else min(context, window),
        tied_embeddings=tied or _flag(values, "tie_word_embeddings", False),
        qkv_bias=family == "qwen2",
        rope_scaling=scaling,
        window=window if window is not None and window < context else None,
    )


def _feature_layer(top: Mapping[str, Any]) -> int:
    layer = top.get("vision_feature_layer", -2)
    if isinstance(layer, list):
        raise UserError(f"config.json: vision_feature_layer is {shown(layer)}, features of one layer are supported, not "
                        "of several side by side: choose a LLaVA model with one")
    return _number({"vision_feature_layer": layer}, "vision_feature_layer")


def _vision_config(top: Mapping[str, Any]) -> VisionConfig:
    given = _part(top, "vision_config")
    values = CLIP_DEFAULTS | given if given else LLAVA_VISION_DEFAULTS
    kind = values.get("model_type", "clip_vision_model")
    if kind != "clip_vision_model":
        raise UserError(f"config.json: the vision tower is {shown(kind)}, supported is 'clip_vision_model' (SigLIP has "
                        "patch biases, tanh GELU and no class token): choose a LLaVA model with a CLIP tower")
    refuse_unknown(values, VISION_KEYS, "config.json, vision_config")
    _require(values, "num_channels", 3)
    _require(top, "vision_feature_select_strategy", "default", "full")
    return VisionConfig(
        image_size=_number(values, "image_size"),
        patch_size=_number(values, "patch_size"),
        hidden=_number(values, "hidden_size"),
        layers=_number(values, "num_hidden_layers"),
        heads=_number(values, "num_attention_heads"),
        ffn=_number(values, "intermediate_size"),
        activation=values.get("hidden_act", "quick_gelu"),
        ln_eps=_number({"layer_norm_eps": 1e-5} | values, "layer_norm_eps", float),
        feature_layer=_feature_layer(top),
        drop_class=top.get("vision_feature_select_strategy", "default") == "default",
    )


def _pinpoints(top: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """(height, width) pairs of `image_grid_pinpoints`, LLaVA-NeXT only."""
    given = top.get("image_grid_pinpoints")
    try:
        return NEXT_PINPOINTS if given is None else tuple((int(height), int(width)) for height, width in given)
    except (TypeError, ValueError):
        raise UserError(f"config.json: image_grid_pinpoints is {given!r}, pairs of numbers are needed: "
                        "correct the file") from None


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


def _with_preprocessing(config: LlavaConfig, folder: Path) -> LlavaConfig:
    """The configuration with the preprocessor's mean and deviation; UserError if it prepares images otherwise than
    `ref_model.preprocess` and `ref_model.anyres` do."""
    file, values = _preprocessor(folder)
    vision = config.vision
    if vision is None or not values:
        return config
    edge = vision.image_size
    for key in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        _require(values, key, True, file=file)
    _require(values, "resample", 3, file=file)
    _require(values, "size", {"shortest_edge": edge}, edge, file=file)
    _require(values, "crop_size", {"height": edge, "width": edge}, edge, file=file)
    if config.pinpoints:
        _require(values, "image_grid_pinpoints", [list(pair) for pair in config.pinpoints], file=file)
    elif values.get("image_processor_type") == "LlavaImageProcessor":
        _require(values, "do_pad", False, None, file=file)
    return replace(config, vision=replace(vision, pixel_mean=_rgb(values, "image_mean", vision.pixel_mean, file),
                                          pixel_std=_rgb(values, "image_std", vision.pixel_std, file)))


def _llava_config(name: str, top: Mapping[str, Any]) -> LlavaConfig:
    if "mm_vision_tower" in top:
        raise UserError(
            f"{name} is in the original LLaVA layout, which keeps its vision tower elsewhere: "
            "use the llava-hf conversion of the model"
        )
    refuse_unknown(top, LLAVA_KEYS)
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
        raise UserError(f"{path.parent} is already quantised, not by GPTQ or AWQ: give the floating-point checkpoint")
    name = path.resolve().parent.name
    kind = top.get("model_type")
    if kind in ("llava", "llava_next") or "mm_vision_tower" in top:
        return _with_preprocessing(_llava_config(name, top), path.parent)
    if kind is None:
        raise UserError(f"{path} has no model_type: give a Hugging Face model folder of LLaVA or a Llama-family model")
    if kind not in TEXT_TYPES:
        what = "a model of images and text" if "vision_config" in top else "a model"
        raise UserError(f"{path}: this is {what} whose type is {shown(kind)}, supported are {', '.join(SUPPORTED)}: "
                        "choose one of these")
    return LlavaConfig(name=name, text=text_config(top))
