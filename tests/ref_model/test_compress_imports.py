"""Quantised checkpoints of others: GGUF types, GPTQ and AWQ, each written here by a packer of its own."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from alula import cli
from hw.spec.errors import UserError
from ref_model.checkpoints import open_checkpoint
from ref_model.checkpoints.base import Checkpoint
from ref_model.compress import Compression
from ref_model.compress.imports import requantisation_error
from ref_model.config import MODELS, LlavaConfig

RNG = np.random.default_rng(5)
HIDDEN, OUT, GROUP = 64, 48, 32
TEXT = replace(MODELS["llava-tiny"].text, hidden=64, layers=1, ffn=64, heads=4, kv_heads=4)


# --- GPTQ and AWQ: little packers, bit by bit -----------------------------------------------------------


def pack_bits(values: list[int], bits: int) -> list[int]:
    """Fields from the lowest bit on into signed 32-bit words."""
    stream = sum(v << i * bits for i, v in enumerate(values))
    words = [stream >> 32 * i & 0xFFFFFFFF for i in range(len(values) * bits // 32)]
    return [w - (1 << 32) if w >> 31 else w for w in words]


def gptq_parts(q, zeros, scales, g_idx, bits: int, v2: bool) -> dict[str, torch.Tensor]:
    """q[in][out], zeros[group][out], scales[group][out]."""
    stored = [[(int(z) - (0 if v2 else 1)) % 2**bits for z in row] for row in zeros]
    columns = [pack_bits([int(v) for v in q[:, o]], bits) for o in range(q.shape[1])]
    return {
        "qweight": torch.tensor(np.array(columns).T.copy(), dtype=torch.int32),
        "qzeros": torch.tensor([pack_bits(row, bits) for row in stored], dtype=torch.int32),
        "scales": torch.tensor(scales, dtype=torch.float16),
        "g_idx": torch.tensor(g_idx, dtype=torch.int32),
    }


def awq_row(values) -> list[int]:
    """Eight outputs a word: nibbles hold outputs 0, 2, 4, 6, 1, 3, 5, 7."""
    words = []
    for start in range(0, len(values), 8):
        word = 0
        for nibble, place in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            word |= int(values[start + place]) << 4 * nibble
        words.append(word - (1 << 32) if word >> 31 else word)
    return words


def llama_config(quantisation: dict) -> dict:
    return {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 64,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "quantization_config": quantisation,
    }


LINEARS = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]


def write_folder(folder: Path, quantisation: dict, packed: dict[str, dict[str, torch.Tensor]]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(llama_config(quantisation)))
    tensors = {
        "model.embed_tokens.weight": torch.randn(64, 64),
        "lm_head.weight": torch.randn(64, 64),
        "model.norm.weight": torch.ones(64),
        "model.layers.0.input_layernorm.weight": torch.ones(64),
        "model.layers.0.post_attention_layernorm.weight": torch.ones(64),
    }
    for name, parts in packed.items():
        tensors |= {f"model.layers.0.{name}.{part}": tensor for part, tensor in parts.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder


def random_packed(bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    q = RNG.integers(0, 2**bits, (64, 64))
    zeros = RNG.integers(0, 2**bits, (64 // GROUP, 64))
    return q, zeros, (RNG.random((64 // GROUP, 64)) + 0.5).astype(np.float16)


@pytest.mark.parametrize(
    ("bits", "v2", "act_order"),
    [(4, False, False), (4, True, True), (3, False, True), (2, False, False), (8, True, False)],
)
def test_gptq(tmp_path: Path, bits: int, v2: bool, act_order: bool) -> None:
    expected, packed = {}, {}
    g_idx = np.arange(64) // GROUP
    if act_order:
        g_idx = RNG.permutation(g_idx)
    for name in LINEARS:
        q, zeros, scales = random_packed(bits)
        packed[name] = gptq_parts(q, zeros, scales, g_idx, bits, v2)
        expected[name] = np.array(
            [
                [(int(q[i, o]) - int(zeros[g_idx[i], o])) * float(scales[g_idx[i], o]) for i in range(64)]
                for o in range(64)
            ],
            np.float32,
        )
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": GROUP,
        "checkpoint_format": "gptq_v2" if v2 else "gptq",
    }
    checkpoint = open_checkpoint(write_folder(tmp_path / "m", config, packed))
    for name, weight in expected.items():
        np.testing.assert_allclose(checkpoint.read(f"language_model.layers.0.{name}.weight").numpy(), weight, rtol=1e-6)


def awq_folder(folder: Path, version: str = "gemm") -> tuple[Path, dict[str, np.ndarray]]:
    expected, packed = {}, {}
    for name in LINEARS:
        q, zeros, scales = random_packed(4)
        packed[name] = {
            "qweight": torch.tensor([awq_row(row) for row in q], dtype=torch.int32),
            "qzeros": torch.tensor([awq_row(row) for row in zeros], dtype=torch.int32),
            "scales": torch.tensor(scales),
            "bias": torch.zeros(64),
        }
        expected[name] = np.array(
            [
                [(int(q[i, o]) - int(zeros[i // GROUP, o])) * float(scales[i // GROUP, o]) for i in range(64)]
                for o in range(64)
            ],
            np.float32,
        )
    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": version}
    return write_folder(folder, config, packed), expected


def test_awq(tmp_path: Path) -> None:
    folder, expected = awq_folder(tmp_path / "m")
    checkpoint = open_checkpoint(folder)
    for name, weight in expected.items():
        np.testing.assert_allclose(checkpoint.read(f"language_model.layers.0.{name}.weight").numpy(), weight, rtol=1e-6)
    report = requantisation_error(checkpoint)
    assert len(report.tensors) == 8 and 0 < report.mean <= report.worst[1] < 0.02


def test_unsupported_packings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gemm"):
        open_checkpoint(awq_folder(tmp_path / "a", "gemv")[0])
    for config in (
        {"quant_method": "gptq", "bits": 5},
        {"quant_method": "awq", "bits": 8},
        {"quant_method": "bitsandbytes", "bits": 4},
    ):
        folder = tmp_path / f"{config['quant_method']}{config['bits']}"
        with pytest.raises(UserError):
            open_checkpoint(write_folder(folder, config, {}))


def test_incomplete_packing_is_refused(tmp_path: Path) -> None:
    q, zeros, scales = random_packed(4)
    parts = gptq_parts(q, zeros, scales, np.arange(64) // GROUP, 4, False)
    del parts["scales"]
    folder = write_folder(tmp_path / "m", {"quant_method": "gptq", "bits": 4}, {"mlp.up_proj": parts})
    with pytest.raises(UserError, match="no scales"):
        open_checkpoint(folder).read("language_model.layers.0.mlp.up_proj.weight")


# --- GGUF: blocks written field by field ------------------------------------------------------------------


def half(x: float) -> bytes:
    return struct.pack("<e", x)


def q4_0() -> tuple[bytes, list[float]]:
    d, q = 0.25, RNG.integers(0, 16, 32)
    return half(d) + bytes(int(q[i] | q[i + 16] << 4) for i in range(16)), [(int(v) - 8) * d for v in q]


def q4_1() -> tuple[bytes, list[float]]:
    d, m, q = 0.25, -1.5, RNG.integers(0, 16, 32)
    return half(d) + half(m) + bytes(int(q[i] | q[i + 16] << 4) for i in range(16)), [int(v) * d + m for v in q]


def q8_0() -> tuple[bytes, list[float]]:
    d, q = 0.03125, RNG.integers(-127, 128, 32)
    return half(d) + struct.pack("<32b", *q.tolist()), [int(v) * d for v in q]


def q4_k() -> tuple[bytes, list[float]]:
    """256 weights: d, dmin, eight 6-bit scales and minima in 12 bytes, nibbles (low half of 64 first)."""
    d, dmin = 0.125, 0.0625
    scales, minima, q = RNG.integers(0, 64, 8), RNG.integers(0, 64, 8), RNG.integers(0, 16, 256)
    packed = [0] * 12
    for j in range(4):
        packed[j] = int(scales[j] | scales[j + 4] >> 4 << 6)
        packed[j + 4] = int(minima[j] | minima[j + 4] >> 4 << 6)
        packed[j + 8] = int(scales[j + 4] & 15 | (minima[j + 4] & 15) << 4)
    nibbles = bytes(int(q[64 * c + i] | q[64 * c + 32 + i] << 4) for c in range(4) for i in range(32))
    values = [d * int(scales[i // 32]) * int(q[i]) - dmin * int(minima[i // 32]) for i in range(256)]
    return half(d) + half(dmin) + bytes(packed) + nibbles, values


def q6_k() -> tuple[bytes, list[float]]:
    """256 weights: low nibbles, high pairs of bits, sixteen int8 scales, d."""
    d, scales, q = 0.0625, RNG.integers(-20, 20, 16), RNG.integers(0, 64, 256)
    low, high = bytearray(128), bytearray(64)
    for half_index in range(2):
        for i in range(32):
            a, b, c, e = (int(q[128 * half_index + 32 * k + i]) for k in range(4))
            low[64 * half_index + i] = a & 15 | (c & 15) << 4
            low[64 * half_index + 32 + i] = b & 15 | (e & 15) << 4
            high[32 * half_index + i] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | e >> 4 << 6
    values = [d * int(scales[i // 16]) * (int(q[i]) - 32) for i in range(256)]
    return bytes(low) + bytes(high) + struct.pack("<16b", *scales.tolist()) + half(d), values


TYPES = {"Q4_0": q4_0, "Q4_1": q4_1, "Q8_0": q8_0, "Q4_K": q4_k, "Q6_K": q6_k}


@pytest.mark.parametrize("kind", TYPES)
def test_gguf(tmp_path: Path, kind: str) -> None:
    path, hidden = tmp_path / f"{kind}.gguf", 256
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_embedding_length(hidden)
    writer.add_block_count(1)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_feed_forward_length(hidden)
    writer.add_vocab_size(32)
    writer.add_context_length(64)
    writer.add_layer_norm_rms_eps(1e-5)
    expected = {}

    def tensor(name: str, rows: int) -> None:
        blocks = [TYPES[kind]() for _ in range(rows * hidden // len(TYPES[kind]()[1]))]
        raw = np.frombuffer(b"".join(block for block, _ in blocks), np.uint8).reshape(rows, -1)
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
        expected[name] = np.array([v for _, values in blocks for v in values], np.float32).reshape(rows, hidden)

    tensor("token_embd.weight", 32)
    tensor("blk.0.ffn_up.weight", hidden)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(path)
    for stored, name in (
        ("token_embd.weight", "language_model.embed_tokens.weight"),
        ("blk.0.ffn_up.weight", "language_model.layers.0.mlp.up_proj.weight"),
    ):
        np.testing.assert_allclose(checkpoint.read(name).numpy(), expected[stored], rtol=1e-6)


class Fixed(Checkpoint):
    """Normal weights in memory: nothing says that they are synthetic."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config, "memory")
        generator = torch.Generator().manual_seed(0)
        self.tensors = {
            name: torch.randn(shape, generator=generator) * 0.2 + ("norm" in name)
            for name, shape in self.shapes.items()
        }

    def _fetch(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def test_requantisation_error_orders_precisions() -> None:
    checkpoint = Fixed(LlavaConfig("text", TEXT))
    means = []
    for bits in ("4", "3", "2"):
        compression = Compression.parse(bits, "dense", "plain")
        assert compression is not None
        report = requantisation_error(checkpoint, compression.compressor(checkpoint))
        assert report.worst[1] == max(report.tensors.values())
        means.append(report.mean)
    assert requantisation_error(checkpoint).mean < 0.02 < means[0] < means[1] < means[2] < 0.5


def test_info_prints_the_requantisation_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, out = awq_folder(tmp_path / "m")[0], tmp_path / "out.json"
    cli.app(["info", "--model", str(folder), "--json", str(out)], standalone_mode=False)
    found = json.loads(out.read_text())
    error = found["requantisation"]
    assert found["quantised"] == "AWQ 4 bits"
    assert 0 < error["mean_relative_rms_error"] <= error["worst_relative_rms_error"] < 0.02
    said = capsys.readouterr().out
    assert "relative RMS error" in said and error["worst_module"] in said and "AWQ 4 bits" in said
