"""Hugging Face folders: `config.json` and `*.safetensors`, with the tensor names of transformers 4.x or 5.x."""

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hw.spec.errors import UserError

from .base import Checkpoint
from .files import read_json
from .hf_config import read_config

_PART = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
# Stored, but without a part in inference up to the feature layer.
_UNUSED = re.compile(r"\.inv_freq$|position_ids$|^vision_tower\.(post_layernorm|encoder\.layers)\.|^image_newline$")


def canonical_name(stored: str, has_vision: bool = True) -> str:
    """Canonical name of a tensor as any transformers version writes it (table in the design notes).

    Without a vision tower the names are those of a plain Llama checkpoint: `model.layers...`, `lm_head.weight`.
    """
    name = stored
    if name.startswith("language_model.model."):
        name = name.replace("language_model.model.", "language_model.", 1)
    name = name.replace("language_model.lm_head.", "lm_head.", 1).removeprefix("model.").replace("vision_model.", "", 1)
    if not has_vision and not name.startswith(("language_model.", "lm_head.")):
        name = f"language_model.{name}"
    return name


def _names(file: Path) -> list[str]:
    """Names of the tensors in a safetensors file."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except FileNotFoundError:
        raise UserError(f"no file {file}: the checkpoint is incomplete, download it again") from None
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{file} is not a complete safetensors file ({error}): download it again") from error


def _indexed(index: Path) -> list[Path]:
    """The files that an index names, in the folder it lies in."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} is malformed, it has no weight_map: download it again")
    for file in weight_map.values():
        if not isinstance(file, str) or not file.endswith(".safetensors") or Path(file).name != file:
            raise UserError(f"{index} names {file!r}, a safetensors file beside it is needed: download it again")
    return [index.parent / file for file in sorted(set(weight_map.values()))]


def _numbered(folder: Path) -> list[Path]:
    """The complete set model-00001-of-0000N.safetensors; empty without any of them."""
    found = {file.name: file for file in sorted(folder.glob("model-*-of-*.safetensors"))}
    parts = [match for match in map(_PART.fullmatch, found) if match]
    if not parts:
        return []
    totals = sorted({int(part[2]) for part in parts})
    if len(totals) > 1:
        raise UserError(f"{folder} has parts of sets of {totals[0]} and of {totals[1]} files and no index: "
                        "remove what does not belong to the model")
    needed = [f"model-{i:05}-of-{totals[0]:05}.safetensors" for i in range(1, totals[0] + 1)]
    if missing := [name for name in needed if name not in found]:
        raise UserError(f"no file {folder / missing[0]}: the checkpoint is incomplete, download it again")
    return [found[name] for name in needed]


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's model, others beside them being left alone: those of model.safetensors.index.json;
    without it model.safetensors; without that a complete numbered set; else the only safetensors file there is.

    UserError if that leaves a choice, and for an adapter, which changes the weights of whatever lies beside it.
    """
    if (folder / "adapter_config.json").exists():
        raise UserError(f"{folder} has an adapter (adapter_config.json): merge it into its model and save that, or remove "
                        "the adapter's files")
    if (index := folder / "model.safetensors.index.json").exists():
        return _indexed(index)
    if (whole := folder / "model.safetensors").exists():
        return [whole]
    if parts := _numbered(folder):
        return parts
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1:
        raise UserError(f"{folder} has {len(files)} safetensors files, no index and no model.safetensors: call the "
                        f"model's file that, or remove the others ({', '.join(file.name for file in files[:3])} ...)")
    if not files:
        pickled = any(folder.glob("*.bin"))
        hint = "convert pytorch_model.bin to safetensors" if pickled else "give a complete model folder"
        raise UserError(f"no *.safetensors in {folder}: {hint}")
    return files


def _hint(stored: str) -> str:
    if stored.endswith(("_scale", "_scale_inv", ".input_scale")):
        return "it is a scale of 8-bit weights, which are not supported: give the floating-point checkpoint"
    return "this architecture is not supported"


class HuggingFaceCheckpoint(Checkpoint):
    """A model folder. Construction reads headers only; UserError for anything missing, malformed or not supported."""

    def __init__(self, folder: Path) -> None:
        super().__init__(read_config(folder / "config.json"), str(folder))
        has_vision = self.config.vision is not None
        self._stored: dict[str, tuple[Path, str]] = {}
        for file in weight_files(folder):
            for stored in _names(file):
                self._place(canonical_name(stored, has_vision), file, stored)
        for name, (_, stored) in self._stored.items():
            if not self._known(name):
                raise UserError(f"{self.origin}: tensor {stored} has no place in a {self.config.name} model: "
                                f"{_hint(stored)}")

    def _place(self, name: str, file: Path, stored: str) -> None:
        if name in self._stored:
            other, alias = self._stored[name]
            raise UserError(f"{self.origin}: {name} is stored twice, as {alias} in {other.name} and as {stored} in "
                            f"{file.name}: remove one of them")
        self._stored[name] = (file, stored)

    def _known(self, name: str) -> bool:
        """Whether a stored tensor belongs to the model, or may be left out."""
        return name in self.shapes or _UNUSED.search(name) is not None

    def _fetch(self, name: str) -> Tensor | None:
        if name not in self._stored:
            return None
        file, stored = self._stored[name]
        try:
            with safe_open(file, framework="pt") as tensors:
                return tensors.get_tensor(stored)
        except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            # Also types that PyTorch has no name for (float6, float4 and what comes).
            raise UserError(f"{file}: {stored} cannot be read ({str(error).partition(chr(10))[0]}): give the "
                            "floating-point checkpoint") from error
