"""Hugging Face folders as they come from others: read right, or refused in one line that names what they are."""

import codecs
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hw.spec.errors import UserError
from ref_model.checkpoints import load, open_checkpoint
from ref_model.checkpoints.base import DTYPES
from ref_model.checkpoints.huggingface import weight_files
from ref_model.config import MODELS, LlavaConfig, VisionConfig, named_config
from ref_model.modules import LlavaModel
from ref_model.preprocess import tower_patches

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.ref_model.test_compress_imports import LINEARS, gptq_parts, write_folder
from tests.ref_model.test_ref_checkpoints import STATE, config_json, disk_4x, renamed, write
from tests.ref_model.transformers_models import text_config as hf_text
from tests.ref_model.transformers_models import write_llava


def refused(source: object, *words: str) -> None:
    """Opening and reading ends in one line with all the words."""
    with pytest.raises(UserError) as caught:
        load(source)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def text_folder(folder: Path, change: dict | None = None, tensors: dict | None = None) -> Path:
    """A Llama folder of llava-tiny's language model."""
    stored = {f"model.{name.removeprefix('language_model.')}": tensor for name, tensor in STATE.items()
              if name.startswith("language_model.")} | {"lm_head.weight": STATE["lm_head.weight"]}
    return write(folder, config_json()["text_config"] | (change or {}), stored if tensors is None else tensors)


# --- GPTQ: which zeros are stored (vllm PR 38966) --------------------------------------------------------


def gptq_folder(folder: Path, bits: int, label: str, sym: bool, zero: int) -> tuple[Path, dict[str, np.ndarray]]:
    """Symmetric weights whose stored zeros are `zero`; what they mean if the true zero is the middle."""
    generator, packed, expected = np.random.default_rng(11), {}, {}
    for name in LINEARS:
        q, scales = generator.integers(0, 2**bits, (64, 64)), (generator.random((2, 64)) + 0.5).astype(np.float16)
        packed[name] = gptq_parts(q, np.full((2, 64), zero), scales, np.arange(64) // 32, bits, v2=True)
        expected[name] = ((q - 2 ** (bits - 1)) * np.repeat(scales.astype(np.float32), 32, axis=0)).T
    config = {"quant_method": "gptq", "bits": bits, "group_size": 32, "checkpoint_format": label, "sym": sym}
    return write_folder(folder, config, packed), expected


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("label", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("less", [0, 1])
def test_symmetric_gptq_goes_by_content(tmp_path: Path, bits: int, label: str, less: int) -> None:
    folder, expected = gptq_folder(tmp_path / "m", bits, label, True, 2 ** (bits - 1) - less)
    checkpoint = open_checkpoint(folder)
    for name, weight in expected.items():
        np.testing.assert_allclose(checkpoint.read(f"language_model.layers.0.{name}.weight").numpy(), weight, rtol=1e-6)


def test_symmetric_gptq_of_other_zeros_is_refused(tmp_path: Path) -> None:
    refused(gptq_folder(tmp_path / "m", 4, "gptq", True, 5)[0], "says sym", "every zero is 8", "from 5 to 5")
    refused(gptq_folder(tmp_path / "n", 4, "marlin", True, 8)[0], "checkpoint_format is 'marlin'")


# --- Types of values -------------------------------------------------------------------------------------


OTHER_TYPES = [kind for name in dir(torch) if isinstance(kind := getattr(torch, name), torch.dtype)
               and name.startswith(("float8", "int8", "uint8", "int16", "int32", "int64", "bool"))]


@pytest.mark.parametrize("kind", OTHER_TYPES, ids=str)
def test_other_types_are_refused_by_name(tmp_path: Path, kind: torch.dtype) -> None:
    table = (torch.zeros(259, 64) if kind == torch.float8_e8m0fnu else STATE["lm_head.weight"]).to(kind)
    refused(write(tmp_path / "m", config_json(), renamed(disk_4x) | {"language_model.lm_head.weight": table}),
            "lm_head.weight holds", str(kind).removeprefix("torch."), "floating-point checkpoint")


@pytest.mark.parametrize("kind", DTYPES, ids=str)
def test_floating_types_are_read(tmp_path: Path, kind: torch.dtype) -> None:
    tensors = {name: tensor.to(kind) for name, tensor in renamed(disk_4x).items()}
    assert torch.equal(load(write(tmp_path / "m", config_json(), tensors), None)[1]["lm_head.weight"],
                       STATE["lm_head.weight"].to(kind))


@pytest.mark.parametrize("name", ["F4", "F6_E2M3", "F8_E8M0", "BF8", "C64"])
def test_types_of_the_file_format_that_nobody_reads(tmp_path: Path, name: str) -> None:
    """The header alone says the type: whatever safetensors makes of it, it ends in one line."""
    folder = text_folder(tmp_path / "m")
    raw = (folder / "model.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    header["lm_head.weight"]["dtype"] = name
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
    refused(folder)


def test_block_scales_are_named(tmp_path: Path) -> None:
    stored = {"model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(2, 1)}
    refused(text_folder(tmp_path / "m", None, stored), "weight_scale_inv", "scale of 8-bit weights")


# --- Settings that change arithmetic ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logit_scale": 0.0625}, ("logit_scale is 0.0625", "supported is 1")),
        ({"partial_rotary_factor": 0.25}, ("partial_rotary_factor is 0.25",)),
        ({"attn_logit_softcapping": 50.0}, ("attn_logit_softcapping is 50.0", "null")),
        ({"no_rope_layers": [1, 1]}, ("no_rope_layers is [1, 1]",)),
        ({"query_pre_attn_scalar": 224}, ("query_pre_attn_scalar is 224", "not known here")),
        ({"embedding_multiplier": 12}, ("embedding_multiplier is 12",)),
        ({"layer_types": ["chunked_attention"]}, ("layer_types has 'chunked_attention'",)),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0, "mscale": 1.5}}, ("mscale is 1.5", "RoPE")),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ("partial_rotary_factor is 0.5",)),
        ({"attention_bias": True}, ("attention_bias is True",)),
        ({"some_new_thing": "x" * 300}, ("some_new_thing is 'xxx", "...")),
    ],
)
def test_settings_nobody_reads_are_refused(tmp_path: Path, change: dict, words: tuple[str, ...]) -> None:
    refused(text_folder(tmp_path / "m", change), *words)


