"""Opening a model by name or path, quantising it, compiling it for a configuration."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from alula.errors import UserError
from compiler.host import Compiled, Session
from compiler.layout import Layout
from compiler.pipeline import compile_model
from hw.spec import config as configurations
from ref_model.calibrate import Maxima, activation_maxima, calibration_text
from ref_model.checkpoints import PACKAGED, Checkpoint, open_checkpoint, open_synthetic
from ref_model.checkpoints.synthetic import SyntheticCheckpoint
from ref_model.config import MODELS
from ref_model.golden import GoldenText
from ref_model.preprocess import open_image, patches, preprocess
from ref_model.quantise import QuantModel, fixed, quantise
from ref_model.tokenizer import load_tokenizer
from sim.backend import Backend
from sim.memory_image import MemoryImage

DEFAULT_CONTEXT = {"tiny": 256, "small": 512, "u280": 4096}
"""Tokens compiled for when nothing is asked for (at most the model's own context)."""
KEPT_LAYERS = 64
CALIBRATED_PARAMETERS = 10**9
"""Larger models are quantised without smoothing: the float reference would not fit."""


def open_model(source: str, seed: int = 0) -> Checkpoint:
    """A packaged model's real weights, a named model's seeded synthetic ones, or a checkpoint on disk."""
    if source in PACKAGED or source not in MODELS:
        return open_checkpoint(source)
    return open_synthetic(source, seed)


def calibration(source: str, checkpoint: Checkpoint) -> Maxima | None:
    """Activation maxima of trained weights on the shipped text; None for synthetic weights and large models."""
    parameters = sum(math.prod(shape) for shape in checkpoint.shapes.values())
    if isinstance(checkpoint, SyntheticCheckpoint) or parameters > CALIBRATED_PARAMETERS:
        return None
    try:
        ids = load_tokenizer(source).encode(calibration_text())
    except UserError:
        return None
    return activation_maxima(checkpoint, ids[: checkpoint.config.text.context])


@dataclass
class Flow:
    """A quantised model compiled for a configuration, with its memory before the first run."""

    source: str
    model: QuantModel
    compiled: Compiled
    layers: int
    head: bool = True
    """Steps end in logits; without it (runs of some layers only) in the last token's residual row."""
    _image: MemoryImage | None = field(default=None, repr=False)

    @property
    def layout(self) -> Layout:
        return self.compiled.layout

    @property
    def config(self) -> configurations.Config:
        return self.compiled.config

    @property
    def context(self) -> int:
        return self.layout.context

    @property
    def image(self) -> MemoryImage:
        """Program, tables and weights; made once."""
        if self._image is None:
            self._image = self.compiled.image(self.model)
        return self._image

    def machine(self, backend: Backend) -> Session:
        """A fresh machine: empty cache, its own memory."""
        return Session(self.compiled, self.image.fork(), backend, self.layers, head=self.head)

    def golden(self) -> GoldenText:
        """The golden decoder with an empty cache and as many layers."""
        return GoldenText(self.model, self.layers)

    def golden_result(self, golden: GoldenText, rows: np.ndarray) -> np.ndarray:
        """What a step over wide rows must end in: logits int64[vocab], or the residual row int64[hidden]."""
        last = golden.forward(rows)[-1:]
        return golden.logits(last)[0] if self.head else last[0]

    def require_tokens(self, count: int) -> None:
        """Refuses a length beyond the model's context or the compiled one."""
        limit = self.model.config.text.context
        if count > limit:
            raise UserError(
                f"{count} tokens are beyond the context of {limit} of {self.model.config.name}: ask for fewer"
            )
        if count > self.context:
            raise UserError(
                f"{count} tokens are beyond the compiled context of {self.context}: "
                f"compile with --context {count} or more"
            )

    def patches(self, image: str | Path | Image.Image) -> np.ndarray:
        """Q16 patches int64[n_patches, 3*p*p] of an image file or a Pillow image."""
        vision = self.model.config.vision
        if vision is None:
            raise UserError(f"model {self.model.config.name} has no vision tower: leave the image out")
        picture = open_image(image) if isinstance(image, str | Path) else image
        return fixed(patches(preprocess(picture, vision.image_size), vision.patch_size).numpy())


def open_flow(
    source: str,
    config: str,
    *,
    layers: int | None = None,
    context: int | None = None,
    seed: int = 0,
    vision: bool = True,
    head: bool | None = None,
) -> Flow:
    """Open, quantise and compile. layers: decoder layers (None: all); context: tokens to compile for.

    head None: logits when every layer runs, else the residual row.
    """
    machine = configurations.get(config)
    checkpoint = open_model(source, seed)
    text = checkpoint.config.text
    if layers is not None and not 1 <= layers <= text.layers:
        raise UserError(f"--layers {layers}: {checkpoint.config.name} has 1..{text.layers}")
    if context is not None and not 1 <= context <= text.context:
        raise UserError(f"--context {context} is outside 1..{text.context}, the context of {checkpoint.config.name}")
    limit = context or min(text.context, DEFAULT_CONTEXT.get(config, text.context))
    compiled = compile_model(checkpoint.config, machine, limit, layers, vision)
    model = quantise(checkpoint, KEPT_LAYERS, with_vision=vision, maxima=calibration(source, checkpoint))
    count = layers or text.layers
    return Flow(source, model, compiled, count, count == text.layers if head is None else head)
