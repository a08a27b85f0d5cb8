"""Hugging Face folders quantised by GPTQ or AWQ: the packed integers of `*.safetensors` come dequantised, float32.

GPTQ (AutoGPTQ, GPTQModel): qweight int32[in * bits / 32, out], inputs packed; qzeros int32[groups, out * bits / 32];
scales[groups, out]; g_idx int32[in], the group of each input. The first format stores a zero less one (modulo 2**bits),
"gptq_v2" does not. Files exist that say the one and hold the other: where the configuration says "sym", every zero is
2**(bits - 1), so that what is stored decides, and the label counts for asymmetric files alone.
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

from .base import DTYPES
from .files import read_json
from .hf_keys import shown
from .huggingface import HuggingFaceCheckpoint

PARTS = ("qweight", "qzeros", "scales", "g_idx")
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Output, of eight, in each nibble of a word."""
METHODS = ("gptq", "awq")


@dataclass(frozen=True)
class Packing:
    """What `quantization_config` says. offset: added to stored zeros; group_size: inputs, -1 for all; symmetric: every
    zero is the middle of the range."""

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
            raise UserError(f"{origin}: quantisation {method or 'without a method'} at {shown(bits)} bits is not "
                            "supported: give a floating-point, GPTQ (2, 3, 4, 8 bits) or AWQ (4 bits) checkpoint")
        if isinstance(group, bool) or not isinstance(group, int) or group == 0 or group < -1:
            raise UserError(f"{origin}: group_size is {shown(group)}, a number of inputs or -1 is needed: "
                            "correct quantization_config")
        if method == "awq" and str(config.get("version", "gemm")).lower() != "gemm":
            raise UserError(f"{origin}: AWQ version {shown(config['version'])} is not supported: convert it to gemm")
        label = config.get("checkpoint_format", "gptq")
        if method == "gptq" and label not in ("gptq", "gptq_v2"):
            raise UserError(f"{origin}: checkpoint_format is {shown(label)}, supported are 'gptq' and 'gptq_v2': "
                            "convert the checkpoint")
        v2 = method == "awq" or label == "gptq_v2"
        return cls(method, bits, group, 0 if v2 else 1, method == "gptq" and config.get("sym") is True)

    def zero_offset(self, stored: np.ndarray, where: str) -> int:
        """What is to be added to the stored zeros uint8[groups, out] of a layer; UserError if "sym" contradicts them."""
        if not self.symmetric:
            return self.offset
        middle = 1 << self.bits - 1
        for offset in (0, 1):
            if bool((stored == middle - offset).all()):
                return offset
        raise UserError(f"{where}: quantization_config says sym, so that every zero is {middle} (or {middle - 1} in the "
                        f"older format), and there are zeros from {stored.min()} to {stored.max()}: set sym to false if "
                        "they are meant")


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """int32[n, m] -> uint8[n, m * 32 / bits]: fields of `bits` along the last axis, lowest bits first."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    fields = stream.reshape(len(words), -1, bits)
    return (fields << np.arange(bits, dtype=np.uint8)).sum(-1, dtype=np.uint8)


def gptq_weight(parts: dict[str, np.ndarray], packing: Packing, where: str) -> np.ndarray:
    """float32[out, in] of the GPTQ tensors of a linear layer, called `where` in messages."""
    bits, size = packing.bits, packing.group_size
    q, stored = unpack(parts["qweight"].T, bits).astype(np.float32), unpack(parts["qzeros"], bits)
    offset = packing.zero_offset(stored, where)
    zeros = (stored.astype(np.int32) + offset & (1 << bits) - 1).astype(np.float32)
    groups = parts.get("g_idx", np.arange(q.shape[1]) // (size if size > 0 else q.shape[1]))
    if not 0 <= int(groups.min()) <= int(groups.max()) < len(zeros):
        raise ValueError(f"groups {groups.min()}..{groups.max()} of {len(zeros)}")
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
        config = read_json(folder / "config.json").get("quantization_config")
    except UserError:
        return False
    return isinstance(config, dict) and config.get("quant_method") in METHODS


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
        return super()._known(name) or (part in PARTS and f"{path}.weight" in self.shapes) or (
            part == "bias" and f"{path}.qweight" in self._stored)

    def _fetch(self, name: str) -> Tensor | None:
        path = name.removesuffix(".weight")
        if f"{path}.qweight" not in self._stored:
            return super()._fetch(name)
        parts = {}
        for part in PARTS:
            tensor = super()._fetch(f"{path}.{part}")
            if tensor is not None:
                parts[part] = self._array(f"{path}.{part}", tensor, torch.float16 if part == "scales" else torch.int32)
        if missing := [part for part in PARTS[:3] if part not in parts]:
            raise UserError(f"{self.origin}: {path} has no {missing[0]}: download the checkpoint again")
        self._refuse_bias(path)
        try:
            where = f"{self.origin}: {path}"
            weight = awq_weight(parts) if self.packing.method == "awq" else gptq_weight(parts, self.packing, where)
        except (ValueError, IndexError, ZeroDivisionError, TypeError, KeyError) as error:
            raise UserError(f"{self.origin}: packed tensors of {path} do not fit together ({error}): "
                            "download the checkpoint again") from error
        return torch.from_numpy(np.ascontiguousarray(weight))

    def _array(self, name: str, tensor: Tensor, kind: torch.dtype) -> np.ndarray:
        """Values of a packed tensor: int32 words, or scales in any floating type that weights may have."""
        if tensor.dtype == kind or (kind.is_floating_point and tensor.dtype in DTYPES):
            return tensor.float().numpy() if kind.is_floating_point else tensor.numpy()
        raise UserError(f"{self.origin}: {name} holds {tensor.dtype} values, {kind} is needed: download it again")

    def _refuse_bias(self, path: str) -> None:
        """A bias the model has no place for must be zero."""
        if f"{path}.bias" in self.shapes:
            return
        bias = super()._fetch(f"{path}.bias")
        if bias is not None and bool(bias.any()):
            raise UserError(f"{self.origin}: {path} has a bias, which this model has no place for: choose another")
