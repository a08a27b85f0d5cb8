"""Opening a model by name or path, quantising it, compiling it for a configuration."""

import math
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from PIL import Image

from alula.golden import InterpretedText, InterpretedVision, Interpreter
from alula.runtime.images import model_image
from alula.runtime.lengths import MODES, SESSIONS
from alula.runtime.session import Session
from compiler.layout import Layout
from compiler.pipeline import compile_model, graphs
from compiler.program import Compiled
from hw.spec import config as configurations
from hw.spec.config import BLOCK
from hw.spec.errors import InternalError, UserError
from hw.spec.run import Backend
from ref_model import anyres, selection
from ref_model.calibrate import Maxima, activation_maxima, calibration_ids, calibration_text
from ref_model.checkpoints import PACKAGED, Checkpoint, open_checkpoint, open_synthetic
from ref_model.checkpoints.synthetic import SyntheticCheckpoint
from ref_model.compress import Compression
from ref_model.config import MODELS, LlavaConfig, VisionConfig
from ref_model.golden import GoldenText, GoldenVision
from ref_model.mask import BlockMask
from ref_model.preprocess import image_pixels, open_image, patches
from ref_model.quantise import QuantModel, fixed, quantise
from ref_model.reduction import Reduction
from ref_model.tokenizer import load_tokenizer
from sim.cache import once
from sim.memory_image import MemoryImage

DEFAULT_CONTEXT = {"tiny": 256, "small": 512, "u280": 4096}
"""Tokens compiled for when nothing is asked for (at most the model's own context)."""
KEPT_LAYERS = 64
_CHECKS = partial(once, "checks")
CALIBRATED_PARAMETERS = 10**9
"""Larger models are quantised without smoothing: the float reference would not fit."""


def open_model(source: str, seed: int = 0, mmproj: Path | None = None) -> Checkpoint:
    """A packaged model's real weights, a named model's seeded synthetic ones, or a checkpoint on disk."""
    if source in PACKAGED or source not in MODELS or mmproj is not None:
        return open_checkpoint(source, mmproj)
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


def compression_ids(source: str, checkpoint: Checkpoint, compression: Compression) -> list[int] | None:
    """Tokens that compression calibrates on; None where it does not or where there is no tokenizer."""
    if not compression.calibrates(checkpoint):
        return None
    try:
        return calibration_ids(load_tokenizer(source).encode)
    except UserError:
        return None


def check_selection(config: LlavaConfig, count: int | None, strategy: str) -> None:
    """UserError where a model has no image of one tile with as many visual tokens to keep (None: all)."""
    if count is not None and (config.vision is None or config.pinpoints):
        raise UserError(
            f"model {config.name} has no image of one tile to select visual tokens of: leave out --keep-visual"
        )
    selection.items(count, strategy, 1 if config.vision is None else config.vision.n_patches)


@dataclass(frozen=True)
class ModelShape:
    """Stands for a quantised model where nobody needs weights."""

    config: LlavaConfig
    vision: VisionConfig | None