@pytest.mark.parametrize("change", [{"logit_scale": 1.0}, {"attn_logit_softcapping": None}, {"new_thing": None},
                                    {"architectures": ["LlamaForCausalLM"]}, {"rope_scaling": None},
                                    {"partial_rotary_factor": 1.0}, {"pretraining_tp": 2}, {"eos_token_id": [1, 2]}])
def test_settings_without_effect_are_not(tmp_path: Path, change: dict) -> None:
    assert load(text_folder(tmp_path / "m", change))[0].text == MODELS["llava-tiny"].text


def test_every_key_of_transformers_own_files_is_known(tmp_path: Path) -> None:
    from transformers import LlamaConfig, MistralConfig, Qwen2Config

    for family in (LlamaConfig, MistralConfig, Qwen2Config):
        path = tmp_path / "config.json"
        for written in (hf_text(family).to_dict(), json.loads(hf_text(family).to_json_string())):
            path.write_text(json.dumps(written))
            assert open_config(path).text.hidden == 64


def open_config(path: Path) -> LlavaConfig:
    from ref_model.checkpoints.hf_config import read_config

    return read_config(path)


def test_a_sliding_window_is_named_where_it_ends_the_context(tmp_path: Path) -> None:
    config, state = load(text_folder(tmp_path / "m", {"model_type": "mistral", "sliding_window": 32}))
    assert (config.text.context, config.text.window) == (32, 32)
    with pytest.raises(UserError, match="context of 32 \\(its sliding window"):
        LlavaModel.from_state(config, state).prefill(list(range(33)))
    assert load(text_folder(tmp_path / "n", {"model_type": "mistral", "sliding_window": 512}))[0].text.window is None


# --- What the model is -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["paligemma", "idefics3", "smolvlm", "qwen2_vl", "internvl_chat", "blip-2", "mllama",
                                  "gemma3", "llava_onevision", "vipllava", "bert", 7, ["llama"]])
def test_other_models_are_named(tmp_path: Path, kind: object) -> None:
    words = ("llava", "llava_next", "qwen2", repr(kind))
    refused(write(tmp_path / "m", {"model_type": kind, "vision_config": {}, "text_config": {}}, {}), *words)


def test_several_feature_layers_and_siglip_are_named(tmp_path: Path) -> None:
    refused(write(tmp_path / "a", config_json() | {"vision_feature_layer": [-24, -20, -12, -1]}, {}),
            "vision_feature_layer is [-24, -20, -12, -1]", "features of one layer")
    siglip = {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14}
    refused(write(tmp_path / "b", config_json() | {"vision_config": siglip}, {}), "siglip_vision_model", "CLIP tower")


