"""Compression as the user asks for it, and the compressor that `ref_model.quantise` calls."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from hw.spec.config import BLOCK
from hw.spec.weights import BITS, NONZEROS
from ref_model.calibrate import smoothed_layer
from ref_model.checkpoints.base import Checkpoint
from ref_model.checkpoints.names import HEAD
from ref_model.checkpoints.synthetic import SyntheticCheckpoint

from .allocate import Sensitivity, allocate, even_sensitivity, sensitivity, spread
from .gptq import gptq
from .plan import HEAD_NAME, AllocatedPlan, MixedPlan, Plan, UniformPlan, compressible, linear_shapes
from .prune import keep_mask, scores
from .rounding import round_matrix
from .scaling import input_rms, scaled_layer
from .sequential import Packed, Sequential, machine_rows
from .statistics import importance
from .tune import Levels, tune

RECIPES = ("best", "tuned", "plain")
"""best: scaling, allocation, pruning and GPTQ on calibration text; tuned: best, then trained; plain: nothing is
calibrated."""
CALIBRATED_PARAMETERS = 10**9
"""Larger models are compressed without calibration: the float reference would not fit."""
SCALING_TOKENS = 1024
IMPORTANCE_TOKENS = 1024
HESSIAN_TOKENS = 8192
States = list[dict[str, np.ndarray]]
"""Float tensors of every decoder layer by leaf name."""


class Compressor(Protocol):
    """What the quantiser needs: the plan, a layer's tensors, and a matrix's integers."""

    plan: Plan

    def layer(self, checkpoint: Checkpoint, index: int) -> dict[str, np.ndarray]:
        """Float tensors of decoder layer `index` by leaf name, smoothed (and norms tuned) as the recipe has it."""
        ...

    def compress(self, name: str, weight: np.ndarray) -> Packed | None:
        """(int8[out, in], c float64[out], format) with W ~ int8 * c of `layer`'s float[out, in]; None: dense INT8."""
        ...


@dataclass
class PlainCompressor:
    """Rounding to nearest after magnitude pruning; nothing is calibrated."""

    plan: Plan

    def layer(self, checkpoint: Checkpoint, index: int) -> dict[str, np.ndarray]:
        return smoothed_layer(checkpoint, index, None)

    def compress(self, name: str, weight: np.ndarray) -> Packed | None:
        blocks = self.plan.blocks(name, *weight.shape)
        if blocks is None:
            return None
        bits, nonzeros = blocks
        return round_matrix(weight, bits, nonzeros, keep_mask(scores(weight), nonzeros))


