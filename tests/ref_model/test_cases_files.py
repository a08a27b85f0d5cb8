"""Files as people have them: read right, or refused in one line. Every test is a kind that was met in public."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hw.spec.errors import UserError
from ref_model.checkpoints import load, open_checkpoint
from ref_model.checkpoints.hf_config import read_config
from ref_model.checkpoints.packed import Packing, gptq_weight
from ref_model.preprocess import open_image, preprocess, resize_and_crop, rgb
from tests.ref_model.test_compress_imports import gptq_parts
from tests.ref_model.test_ref_checkpoints import STATE, TINY, config_json, disk_4x, renamed, write

SEED = 11


def text_json(**other) -> dict:
    return config_json()["text_config"] | other


def config_of(tmp_path: Path, config: dict):
    (tmp_path / "config.json").write_text(json.dumps(config))
    return read_config(tmp_path / "config.json")


def refusal(tmp_path: Path, config: dict) -> str:
    with pytest.raises(UserError) as raised:
        config_of(tmp_path, config)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# --- GPTQ: zeros by content and label ------------------------------------------------------------------------


def gptq_case(bits: int, zero: int, v2: bool):
    """(tensors, weights that they mean) of one layer with the same zero everywhere."""
    rng = np.random.default_rng(SEED)
    q = rng.integers(0, 1 << bits, (64, 32))
    zeros, scales = np.full((2, 32), zero), rng.random((2, 32)).astype(np.float16)
    groups = np.arange(64) // 32
    parts = {name: tensor.numpy() for name, tensor in gptq_parts(q, zeros, scales, groups, bits, v2).items()}
    return parts, ((q - zeros[groups]) * scales[groups].astype(np.float32)).T.astype(np.float32)


def packing(bits: int, **config) -> Packing:
    return Packing.read({"quant_method": "gptq", "bits": bits, "group_size": 32} | config, "m")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("label", ["gptq", "gptq_v2", None])
def test_symmetric_zeros_go_by_content(bits: int, v2: bool, label: str | None) -> None:
    parts, expected = gptq_case(bits, 1 << bits - 1, v2)
    config = {"sym": True} | ({} if label is None else {"checkpoint_format": label})
    np.testing.assert_array_equal(gptq_weight(parts, packing(bits, **config), "layer"), expected)


@pytest.mark.parametrize("v2", [False, True])
def test_other_zeros_go_by_the_label(v2: bool) -> None:
    parts, expected = gptq_case(4, 5, v2)
    label = packing(4, checkpoint_format="gptq_v2" if v2 else "gptq", sym=False)
    np.testing.assert_array_equal(gptq_weight(parts, label, "layer"), expected)


@pytest.mark.parametrize("zero", [0, 6, 9, 15])
def test_symmetric_zeros_that_are_none_are_refused(zero: int) -> None:
    parts, _ = gptq_case(4, zero, True)
    with pytest.raises(UserError, match=r"layer: .* neither all 8 \(gptq_v2\) nor all 7 \(gptq\)"):
        gptq_weight(parts, packing(4, sym=True), "layer")


@pytest.mark.parametrize(
    "config",
    [
        {"checkpoint_format": "marlin"},
        {"dynamic": {"a": {"bits": 8}}},
        {"pack_dtype": "int64"},
        {"group_size": "many"},
        {"rotation": "hadamard"},
    ],
)
def test_gptq_variants_that_are_not_known_are_refused(config: dict) -> None:
    (key,) = config
    with pytest.raises(UserError, match=str(config[key] if key != "dynamic" else key)[:8]):
        packing(4, **config)


# --- types of values, files of a model -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.bool])
def test_values_that_need_scales_are_refused_at_once(tmp_path: Path, dtype: torch.dtype) -> None:
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    folder = write(tmp_path / "m", config_json(), renamed(disk_4x) | {name: torch.zeros(176, 64).to(dtype)})
    with pytest.raises(UserError, match=rf"model.safetensors: {name} holds .* values, supported are F64, F32, F16"):
        open_checkpoint(folder)


def shards(folder: Path, names: list[str]) -> None:
    """llava-tiny's tensors, dealt to files of these names."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_json()))
    tensors = list(renamed(disk_4x).items())
    for number, name in enumerate(names):
        save_file(dict(tensors[number :: len(names)]), folder / name)