def test_pixels_behind_the_last_patch_are_dropped(tmp_path: Path) -> None:
    """384 = 27 * 14 + 6: the convolution drops the rest. Here 60 = 4 * 14 + 4."""
    assert VisionConfig(image_size=384, patch_size=14, hidden=48, layers=1, heads=3, ffn=80).grid == 27
    written = write_llava(tmp_path / "m", image_size=60)
    config, state = load(written.folder)
    assert config.vision is not None and config.vision.n_patches == 16
    pixels = torch.randn(3, 60, 60, generator=torch.Generator().manual_seed(0))
    assert tower_patches(pixels, config.vision).shape == (16, 588)
    with torch.no_grad():
        theirs = written.model.model.get_image_features(pixels[None])
    theirs = getattr(theirs, "pooler_output", theirs)
    torch.testing.assert_close(LlavaModel.from_state(config, state).encode_images(pixels),
                               torch.cat(list(theirs)).reshape(16, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("top", "text"), [(True, False), (False, True), (True, None), (None, True)])
def test_tied_if_either_half_says_so(tmp_path: Path, top: bool | None, text: bool | None) -> None:
    config = config_json()
    if top is not None:
        config["tie_word_embeddings"] = top
    if text is not None:
        config["text_config"]["tie_word_embeddings"] = text
    tensors = renamed(disk_4x)
    head = tensors.pop("language_model.lm_head.weight")
    found, state = load(write(tmp_path / "m", config, tensors))
    assert found.text.tied_embeddings
    assert state["lm_head.weight"] is state["language_model.embed_tokens.weight"]
    refused(write(tmp_path / "n", config, tensors | {"language_model.lm_head.weight": head}), "both are stored and differ")
    same = tensors["language_model.model.embed_tokens.weight"].clone()
    load(write(tmp_path / "o", config, tensors | {"language_model.lm_head.weight": same}))


def test_misspelt_names_get_a_suggestion() -> None:
    with pytest.raises(UserError, match="did you mean llava-1.5-7b"):
        named_config("llava-1.5-7B")
    refused("llava-1.5-7B", "llava-1.5-13b", "did you mean llava-1.5-7b")
    refused("nonsense", "llava-tiny")


# --- Text of any editor ----------------------------------------------------------------------------------


def test_byte_order_marks(tmp_path: Path) -> None:
    written = write_llava(tmp_path / "m")
    plain = load(written.folder)[0]
    for path in written.folder.glob("*.json"):
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert load(written.folder)[0] == plain
    for encoding in ("utf-16", "utf-16-be", "utf-32"):
        mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
        text = json.dumps(config_json()).encode(encoding)
        (written.folder / "config.json").write_bytes(mark + text)
        refused(written.folder, encoding[:6].upper(), "save it as UTF-8")
    (written.folder / "config.json").write_bytes(b'{"model_type": "\xff"}')
    refused(written.folder, "not UTF-8 text (byte 16)")


# --- Which files belong to a model -----------------------------------------------------------------------


def test_stray_files_beside_a_model(tmp_path: Path) -> None:
    """The index decides, then model.safetensors, then a complete numbered set, then the only file."""
    folder = text_folder(tmp_path / "m")
    save_file({"junk": torch.zeros(1)}, folder / "consolidated.safetensors")
    load(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    load(folder)
    (folder / "model-00001-of-00001.safetensors").rename(folder / "weights.safetensors")
    refused(folder, "2 safetensors files, no index")
    (folder / "consolidated.safetensors").unlink()
    load(folder)
    assert [file.name for file in weight_files(folder)] == ["weights.safetensors"]
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, "adapter", "merge it")


def test_parts_without_an_index(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00003.safetensors")
    refused(folder, "model-00002-of-00003.safetensors", "incomplete")
    save_file({"x": torch.zeros(1)}, folder / "model-00001-of-00002.safetensors")
    refused(folder, "sets of 2 and of 3 files")


def test_a_tensor_stored_twice(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    save_file({"lm_head.weight": STATE["lm_head.weight"]}, folder / "model-00002-of-00002.safetensors")
    refused(folder, "lm_head.weight is stored twice", "model-00001-of-00002.safetensors")


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "{",
                                   '{"weight_map": {"a": "../model.safetensors"}}'])
def test_indexes_that_are_none(tmp_path: Path, index: str) -> None:
    folder = text_folder(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(index)
    refused(folder, "index.json")


# --- Damage ----------------------------------------------------------------------------------------------

JUNK = ["7", 7, -1, 0, 1.5, float("nan"), float("inf"), True, [], [1], {}, {"a": 1}, "x", None, 10**30]


def _leaves(value: dict, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, inner in value.items():
        found += [(*path, key), *(_leaves(inner, (*path, key)) if isinstance(inner, dict) else [])]
    return found


@pytest.mark.parametrize("junk", JUNK, ids=repr)
def test_wrong_types_anywhere_end_in_one_line(tmp_path: Path, junk: object) -> None:
    """Every key of a whole configuration, one at a time: read, or refused in one line."""
    whole = config_json(True) | {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}
    for edit in (whole, config_json(), config_json()["text_config"]):
        for path in _leaves(edit):
            _damaged(tmp_path, json.loads(json.dumps(edit)), path, junk)


def _damaged(folder: Path, config: dict, path: tuple[str, ...], junk: object) -> None:
    inner = config
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = junk
    (folder / "config.json").write_text(json.dumps(config))
    try:
        open_checkpoint(folder)
    except UserError as error:
        assert "\n" not in str(error)


def test_window_changes_no_other_field() -> None:
    text = MODELS["llava-tiny"].text
    assert replace(text, window=None) == text


Rename = Callable[[str], str]