class CalibratedCompressor:
    """Scaling of inputs, Wanda, GPTQ with the inputs that each layer gets behind the layers already quantised and, if
    `tuned`, training of levels, factors and gains against the float model.

    The whole language model is compressed at the first call. states: of every decoder layer, as `scaled_layer` gives.
    """

    def __init__(self, plan: Plan, checkpoint: Checkpoint, ids: Sequence[int], states: States, tuned: bool) -> None:
        self.plan, self.tuned = plan, tuned
        self._checkpoint, self._ids, self._states = checkpoint, ids, states
        self._packed: dict[str, Packed | None] | None = None
        self._gains: dict[str, np.ndarray] = {}

    def layer(self, checkpoint: Checkpoint, index: int) -> dict[str, np.ndarray]:
        self._run()
        prefix = f"language_model.layers.{index}."
        return {
            leaf: self._gains.get(prefix + leaf.removesuffix(".weight"), value)
            for leaf, value in self._states[index].items()
        }

    def compress(self, name: str, weight: np.ndarray) -> Packed | None:
        if not compressible(name, weight.shape[1]):
            return None
        return self._run()[name]

    def _run(self) -> dict[str, Packed | None]:
        """Results of every linear of the language model; made once."""
        if self._packed is None:
            sequential = Sequential(
                self._checkpoint, self._ids[:HESSIAN_TOKENS], self._states.__getitem__, self._quantise
            )
            sequential.take("lm_head")
            self._packed = sequential.packed
            if self.tuned:
                self._tune()
        return self._packed

    def _quantise(self, name: str, weight: np.ndarray, hessian: Tensor) -> Packed | None:
        blocks = self.plan.blocks(name, *weight.shape)
        if blocks is None:
            return None
        bits, nonzeros = blocks
        mask = keep_mask(scores(weight, hessian.diagonal().numpy()), nonzeros)
        return gptq(weight, hessian, bits, nonzeros, mask)

    def _tune(self) -> None:
        """Train levels, factors and gains, and take them over."""
        assert self._packed is not None
        head = self._checkpoint.read("lm_head.weight", torch.float32).numpy()
        levels = {}
        state = named(self._states)
        for leaf, value in state.items():
            name = leaf.removesuffix(".weight")
            packed = self._packed.get(name)
            if packed is not None:
                levels[name] = Levels(*packed, value.numpy(), self._order(name, len(value)))
        state[HEAD] = torch.from_numpy(_value(self._packed["lm_head"], head))
        found = tune(self._checkpoint, state, levels, self._ids)
        for name, integers in found.integers.items():
            packed = self._packed[name]
            assert packed is not None
            factor = np.maximum(found.factors[name].astype(np.float64), 0.1)
            self._packed[name] = integers, packed[1] * factor[self._order(name, len(factor))], packed[2]
        self._gains = found.gains

    def _order(self, name: str, n_out: int) -> np.ndarray:
        return machine_rows(self._checkpoint.config.text, name, n_out)


def named(states: States) -> dict[str, Tensor]:
    """Tensors of layers by canonical name."""
    return {
        f"language_model.layers.{index}.{leaf}": torch.from_numpy(np.array(value, np.float32))
        for index, state in enumerate(states)
        for leaf, value in state.items()
    }


def _value(packed: Packed | None, weight: np.ndarray) -> np.ndarray:
    """float32[out, in] that a result stands for; the weight itself if there is none."""
    return weight if packed is None else (packed[0] * packed[1][:, None]).astype(np.float32)