@dataclass
class Flow:
    """A model compiled for a configuration, quantised or for timing only, with its memory before the first run."""

    source: str
    model: QuantModel | ModelShape
    compiled: Compiled
    layers: int
    head: bool = True
    """Steps end in logits; without it (runs of some layers only) in the last token's residual row."""
    compression: Compression | None = None
    """How weights were compressed; None: dense, 8 bits."""
    program: str = "runtime"
    """How lengths are served, one of `alula.runtime.lengths.MODES`."""
    keep_visual: int | None = None
    """Visual tokens that survive the tower's selection (None: all); see `keep`."""
    strategy: str = "rank"
    _image: MemoryImage | None = field(default=None, repr=False)

    def keep(self, count: int | None, strategy: str) -> None:
        """Select visual tokens by the class token's attention from now on; UserError where there are not as many."""
        check_selection(self.model.config, count, strategy)
        self.keep_visual, self.strategy = count, strategy

    @property
    def visual_tokens(self) -> int:
        """Visual tokens of an image of one tile, after the selection."""
        tokens = self.model.config.n_visual_tokens
        count, span = selection.items(self.keep_visual, self.strategy, self.layout.tower.n_patches)
        return tokens - self.layout.tower.n_patches + count * span if count else tokens

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
    def asked(self) -> dict:
        """The compression that was asked for."""
        c = self.compression
        if c is None:
            return {"bits": "8", "sparsity": "dense", "recipe": None}
        sparsity = {None: "mixed", BLOCK: "dense"}.get(c.nonzeros, f"{c.nonzeros}:{BLOCK}")
        return {"bits": "mixed" if c.bits is None else f"{c.bits:g}", "sparsity": sparsity, "recipe": c.recipe}

    @property
    def compression_report(self) -> dict:
        """What was asked for, and what the streams hold: bits a weight of the compressed layers, bytes, non-zeros."""
        sizes = self.layout.sizes
        held = {"average_bits": sizes.average_bits, "weight_bytes": self.layout.weight_bytes}
        return self.asked | held | {"nonzeros": sizes.nonzeros}

    @property
    def timing_only(self) -> bool:
        """Whether there are no weights: only the cycle simulator runs, without data."""
        return isinstance(self.model, ModelShape)

    @property
    def quant(self) -> QuantModel:
        """The quantised model."""
        if isinstance(self.model, ModelShape):
            raise InternalError(f"{self.source} was opened for timing only: it has no weights")
        return self.model

    @property
    def image(self) -> MemoryImage:
        """Program, tables and weights; made once."""
        if self._image is None:
            self._image = model_image(self.compiled, None if self.timing_only else self.quant)
        return self._image

    def machine(self, backend: Backend) -> Session:
        """A fresh machine: empty cache, its own memory."""
        return SESSIONS[self.program](self.compiled, self.image.fork(), backend, self.layers, head=self.head)

    def golden(self) -> GoldenText:
        """The golden decoder with an empty cache and as many layers."""
        return InterpretedText(self.quant, self.layers, interpreter=self._interpreter)

    def golden_vision(self, layers: int | None = None) -> GoldenVision:
        """The golden tower and projector; layers: of the tower (None: all that are executed)."""
        return InterpretedVision(self.quant, layers, interpreter=self._interpreter)

    @cached_property
    def _interpreter(self) -> Interpreter:
        return Interpreter(graphs(self.model.config, _CHECKS))

    def golden_result(
        self,
        golden: GoldenText,
        rows: np.ndarray,
        mask: BlockMask | None = None,
        reduction: Reduction | None = None,
    ) -> np.ndarray:
        """What a step over wide rows must end in: logits int64[vocab], or the residual row int64[hidden]."""
        last = golden.forward(rows, mask=mask, reduction=reduction)[-1:]
        return golden.logits(last)[0] if self.head else last[0]

    def mask(self, text: str | None) -> BlockMask | None:
        """The block-sparse attention mask that `--attention-mask` describes, in tiles of the machine's key slots."""
        if text is None:
            return None
        geo = self.layout.geo
        return BlockMask.parse(text, 1 << geo.keys_per_slot_log2, geo.slots(self.context))

    def require_tokens(self, count: int) -> None:
        """Refuses a length beyond the model's context or the compiled one."""
        limit = self.model.config.text.context
        if count > limit:
            why = f" ({self.model.config.text.shortened})" if self.model.config.text.shortened else ""
            raise UserError(
                f"{count} tokens are beyond the context of {limit} of {self.model.config.name}{why}: ask for fewer"
            )
        if count > self.context:
            raise UserError(
                f"{count} tokens are beyond the compiled context of {self.context}: "
                f"compile with --context {count} or more"
            )

    def patches(self, image: str | Path | Image.Image) -> np.ndarray:
        """Q16 patches int64[n_patches, 3*p*p] of an image file or a Pillow image; of each tile [n_tiles, n_patches,
        3*p*p] if the model cuts images into tiles (`order`)."""
        config = self.model.config
        vision = config.vision
        if vision is None:
            raise UserError(f"model {config.name} has no vision tower: leave the image out")
        picture = open_image(image) if isinstance(image, str | Path) else image
        if config.pinpoints:
            tiles = [patches(tile, vision.patch_size).numpy() for tile in anyres.tiles(picture, config)]
            return fixed(np.stack(tiles))
        return fixed(patches(image_pixels(picture, vision), vision.patch_size).numpy())

    def order(self, image: Image.Image) -> np.ndarray | None:
        """Where each visual token of an image comes from (`ref_model.anyres.layout`); None for images of one tile."""
        return anyres.layout((image.height, image.width), self.model.config) if self.model.config.pinpoints else None


def open_flow(
    source: str,
    config: str | configurations.Config,
    *,
    layers: int | None = None,
    context: int | None = None,
    seed: int = 0,
    vision: bool = True,
    head: bool | None = None,
    compression: Compression | None = None,
    timing_only: bool = False,
    program: str = "runtime",
    keep_visual: int | None = None,
    strategy: str = "rank",
    mmproj: Path | None = None,
) -> Flow:
    """Open, quantise and compile. layers: decoder layers (None: all); context: tokens to compile for.

    head None: logits when every layer runs, else the residual row. compression None: dense INT8. timing_only: without
    weights, for the cycle simulator alone. program: how lengths are served, one of `alula.runtime.lengths.MODES`.
    keep_visual, strategy: see `Flow.keep`. mmproj: the vision half of a LLaVA in GGUF.
    """
    machine = configurations.get(config)
    if program not in MODES:
        raise UserError(f"unknown kind of program {program!r}: choose one of {', '.join(MODES)}")
    checkpoint = open_model(source, seed, mmproj)
    text = checkpoint.config.text
    check_selection(checkpoint.config, keep_visual, strategy)
    if layers is not None and not 1 <= layers <= text.layers:
        raise UserError(f"--layers {layers}: {checkpoint.config.name} has 1..{text.layers}")
    if context is not None and not 1 <= context <= text.context:
        raise UserError(f"--context {context} is outside 1..{text.context}, the context of {checkpoint.config.name}")
    limit = context or min(text.context, DEFAULT_CONTEXT.get(machine.base or machine.name, text.context))
    compressor = plan = maxima = None
    if compression is None:
        maxima = None if timing_only else calibration(source, checkpoint)
    elif timing_only:
        plan = compression.plan(checkpoint, compression_ids(source, checkpoint, compression))
    else:
        compressor = compression.compressor(checkpoint, compression_ids(source, checkpoint, compression))
        plan = compressor.plan
    compiled = compile_model(checkpoint.config, machine, limit, layers, vision, plan, remember=_CHECKS)
    model: QuantModel | ModelShape
    if timing_only:
        model = ModelShape(checkpoint.config, checkpoint.config.vision if vision else None)
    else:
        model = quantise(checkpoint, KEPT_LAYERS, vision, maxima, compressor)
    count = layers or text.layers
    head = count == text.layers if head is None else head
    return Flow(source, model, compiled, count, head, compression, program, keep_visual, strategy)
