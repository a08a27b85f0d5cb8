"""GGUF files as they come from others: scaled RoPE, keys, parts, and the pair of a LLaVA."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from hw.spec.errors import UserError
from ref_model.checkpoints import load, open_checkpoint, synthetic_state
from ref_model.checkpoints.hf_config import text_config
from ref_model.config import MODELS, LlavaConfig, RopeScaling
from ref_model.decoder import rope_tables
from tests.ref_model.gguf_files import write_mmproj, write_text
from tests.ref_model.transformers_models import LlamaConfig

TINY = MODELS["llava-tiny"]
TEXT = TINY.text
STATE = synthetic_state(LlavaConfig("model", TEXT), seed=7)
SEED = 13


def refused(source: Path, *words: str, mmproj: Path | None = None) -> None:
    with pytest.raises(UserError) as caught:
        load(source, mmproj=mmproj)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


# --- RoPE ------------------------------------------------------------------------------------------------


def llama3_factors(theta: float, head_dim: int, factor: float, low: float, high: float, context: int) -> np.ndarray:
    """`rope_freqs.weight` by the definition of the scaling: one number at a time, in double precision."""
    made = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * np.pi * theta ** (i / head_dim)
        if wavelength < context / high:
            made.append(1.0)
        elif wavelength > context / low:
            made.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            made.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(made, np.float32)


def their_tables(theta: float, head_dim: int, scaling: dict[str, Any], positions: torch.Tensor) -> torch.Tensor:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters={"rope_theta": theta, "rope_type": "llama3", **scaling},
    )
    cos, _ = LlamaRotaryEmbedding(config)(torch.zeros(1), positions[None])
    return cos[0]


@pytest.mark.parametrize("factor", [8.0, 32.0])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_published_llama3_scaling_equals_the_hf_readers(tmp_path: Path, factor: float, head_dim: int) -> None:
    text = replace(TEXT, hidden=4 * head_dim, head_dim=head_dim, layers=1, rope_theta=5e5, context=131072)
    path = tmp_path / "m.gguf"
    write_text(
        path,
        text,
        synthetic_state(LlavaConfig("m", text)),
        tensors={"rope_freqs.weight": llama3_factors(5e5, head_dim, factor, 1, 4, 8192)},
    )
    scaling = {
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config, state = load(path)
    hf = text_config(
        {
            "hidden_size": text.hidden,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": head_dim,
            "intermediate_size": text.ffn,
            "vocab_size": text.vocab,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072,
            "rope_theta": 5e5,
            "rope_scaling": {"rope_type": "llama3", **scaling},
        }
    )
    assert config.text == hf and config.text.rope_scaling == RopeScaling(factor, 1.0, 4.0, 8192)
    positions = torch.tensor([0, 1, 77, 4095, 8191, 131071])
    assert all(map(torch.equal, rope_tables(config.text, positions), rope_tables(hf, positions)))
    torch.testing.assert_close(
        rope_tables(config.text, positions[:4])[0],
        their_tables(5e5, head_dim, scaling, positions[:4]),
        rtol=0,
        atol=2e-3,
    )
    assert "rope_freqs" not in "".join(state)


def test_other_factors_divide_the_frequencies(tmp_path: Path) -> None:
    factors = np.linspace(1, 3, 8, dtype=np.float32)
    write_text(tmp_path / "m.gguf", TEXT, STATE, tensors={"rope_freqs.weight": factors})
    text = load(tmp_path / "m.gguf")[0].text
    assert text.rope_scaling is None and text.rope_factors == tuple(map(float, factors))
    angles = 5.0 / TEXT.rope_theta ** (np.arange(8) / 8) / factors
    np.testing.assert_allclose(rope_tables(text, torch.tensor([5]))[0][0, :8].numpy(), np.cos(angles), atol=1e-6)


@pytest.mark.parametrize("factors", [np.ones(7, np.float32), np.zeros(8, np.float32), np.full(8, np.nan, np.float32)])
def test_factors_that_are_none(tmp_path: Path, factors: np.ndarray) -> None:
    write_text(tmp_path / "m.gguf", TEXT, STATE, tensors={"rope_freqs.weight": factors})
    refused(tmp_path / "m.gguf", "rope_freqs.weight", "8 positive numbers")


# --- Keys and tensors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, ("RoPE scaling is 'yarn' by 4",)),
        ({"llama.rope.scaling.factor": 4.0}, ("RoPE scaling is 'linear' by 4",)),
        ({"llama.rope.dimension_count": 8}, ("dimension_count is 8", "16")),
        ({"llama.attention.value_length": 32}, ("value_length is 32",)),
        ({"llama.logit_scale": 0.5}, ("logit_scale is 0.5", "supported is 1")),
        ({"llama.attention.clamp_kqv": 8.0}, ("clamp_kqv is 8.0",)),
        ({"llama.attention.causal": False}, ("causal is False",)),
        ({"llama.expert_count": 8}, ("mixture of experts",)),
        ({"llama.something_new": 1}, ("llama.something_new is 1", "not known here")),
        ({"llama.block_count": "two"}, ("block_count is 'two'", "number is needed")),
        ({"llama.attention.head_count_kv": [2, 1]}, ("head_count_kv is [2, 1]",)),
        ({"llama.block_count": 2**32 - 1}, ("layers is",)),
        ({"general.type": "adapter"}, ("'adapter', not a model",)),
    ],
)
def test_keys_that_change_arithmetic_are_refused(tmp_path: Path, more: dict, words: tuple[str, ...]) -> None:
    write_text(tmp_path / "m.gguf", TEXT, STATE, more)
    refused(tmp_path / "m.gguf", *words)


@pytest.mark.parametrize(
    "more",
    [
        {"llama.rope.scaling.type": "none"},
        {"llama.rope.scaling.factor": 1.0},
        {"llama.logit_scale": 1.0},
        {"llama.expert_count": 0, "llama.expert_used_count": 0},
        {"llama.attention.key_length": 16},
        {"general.name": "x", "general.quantization_version": 2, "quantize.imatrix.file": "y", "other.tool": 3},
    ],
)
def test_keys_without_effect_are_not(tmp_path: Path, more: dict) -> None:
    write_text(tmp_path / "m.gguf", TEXT, STATE, more)
    config, state = load(tmp_path / "m.gguf")
    assert config.text == TEXT
    assert all(torch.equal(state[name], tensor) for name, tensor in STATE.items())


def test_a_tensor_that_nobody_reads_is_named(tmp_path: Path) -> None:
    write_text(tmp_path / "m.gguf", TEXT, STATE, tensors={"blk.0.attn_q_norm.weight": np.ones(16, np.float32)})
    refused(tmp_path / "m.gguf", "attn_q_norm.weight has no place")


def test_a_sliding_window_shortens_the_context_and_says_so(tmp_path: Path) -> None:
    write_text(tmp_path / "m.gguf", TEXT, STATE, {"llama.attention.sliding_window": 32})
    text = load(tmp_path / "m.gguf")[0].text
    assert text.context == 32 and "sliding window of 32" in text.shortened


# --- Parts -----------------------------------------------------------------------------------------------


def test_parts_are_read_as_one(tmp_path: Path) -> None:
    write_text(tmp_path / "m.gguf", TEXT, STATE, split=8)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    config, state = load(files[0])
    assert config.text == TEXT and config.name == "m"
    assert all(torch.equal(state[name], tensor) for name, tensor in STATE.items())
    refused(files[1], "part 2 of 3", "give the first", files[0].name)
    swapped = files[2].read_bytes()
    files[2].write_bytes(files[1].read_bytes())
    refused(files[0], files[2].name, "is not part 3 of 3")
    files[2].write_bytes(swapped[:100])
    refused(files[0], files[2].name, "not a complete GGUF file")
    files[2].unlink()
    refused(files[0], files[2].name, "part 3 of 3", "download it")
    files[0].rename(tmp_path / "other.gguf")
    refused(tmp_path / "other.gguf", "part 1 of 3", "give back its name")


# --- A language model and its mmproj file ----------------------------------------------------------------


def halves(state: dict[str, torch.Tensor]) -> tuple[dict, dict]:
    text = {name: t for name, t in state.items() if name.startswith(("language_model.", "lm_head"))}
    return text, {name: t for name, t in state.items() if name not in text}


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_pair_equals_the_folder(tmp_path: Path, legacy: bool, dtype: torch.dtype) -> None:
    from tests.ref_model.transformers_models import write_llava

    folder = write_llava(tmp_path / "hf", seed=SEED).folder
    config, state = load(folder)
    assert config.vision is not None
    stored = {name: t.to(dtype) if t.ndim > 1 else t for name, t in state.items()}
    text, images = halves(stored)
    write_text(tmp_path / "m.gguf", config.text, text)
    write_mmproj(tmp_path / "mmproj-m.gguf", config.vision, images, legacy)
    pair, got = load(tmp_path / "m.gguf", None, tmp_path / "mmproj-m.gguf")
    assert pair.text == config.text and pair.vision is not None
    assert replace(pair.vision, layers=config.vision.layers, feature_layer=-2) == config.vision
    assert pair.num_executed_vision_layers == config.num_executed_vision_layers
    assert got.keys() == stored.keys()
    for name, tensor in stored.items():
        assert torch.equal(got[name].float(), tensor.float()), name


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, dict]:
    text, images = halves(synthetic_state(TINY, seed=SEED))
    write_text(tmp_path / "m.gguf", TEXT, text)
    return tmp_path / "m.gguf", images


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"clip.projector_type": "resampler"}, ("projector is 'resampler'",)),
        ({"clip.has_text_encoder": True}, ("has_text_encoder is True",)),
        ({"clip.use_silu": True}, ("use_silu is True",)),
        ({"clip.vision.mm_patch_merge_type": "spatial_unpad"}, ("spatial_unpad", "flat")),
        ({"clip.vision.feature_layer": [1, 2]}, ("layers [1, 2]", "one layer")),
        ({"clip.vision.image_mean": [0.5]}, ("image_mean is [0.5]", "three numbers")),
        ({"clip.vision.image_size": "big"}, ("image_size is 'big'",)),
        ({"clip.vision.new": 3}, ("clip.vision.new is 3", "not known here")),
    ],
)
def test_other_vision_halves_are_refused(pair: tuple[Path, dict], more: dict, words: tuple[str, ...]) -> None:
    assert TINY.vision is not None
    mmproj = pair[0].parent / "mmproj.gguf"
    write_mmproj(mmproj, TINY.vision, pair[1], more=more)
    refused(pair[0], *words, mmproj=mmproj)


def test_pairs_that_are_none(pair: tuple[Path, dict], tmp_path: Path) -> None:
    assert TINY.vision is not None
    mmproj = tmp_path / "mmproj.gguf"
    write_mmproj(mmproj, TINY.vision, pair[1], tensors={"v.post_ln.weight": np.ones(48, np.float32)})
    refused(pair[0], "which layer's features", mmproj=mmproj)
    mmproj.unlink()
    write_mmproj(mmproj, TINY.vision, pair[1], tensors={"v.new": np.ones(48, np.float32)})
    refused(pair[0], "tensor v.new has no place", mmproj=mmproj)
    mmproj.unlink()
    images = pair[1] | {"multi_modal_projector.linear_2.weight": torch.zeros(32, 64)}
    write_mmproj(mmproj, TINY.vision, images)
    refused(pair[0], "makes rows of 32 values", "takes 64", mmproj=mmproj)
    refused(mmproj, "give it as --mmproj")
    refused(pair[0], "a vision half is 'clip'", mmproj=pair[0])
    refused(tmp_path, "belongs to a language model in a .gguf file", mmproj=mmproj)
    refused(pair[0], "no file", mmproj=tmp_path / "absent.gguf")


# --- Damage ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("half", ["m.gguf", "mmproj.gguf"])
def test_damaged_pairs_load_or_end_in_one_line(pair: tuple[Path, dict], half: str) -> None:
    assert TINY.vision is not None
    print(f"seed {SEED}")
    path, generator = pair[0], np.random.default_rng(SEED)
    write_mmproj(path.parent / "mmproj.gguf", TINY.vision, pair[1])
    file = path.parent / half
    whole = np.frombuffer(file.read_bytes(), np.uint8)
    for _ in range(40):
        damaged = whole.copy()
        damaged[generator.integers(0, 2500, size=4)] = generator.integers(0, 256, size=4)
        file.write_bytes(damaged[: generator.choice([len(whole), len(whole) // 2])].tobytes())
        try:
            load(path, mmproj=path.parent / "mmproj.gguf")
        except UserError as error:
            assert "\n" not in str(error)


def test_every_type_is_read_or_refused(tmp_path: Path) -> None:
    """A tensor that says it is of any other type: a value, or one line."""
    for kind in gguf.GGMLQuantizationType:
        path = tmp_path / f"{kind.name}.gguf"
        block, size = gguf.GGML_QUANT_SIZES[kind]
        writer_state = {name: t for name, t in STATE.items() if "embed_tokens" not in name}
        if TEXT.hidden % block == 0:
            raw = np.zeros((TEXT.vocab, TEXT.hidden // block * size), np.uint8)
            _with_raw(path, writer_state, raw, kind)
            try:
                open_checkpoint(path).read("language_model.embed_tokens.weight")
            except UserError as error:
                assert ("\n" not in str(error) and kind.name in str(error)) or "holds" in str(error)


def _with_raw(path: Path, state: dict, raw: np.ndarray, kind: gguf.GGMLQuantizationType) -> None:
    import tests.ref_model.gguf_files as files

    class Writer(gguf.GGUFWriter):
        def write_header_to_file(self, path: Path | None = None) -> None:
            self.add_tensor("token_embd.weight", raw, raw_dtype=kind)
            super().write_header_to_file(path)

    original, files.gguf.GGUFWriter = files.gguf.GGUFWriter, Writer
    try:
        write_text(path, TEXT, state)
    finally:
        files.gguf.GGUFWriter = original