@dataclass(frozen=True)
class Compression:
    """Precision, sparsity and how much care: what `--bits`, `--sparsity` and `--recipe` say.

    bits: 2, 3, 4, 8, an average between them, or None for random ones; nonzeros: of 16, or None for random ones.
    """

    bits: float | None
    nonzeros: int | None
    recipe: str = "best"
    seed: int = 0
    label: str = field(default="", compare=False)

    @classmethod
    def parse(cls, bits: str, sparsity: str, recipe: str = "best", seed: int = 0) -> "Compression | None":
        """bits: 8, 4, 3, 2, mixed or an average such as 3.5; sparsity: dense, 8:16, 4:16, 2:16, 1:16 or mixed; recipe:
        of RECIPES. None for 8 bits dense, which is the uncompressed machine format; ValueError for anything else."""
        if recipe not in RECIPES:
            raise ValueError(f"recipe {recipe!r}: choose from {', '.join(RECIPES)}")
        width, nonzeros = _parse_bits(bits), _parse_sparsity(sparsity)
        if (width is None and nonzeros not in (None, BLOCK)) or (nonzeros is None and width not in (None, *BITS)):
            raise ValueError(f"bits {bits} with sparsity {sparsity}: mixed goes with mixed, dense or one precision")
        if width == 8 and nonzeros == BLOCK:
            return None
        return cls(width, nonzeros, recipe, seed, f"{bits} bits, {sparsity}, {recipe}")

    @property
    def random(self) -> bool:
        return self.bits is None or self.nonzeros is None

    def calibrates(self, checkpoint: Checkpoint) -> bool:
        """Whether weights of this checkpoint are calibrated: not the plain recipe, trained, and small enough."""
        parameters = sum(math.prod(shape) for shape in checkpoint.shapes.values())
        return (
            self.recipe != "plain"
            and not isinstance(checkpoint, SyntheticCheckpoint)
            and parameters <= CALIBRATED_PARAMETERS
        )

    def allocates(self, checkpoint: Checkpoint) -> bool:
        """Whether precisions are chosen by sensitivity: an average, or 4 bits where weights are calibrated."""
        return self.bits is not None and (self.bits not in BITS or (self.bits == 4 and self.calibrates(checkpoint)))

    def plan(self, checkpoint: Checkpoint, ids: Sequence[int] | None = None, states: States | None = None) -> Plan:
        """Which block gets what. Reads weights only for an average (not even then if they are synthetic).

        A head that is tied to the embedding stays INT8 in every setting and is not part of an average, which is over
        the decoder layers' linears (as in the papers: embeddings are not compressed).

        ids: calibration tokens (`ref_model.calibrate.calibration_ids`) and states: scaled tensors of the layers, both
        used for an average unless the recipe is plain.
        """
        if self.bits is None or self.nonzeros is None:
            defaults = MixedPlan()
            return MixedPlan(
                self.seed,
                defaults.bits if self.bits is None else (int(self.bits),),
                defaults.nonzeros if self.nonzeros is None else (self.nonzeros,),
            )
        if self.bits in BITS and not (ids and self.allocates(checkpoint)):
            return UniformPlan(int(self.bits), self.nonzeros, not checkpoint.config.text.tied_embeddings)
        shapes = linear_shapes(checkpoint)
        if checkpoint.config.text.tied_embeddings:
            del shapes[HEAD_NAME]
        chosen = allocate(self._sensitivities(checkpoint, shapes, ids, states), self.bits)
        return AllocatedPlan({name: spread(chosen[name], *shapes[name]) for name in shapes}, self.nonzeros)

    def _sensitivities(
        self,
        checkpoint: Checkpoint,
        shapes: dict[str, tuple[int, int]],
        ids: Sequence[int] | None,
        states: States | None,
    ) -> dict[str, Sensitivity]:
        assert self.nonzeros is not None
        if isinstance(checkpoint, SyntheticCheckpoint):
            return {name: even_sensitivity(*shape) for name, shape in shapes.items()}
        state = checkpoint.state(torch.float32) | named(states or [])
        measured = importance(checkpoint, ids[:IMPORTANCE_TOKENS], state) if ids and self.calibrates(checkpoint) else {}
        return {
            name: sensitivity(state[f"{name}.weight"].numpy(), measured.get(name), self.nonzeros) for name in shapes
        }

    def compressor(self, checkpoint: Checkpoint, ids: Sequence[int] | None = None) -> Compressor:
        """The compressor for `ref_model.quantise.quantise`.

        ids: calibration tokens. Without them, for synthetic weights, for large models and for random plans, every
        recipe is the plain one.
        """
        if not ids or self.random or not self.calibrates(checkpoint):
            return PlainCompressor(self.plan(checkpoint))
        rms = input_rms(checkpoint, ids[: min(SCALING_TOKENS, checkpoint.config.text.context)])
        states = [scaled_layer(checkpoint, index, rms) for index in range(checkpoint.config.text.layers)]
        plan = self.plan(checkpoint, ids, states)
        return CalibratedCompressor(plan, checkpoint, ids, states, self.recipe == "tuned")


def _parse_bits(text: str) -> float | None:
    if text == "mixed":
        return None
    if not re.fullmatch(r"\d+(\.\d+)?", text) or not min(BITS) <= float(text) <= max(BITS):
        raise ValueError(f"bits {text!r}: choose 8, 4, 3, 2, an average such as 3.5, or mixed")
    return float(text)


def _parse_sparsity(text: str) -> int | None:
    known = {"dense": BLOCK, "mixed": None} | {f"{n}:{BLOCK}": n for n in NONZEROS if n < BLOCK}
    if text not in known:
        raise ValueError(f"sparsity {text!r}: choose from {', '.join(known)}")
    return known[text]


__all__ = ["RECIPES", "CalibratedCompressor", "Compression", "Compressor", "PlainCompressor"]
