"""Hugging Face folders: `config.json` and `*.safetensors`, with the tensor names of transformers 4.x or 5.x."""

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hw.spec.errors import UserError

from .base import Checkpoint
from .hf_config import read_config
from .shards import weight_files

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of values, as safetensors names them, that mean what they say: 8-bit floats come with scales beside them."""
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


def _header(file: Path) -> dict[str, str]:
    """Stored name -> type of its values, of every tensor in a file."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"no file {file}: the checkpoint is incomplete, download it again") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a complete safetensors file ({error}): download it again") from error


class HuggingFaceCheckpoint(Checkpoint):
    """A model folder. Construction reads headers only; UserError for anything missing, malformed or not supported."""

    def __init__(self, folder: Path) -> None:
        super().__init__(read_config(folder / "config.json"), str(folder))
        has_vision = self.config.vision is not None
        self._stored: dict[str, tuple[Path, str]] = {}
        types: dict[str, str] = {}
        for file, wanted in weight_files(folder).items():
            held = _header(file)
            if missing := sorted((wanted or set()) - set(held)):
                raise UserError(f"{file} has no tensor {missing[0]}, which the index wants of it: download it again")
            for stored in held if wanted is None else sorted(wanted):
                name = canonical_name(stored, has_vision)
                if name in self._stored:
                    raise UserError(
                        f"{file}: tensor {stored} stands in {self._stored[name][0].name} too, as "
                        f"{self._stored[name][1]}: leave one model's files in the folder"
                    )
                self._stored[name], types[name] = (file, stored), held[stored]
        self._check(types)

    def _check(self, types: dict[str, str]) -> None:
        """Every stored tensor has a place in the model, and values that can be read."""
        for name, (file, stored) in self._stored.items():
            if not self._known(name):
                raise UserError(
                    f"{self.origin}: tensor {stored} has no place in a {self.config.name} model: "
                    "this architecture is not supported"
                )
            if name in self.shapes and types[name] not in FLOATS:
                raise UserError(
                    f"{file}: {stored} holds {types[name]} values, supported are {', '.join(FLOATS)}: give "
                    "the checkpoint from before quantisation, or a GPTQ, AWQ or GGUF one"
                )

    def _known(self, name: str) -> bool:
        """Whether a stored tensor belongs to the model, or may be left out."""
        return name in self.shapes or _UNUSED.search(name) is not None

    def _fetch(self, name: str) -> Tensor | None:
        if name not in self._stored:
            return None
        file, stored = self._stored[name]
        with safe_open(file, framework="pt") as tensors:
            return tensors.get_tensor(stored)