def test_a_complete_set_without_an_index_is_a_model(tmp_path: Path) -> None:
    shards(tmp_path / "m", [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)])
    assert load(tmp_path / "m")[1].keys() == STATE.keys()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"], "model-00002-of-00003.* is missing"),
        (["model-00001-of-00002.safetensors"], "1 of 2 parts"),
        (["adapter_model.safetensors"], "is an adapter"),
        (["a.safetensors", "b.safetensors"], "leave one model's files"),
        (["model-00001-of-00001.safetensors", "consolidated.safetensors"], "leave one model's files"),
        ([], "no \\*.safetensors"),
    ],
)
def test_folders_that_hold_no_one_model(tmp_path: Path, names: list[str], words: str) -> None:
    shards(tmp_path / "m", names)
    with pytest.raises(UserError, match=words):
        open_checkpoint(tmp_path / "m")


def test_strays_beside_the_whole_model_are_left_alone(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", config_json(), renamed(disk_4x))
    save_file({"lm_head.weight": torch.zeros(3, 3)}, folder / "adapter_model.safetensors")
    assert torch.equal(load(folder)[1]["lm_head.weight"], STATE["lm_head.weight"])


def test_a_tensor_that_stands_twice_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shards(folder, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
    tensors = renamed(disk_4x)
    save_file(tensors, folder / "model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match=r"model-00002-of-00002.safetensors: tensor .* stands in model-00001-of-00002"):
        open_checkpoint(folder)


def test_the_index_decides_and_has_to_be_true(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shards(folder, ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
    tensors = list(renamed(disk_4x))
    places = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(tensors)}
    save_file({"stray": torch.zeros(1)}, folder / "stray.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert load(folder)[1].keys() == STATE.keys()
    places[tensors[0]] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UserError, match="which the index wants of it"):
        open_checkpoint(folder)
    for wrong in ([], {"weight_map": []}, {"weight_map": {"a": 3}}, {"weight_map": {"a": "../b.safetensors"}}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="index"):
            open_checkpoint(folder)


# --- config.json ---------------------------------------------------------------------------------------------


def test_a_tower_whose_image_is_no_multiple_of_its_patches(tmp_path: Path) -> None:
    """A convolution leaves the rest out: 384 / 14 are 27 patches and 6 pixels."""
    top = config_json()
    top["vision_config"] |= {"image_size": 384}
    vision = config_of(tmp_path, top).vision
    assert vision is not None and (vision.grid, vision.n_patches, vision.n_positions) == (27, 729, 730)
    top["vision_config"] |= {"image_size": 13}
    assert "13 pixels, less than a patch of 14" in refusal(tmp_path, top)


def test_several_feature_layers_are_named(tmp_path: Path) -> None:
    words = refusal(tmp_path, config_json() | {"vision_feature_layer": [-24, -20, -12, -1]})
    assert "[-24, -20, -12, -1]" in words and "features of 4 layers" in words and "one layer is supported" in words
    assert config_of(tmp_path, config_json() | {"vision_feature_layer": [-2]}).vision == TINY.vision


@pytest.mark.parametrize(
    "kind",
    [
        "paligemma",
        "idefics3",
        "smolvlm",
        "qwen2_vl",
        "internvl",
        "blip-2",
        "mllama",
        "gemma3",
        "llava_onevision",
        "vipllava",
    ],
)
def test_other_models_are_named(tmp_path: Path, kind: str) -> None:
    words = refusal(tmp_path, {"model_type": kind, "vision_config": {}})
    assert f"model_type is {kind!r}, a model with a vision tower" in words
    assert all(name in words for name in ("llava_next", "clip_vision_model", "llama", "mistral", "qwen2"))


def test_a_siglip_tower_is_named(tmp_path: Path) -> None:
    top = config_json()
    top["vision_config"] = {"model_type": "siglip_vision_model"}
    assert "the vision tower is 'siglip_vision_model': supported are" in refusal(tmp_path, top)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_byte_order_marks(tmp_path: Path, encoding: str) -> None:
    folder = write(tmp_path / "m", config_json(), renamed(disk_4x))
    (folder / "config.json").write_bytes(json.dumps(config_json()).encode(encoding))
    assert replace(load(folder)[0], name=TINY.name) == TINY


@pytest.mark.parametrize("top", [True, False, None])
@pytest.mark.parametrize("text", [True, False, None])
def test_a_head_is_tied_if_either_says_so(tmp_path: Path, top: bool | None, text: bool | None) -> None:
    """As transformers' `LlavaConfig` has it."""
    from transformers import LlavaConfig

    config = config_json() | ({} if top is None else {"tie_word_embeddings": top})
    config["text_config"] |= {} if text is None else {"tie_word_embeddings": text}
    expected = LlavaConfig.from_dict(config).tie_word_embeddings
    assert config_of(tmp_path, config).text.tied_embeddings == expected == bool(top or text)


def test_an_untied_head_that_is_missing_is_one_line(tmp_path: Path) -> None:
    tensors = renamed(disk_4x)
    del tensors["language_model.lm_head.weight"]
    with pytest.raises(UserError, match=r"has no tensor lm_head\.weight"):
        load(write(tmp_path / "m", config_json(), tensors))


@pytest.mark.parametrize(
    "key",
    [
        "logit_scale",
        "qk_norm",
        "partial_rotary_factor",
        "attn_logit_softcapping",
        "no_rope_layers",
        "residual_multiplier",
        "query_pre_attn_scalar",
        "attention_multiplier",
        "clip_qkv",
    ],
)
def test_keys_that_may_change_arithmetic_are_refused(tmp_path: Path, key: str) -> None:
    for value in (0.5, [1, 0], "on", True):
        assert f"{key} is {value!r}" in refusal(tmp_path, text_json(**{key: value}))
        assert f"{key} is {value!r}" in refusal(tmp_path, config_json() | {"text_config": text_json(**{key: value})})
    for off in (None, False, 0, "", []):
        assert config_of(tmp_path, text_json(**{key: off})).text == TINY.text


@pytest.mark.parametrize("place", ["text_config", "vision_config", None])
def test_unknown_keys_are_refused_in_every_object(tmp_path: Path, place: str | None) -> None:
    top = config_json()
    (top if place is None else top[place])["surprise"] = 1.5
    assert "surprise is 1.5" in refusal(tmp_path, top)


@pytest.mark.parametrize(
    "other",
    [
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
        {"rope_scaling": "yarn"},
        {"rope_theta": "1e4"},
        {"rope_theta": float("nan")},
        {"rms_norm_eps": float("inf")},
        {"hidden_size": "64"},
        {"hidden_size": True},
        {"num_attention_heads": 0},
        {"vocab_size": [259]},
        {"tie_word_embeddings": "yes"},
        {"layer_types": ["full_attention", "linear_attention"]},
        {"num_key_value_heads": 3},
        {"hidden_act": "gelu"},
    ],
)
def test_values_that_are_none_are_one_line(tmp_path: Path, other: dict) -> None:
    refusal(tmp_path, text_json(**other))
    refusal(tmp_path, config_json() | {"text_config": text_json(**other)})


@pytest.mark.parametrize(
    "key",
    [
        "text_config",
        "vision_config",
        "image_token_index",
        "vision_feature_layer",
        "vision_feature_select_strategy",
        "multimodal_projector_bias",
        "model_type",
    ],
)
@pytest.mark.parametrize("value", ["x", 3.5, [1, 2], [[]], {"a": 1}, True])
def test_values_of_another_type_are_one_line_or_mean_what_they_say(tmp_path: Path, key: str, value: object) -> None:
    try:
        config_of(tmp_path, config_json() | {key: value})
    except UserError as error:
        assert "\n" not in str(error)


# --- images --------------------------------------------------------------------------------------------------


def saved(tmp_path: Path, image: Image.Image, name: str = "image.png", **options) -> np.ndarray:
    image.save(tmp_path / name, **options)
    return np.asarray(rgb(open_image(tmp_path / name)))


RAMP = np.linspace(0, 65535, 256 * 64).reshape(64, 256)


@pytest.mark.parametrize("name", ["image.png", "image.tiff"])
def test_grey_of_16_bits_keeps_its_range(tmp_path: Path, name: str) -> None:
    found = saved(tmp_path, Image.fromarray(RAMP.astype(np.uint16)), name)
    np.testing.assert_array_equal(found, np.repeat(np.round(RAMP.astype(np.uint16) / 257)[..., None], 3, 2))


def test_grey_of_floating_point_keeps_its_range(tmp_path: Path) -> None:
    unit = (RAMP / 65535).astype(np.float32)
    found = saved(tmp_path, Image.fromarray(unit), "image.tiff")
    np.testing.assert_array_equal(found, np.repeat(np.round(unit.astype(np.float64) * 255)[..., None], 3, 2))


@pytest.mark.parametrize(
    "values",
    [
        np.full((8, 8), 3.5, np.float32),
        np.full((8, 8), np.nan, np.float32),
        np.full((8, 8), -1, np.int32),
        np.full((8, 8), 70000, np.int32),
    ],
)
def test_values_that_are_no_brightness_are_refused(values: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"grey values of .* are outside"):
        rgb(Image.fromarray(values))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_modes_are_as_pillow_converts_them(mode: str) -> None:
    """Which is what transformers' `convert_to_rgb` does; transparency is dropped."""
    rng = np.random.default_rng(SEED)
    image = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    np.testing.assert_array_equal(np.asarray(rgb(image)), np.asarray(image.convert("RGB")))


def test_modes_without_a_way_to_rgb_are_one_line() -> None:
    with pytest.raises(UserError, match="mode La cannot be shown in RGB"):
        rgb(Image.new("La", (4, 4)))


def test_an_animation_is_its_first_frame(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    first.save(tmp_path / "two.gif", save_all=True, append_images=[second])
    found = np.asarray(rgb(open_image(tmp_path / "two.gif")))
    assert (found[..., 0] > 200).all() and (found[..., 2] < 50).all()


def scaled_whole(image: Image.Image, size: int) -> np.ndarray:
    """As `resize_and_crop` does for images that are no strips."""
    short, long = sorted(image.size)
    long = int(size * long / short)
    width, height = (size, long) if image.width <= image.height else (long, size)
    left, top = (width - size) // 2, (height - size) // 2
    whole = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(whole.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("shape", [(340, 20), (20, 340), (500, 7), (3, 200), (1000, 1)])
def test_strips_look_as_if_they_were_scaled_whole(shape: tuple[int, int]) -> None:
    y, x = np.mgrid[: shape[1], : shape[0]]
    waves = np.stack([np.sin(x / 5 + y / 9), np.cos(y / 4 - x / 7), np.sin(x / 6) * np.cos(y / 6)], axis=2)
    image = Image.fromarray((waves * 100 + 128).astype(np.uint8))
    difference = np.asarray(resize_and_crop(image, 56)).astype(int) - scaled_whole(image, 56)
    assert abs(difference).max() <= 1


@pytest.mark.parametrize("shape", [(100_000, 1), (1, 100_000), (3000, 1)])
def test_strips_take_neither_time_nor_memory(shape: tuple[int, int]) -> None:
    """100,000 x 1 would be 336 x 33,600,000 pixels on the way."""
    began = time.monotonic()
    assert preprocess(Image.new("RGB", shape, "white"), 336).shape == (3, 336, 336)
    assert time.monotonic() - began < 5
    if max(shape) > 8192:
        with pytest.raises(UserError, match="crop or scale it"):
            preprocess(Image.new("RGB", shape), 336, pad=True)
