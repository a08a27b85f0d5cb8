"""Hugging Face folders quantised by GPTQ or AWQ: the packed integers of `*.safetensors` come dequantised, float32.

GPTQ (AutoGPTQ, GPTQModel): qweight int32[in * bits / 32, out], inputs packed; qzeros int32[groups, out * bits / 32];
scales[groups, out]; g_idx int32[in], the group of each input. The first format stores a zero less one (modulo 2**bits),
"gptq_v2" does not. Real files carry the wrong label, so a symmetric layer goes by its content: its zero is
2**(bits - 1), which the first format stores as 2**(bits - 1) - 1.
AWQ (AutoAWQ, "gemm"): qweight int32[in, out / 8] and qzeros int32[groups, out / 8], outputs packed in the order
0, 2, 4, 6, 1, 3, 5, 7. Fields lie from the lowest bit of a word on; at 3 bits they may straddle words.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hw.spec.errors import UserError

from .huggingface import HuggingFaceCheckpoint
from .json_file import read_json
from .known_keys import refuse_unknown

PARTS = ("qweight", "qzeros", "scales", "g_idx")
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Output, of eight, in each nibble of a word."""
METHODS = ("gptq", "awq")
KEYS = (
    "quant_method",
    "bits",
    "w_bit",
    "group_size",
    "q_group_size",
    "version",
    "checkpoint_format",
    "format",
    "pack_dtype",
    "sym",
)
HARMLESS = frozenset(
    {
        # How it was quantised; the result is in the tensors.
        "damp_percent",
        "damp_auto_increment",
        "desc_act",
        "act_group_aware",
        "static_groups",
        "true_sequential",
        "dataset",
        "model_seqlen",
        "block_name_to_quantize",
        "module_name_preceding_first_block",
        "modules_in_block_to_quantize",
        "batch_size",
        "tokenizer",
        "mse",
        "meta",
        "quantizer",
        "nsamples",
        "duo_scaling",
        # Which layers, which the tensors themselves say.
        "lm_head",
        "modules_to_not_convert",
        "model_name_or_path",
        "model_file_base_name",
        "is_marlin_format",
        # How a library runs it; zero_point: AWQ's stored zeros are read in any case.
        "use_exllama",
        "use_cuda_fp16",
        "exllama_config",
        "max_input_length",
        "cache_block_outputs",
        "backend",
        "do_fuse",
        "fuse_max_seq_len",
        "modules_to_fuse",
        "disable_exllama",
        "zero_point",
    }
)


