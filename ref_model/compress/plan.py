"""Plans: the precision and the non-zeros of every 16 x 16 block, before any weight is looked at more closely."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from hw.spec.config import BLOCK
from hw.spec.weights import BITS, NONZEROS, WINDOW, ceil_div
from ref_model.checkpoints.base import Checkpoint

Blocks = tuple[np.ndarray, np.ndarray]
"""(bits, nonzeros), each uint8[ceil(out / 16), ceil(in / 16)]."""
DECODER_PREFIX = "language_model.layers."
HEAD_NAME = "lm_head"


class Plan(Protocol):
    """Which block of which linear layer (by canonical module name) gets what."""

    def blocks(self, name: str, n_out: int, n_in: int) -> Blocks | None:
        """Precisions and non-zeros of weight[n_out, n_in]; None: dense INT8, untouched."""
        ...


def compressible(name: str, n_in: int, vision: bool = False) -> bool:
    """Decoder layers' linears and the head; `vision`: every linear. Rows must be whole blocks: levels of 2 and 3 bits
    have no zero to fill one up."""
    return n_in % BLOCK == 0 and (vision or name == HEAD_NAME or name.startswith(DECODER_PREFIX))


def linear_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """Canonical module name -> (outputs, inputs) of every compressible linear of the language model."""
    shapes = {
        name.removesuffix(".weight"): shape
        for name, shape in checkpoint.shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    }
    return {name: (shape[0], shape[1]) for name, shape in shapes.items() if compressible(name, shape[1])}


def _shape(n_out: int, n_in: int) -> tuple[int, int]:
    return ceil_div(n_out, BLOCK), ceil_div(n_in, BLOCK)


@dataclass(frozen=True)
class UniformPlan:
    """The same for every block of the language model; vision tower and projector stay INT8, the head if not `head`."""

    bits: int
    nonzeros: int = BLOCK
    head: bool = True

    def blocks(self, name: str, n_out: int, n_in: int) -> Blocks | None:
        if not compressible(name, n_in) or (name == HEAD_NAME and not self.head):
            return None
        shape = _shape(n_out, n_in)
        return np.full(shape, self.bits, np.uint8), np.full(shape, self.nonzeros, np.uint8)


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(f"plan {seed}:{name}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8")))


@dataclass(frozen=True)
class MixedPlan:
    """Random precisions and non-zeros, a function of (seed, name): to exercise everything the stream can carry.

    Every linear layer of the model takes part whose width is a multiple of 16. Output blocks have the same precisions
    and non-zeros in a window in another order, so the units of a step have equal work.
    """

    seed: int = 0
    bits: Sequence[int] = tuple(sorted(BITS))
    nonzeros: Sequence[int] = (0, *sorted(NONZEROS))

    def blocks(self, name: str, n_out: int, n_in: int) -> Blocks | None:
        if not compressible(name, n_in, vision=True):
            return None
        generator, (rows, columns) = _generator(self.seed, name), _shape(n_out, n_in)
        bits = generator.choice(np.array(self.bits, np.uint8), (rows, columns))
        nonzeros = np.empty((rows, columns), np.uint8)
        for start in range(0, columns, WINDOW):
            width = min(WINDOW, columns - start)
            drawn = generator.choice(np.array(self.nonzeros, np.uint8), width)
            nonzeros[:, start : start + width] = generator.permuted(np.tile(drawn, (rows, 1)), axis=1)
        return bits, nonzeros


@dataclass(frozen=True)
class AllocatedPlan:
    """Precisions that the allocator chose by canonical name, and one number of non-zeros.

    table: uint8[ceil(out / 16), ceil(in / 16)] for every compressed layer.
    """

    table: Mapping[str, np.ndarray] = field(repr=False)
    nonzeros: int = BLOCK

    def blocks(self, name: str, n_out: int, n_in: int) -> Blocks | None:
        bits = self.table.get(name)
        if bits is None:
            return None
        assert bits.shape == _shape(n_out, n_in), name
        return bits, np.full(bits.shape, self.nonzeros, np.uint8)

    def average_bits(self) -> float:
        """Mean precision over the compressed layers' weights (whole blocks)."""
        return sum(float(b.sum(dtype=np.int64)) for b in self.table.values()) / sum(b.size for b in self.table.values())
