"""Hugging Face folders: `config.json` and `*.safetensors`, with the tensor names of transformers 4.x or 5.x."""

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hw.spec.errors import UserError

from .base import Checkpoint
from .hf_config import read_config

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


def _header(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as tensors:
            return list(tensors.keys())
    except FileNotFoundError:
        raise UserError(f"no file {file}: the checkpoint is incomplete, download it again") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a complete safetensors file ({error}): download it again") from error


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return [folder / file for file in sorted(set(weight_map.values()))]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{index} is malformed ({error!r}): download it again") from error
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = any(folder.glob("*.bin"))
        hint = "convert pytorch_model.bin to safetensors" if pickled else "give a complete model folder"
        raise UserError(f"no *.safetensors in {folder}: {hint}")
    return files


class HuggingFaceCheckpoint(Checkpoint):
    """A model folder. Construction reads headers only; UserError for anything missing, malformed or not supported."""

    def __init__(self, folder: Path) -> None:
        super().__init__(read_config(folder / "config.json"), str(folder))
        has_vision = self.config.vision is not None
        self._stored: dict[str, tuple[Path, str]] = {}
        for file in _weight_files(folder):
            for stored in _header(file):
                self._stored[canonical_name(stored, has_vision)] = (file, stored)
        for name, (_, stored) in self._stored.items():
            if not self._known(name):
                raise UserError(f"{self.origin}: tensor {stored} has no place in a {self.config.name} model: "
                                "this architecture is not supported")

    def _known(self, name: str) -> bool:
        """Whether a stored tensor belongs to the model, or may be left out."""
        return name in self.shapes or _UNUSED.search(name) is not None

    def _fetch(self, name: str) -> Tensor | None:
        if name not in self._stored:
            return None
        file, stored = self._stored[name]
        with safe_open(file, framework="pt") as tensors:
            return tensors.get_tensor(stored)
