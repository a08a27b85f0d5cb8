"""Hugging Face folders as they come from others: read right, or refused in one line that names what they are."""

import json
from pathlib import Path

import pytest
import torch

from hw.spec.errors import UserError
from ref_model.checkpoints import load, open_checkpoint
from ref_model.checkpoints.base import DTYPES
from ref_model.config import LlavaConfig, named_config
from tests.ref_model.test_ref_checkpoints import STATE, config_json, disk_4x, renamed, write
from tests.ref_model.transformers_models import text_config as hf_text


def refused(source: object, *words: str) -> None:
    """Opening and reading ends in one line with all the words."""
    with pytest.raises(UserError) as caught:
        load(source)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def text_folder(folder: Path, change: dict | None = None, tensors: dict | None = None) -> Path:
    """A Llama folder of llava-tiny's language model."""
    stored = {
        f"model.{name.removeprefix('language_model.')}": tensor
        for name, tensor in STATE.items()
        if name.startswith("language_model.")
    } | {"lm_head.weight": STATE["lm_head.weight"]}
    return write(folder, config_json()["text_config"] | (change or {}), stored if tensors is None else tensors)


# --- Types of values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DTYPES, ids=str)
def test_floating_types_are_read(tmp_path: Path, kind: torch.dtype) -> None:
    tensors = {name: tensor.to(kind) for name, tensor in renamed(disk_4x).items()}
    assert torch.equal(
        load(write(tmp_path / "m", config_json(), tensors), None)[1]["lm_head.weight"], STATE["lm_head.weight"].to(kind)
    )


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


# --- Settings that change arithmetic ---------------------------------------------------------------------


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


# --- Heads -----------------------------------------------------------------------------------------------


def test_a_tied_head_that_differs_is_refused(tmp_path: Path) -> None:
    config, tensors = config_json() | {"tie_word_embeddings": True}, renamed(disk_4x)
    refused(write(tmp_path / "n", config, tensors), "both are stored and differ", "tie_word_embeddings")
    same = tensors["language_model.model.embed_tokens.weight"].clone()
    state = load(write(tmp_path / "o", config, tensors | {"language_model.lm_head.weight": same}))[1]
    assert state["lm_head.weight"] is state["language_model.embed_tokens.weight"]


def test_misspelt_names_get_a_suggestion() -> None:
    with pytest.raises(UserError, match=r"did you mean llava-1\.5-7b"):
        named_config("llava-1.5-7B")
    refused("llava-1.5-7B", "llava-1.5-13b", "did you mean llava-1.5-7b")
    refused("nonsense", "llava-tiny")


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