@dataclass(frozen=True)
class Packing:
    """What `quantization_config` says. group_size: inputs, -1 for all; offset: added to stored zeros that are not
    symmetric; symmetric: zeros are all 2**(bits - 1)."""

    method: str
    bits: int
    group_size: int
    offset: int
    symmetric: bool = False

    @classmethod
    def read(cls, config: dict[str, Any], origin: str) -> "Packing":
        """UserError for a variant that is not supported."""
        method, bits = str(config.get("quant_method", "")).lower(), config.get("bits", config.get("w_bit"))
        group = config.get("group_size", config.get("q_group_size", 128))
        if method not in METHODS or bits not in ((4,) if method == "awq" else (2, 3, 4, 8)):
            raise UserError(
                f"{origin}: quantisation {method or 'without a method'} at {bits} bits is not supported: "
                "give a floating-point, GPTQ (2, 3, 4, 8 bits) or AWQ (4 bits) checkpoint"
            )
        if method == "awq" and str(config.get("version", "gemm")).lower() != "gemm":
            raise UserError(f"{origin}: AWQ version {config['version']!r} is not supported: convert it to gemm")
        refuse_unknown(config, KEYS, HARMLESS, f"{origin}: quantization_config")
        layout = config.get("checkpoint_format", config.get("format", "gptq")) or "gptq"
        if method == "gptq" and layout not in ("gptq", "gptq_v2"):
            raise UserError(
                f"{origin}: GPTQ checkpoint_format {layout!r} is not supported: convert it to gptq or gptq_v2"
            )
        if config.get("pack_dtype", "int32") not in ("int32", None):
            raise UserError(f"{origin}: pack_dtype is {config['pack_dtype']!r}, supported is 'int32': convert it")
        if not isinstance(group, int | None) or isinstance(group, bool):
            raise UserError(f"{origin}: group_size is {group!r}, a number is needed: correct config.json")
        offset, symmetric = int(method == "gptq" and layout == "gptq"), method == "gptq" and bool(config.get("sym"))
        return cls(method, int(bits or 0), int(group or -1), offset, symmetric)

    def zero_offset(self, stored: np.ndarray, layer: str) -> int:
        """What to add to a layer's stored zeros, uint8[groups, out]; UserError where they contradict `symmetric`."""
        if not self.symmetric:
            return self.offset
        middle = 1 << self.bits - 1
        for offset in (0, 1):
            if bool((stored == middle - offset).all()):
                return offset
        found = ", ".join(map(str, np.unique(stored)[:4]))
        raise UserError(
            f"{layer}: the checkpoint says that it is symmetric, but its stored zeros ({found}) are "
            f"neither all {middle} (gptq_v2) nor all {middle - 1} (gptq): download it again"
        )


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """int32[n, m] -> uint8[n, m * 32 / bits]: fields of `bits` along the last axis, lowest bits first."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    fields = stream.reshape(len(words), -1, bits)
    return (fields << np.arange(bits, dtype=np.uint8)).sum(-1, dtype=np.uint8)


def gptq_weight(parts: dict[str, np.ndarray], packing: Packing, layer: str) -> np.ndarray:
    """float32[out, in] of the GPTQ tensors of a linear layer, which messages call `layer`."""
    bits, group_size = packing.bits, packing.group_size
    q, stored = unpack(parts["qweight"].T, bits).astype(np.float32), unpack(parts["qzeros"], bits)
    offset = packing.zero_offset(stored, layer)
    zeros = (stored.astype(np.int32) + offset & (1 << bits) - 1).astype(np.float32)
    groups = parts.get("g_idx", np.arange(q.shape[1]) // (group_size if group_size > 0 else q.shape[1]))
    return (q - zeros.T[:, groups]) * parts["scales"].T[:, groups].astype(np.float32)


def awq_weight(parts: dict[str, np.ndarray]) -> np.ndarray:
    """float32[out, in] of the AWQ tensors of a linear layer."""
    place = np.argsort(AWQ_ORDER)

    def nibbles(words: np.ndarray) -> np.ndarray:
        fields = unpack(words, 4)
        return fields.reshape(len(words), -1, 8)[..., place].reshape(fields.shape).astype(np.float32)

    q, scales = nibbles(parts["qweight"]), parts["scales"].astype(np.float32)
    groups = np.arange(len(q)) // (len(q) // len(scales))
    return ((q - nibbles(parts["qzeros"])[groups]) * scales[groups]).T


def is_packed(folder: Path) -> bool:
    """Whether a folder's config.json says that GPTQ or AWQ was here; False if it cannot be read."""
    try:
        return read_json(folder / "config.json")["quantization_config"]["quant_method"] in METHODS
    except (UserError, KeyError, TypeError):
        return False


class PackedCheckpoint(HuggingFaceCheckpoint):
    """A GPTQ or AWQ folder; layers that were left in floating point are read as they are."""

    def __init__(self, folder: Path) -> None:
        config = read_json(folder / "config.json")["quantization_config"]
        self.packing = Packing.read(config, str(folder))
        self.quantised = f"{self.packing.method.upper()} {self.packing.bits} bits"
        super().__init__(folder)

    def _known(self, name: str) -> bool:
        path, _, part = name.rpartition(".")
        # Some writers store a zero bias for every packed layer: it is refused by value when it is read.
        return (
            super()._known(name)
            or (part in PARTS and f"{path}.weight" in self.shapes)
            or (part == "bias" and f"{path}.qweight" in self._stored)
        )

    def _fetch(self, name: str) -> Tensor | None:
        path = name.removesuffix(".weight")
        if f"{path}.qweight" not in self._stored:
            return super()._fetch(name)
        parts = {}
        for part in PARTS:
            tensor = super()._fetch(f"{path}.{part}")
            if tensor is not None:
                parts[part] = tensor.numpy()
        if missing := [part for part in PARTS[:3] if part not in parts]:
            raise UserError(f"{self.origin}: {path} has no {missing[0]}: download the checkpoint again")
        self._refuse_bias(path)
        try:
            p = self.packing
            weight = awq_weight(parts) if p.method == "awq" else gptq_weight(parts, p, f"{self.origin}: {path}")
        except (ValueError, IndexError, ZeroDivisionError) as error:
            raise UserError(
                f"{self.origin}: packed tensors of {path} do not fit together ({error}): download the checkpoint again"
            ) from error
        return torch.from_numpy(np.ascontiguousarray(weight))

    def _refuse_bias(self, path: str) -> None:
        """A bias the model has no place for must be zero."""
        if f"{path}.bias" in self.shapes:
            return
        bias = super()._fetch(f"{path}.bias")
        if bias is not None and bool(bias.any()):
            raise UserError(f"{self.origin}: {path} has a bias, which this model has no place for: choose another")
