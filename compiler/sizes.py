"""How long weight streams are and what is in them: dense, or as a compression plan says."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np

from hw.spec import weights
from hw.spec.config import BLOCK
from hw.spec.weights import ceil_div

from . import ir, stream

Blocks = tuple[np.ndarray, np.ndarray]
"""(bits, non-zeros), each uint8[out_blocks, in_blocks]."""


Rows = list[tuple[str, ir.Linear]]
"""Modules whose rows follow each other in a stream."""


class Plan(Protocol):
    """Precision and non-zeros of every block, known before the weights."""

    def blocks(self, name: str, n_out: int, n_in: int) -> tuple[np.ndarray, np.ndarray] | None:
        """(bits, non-zeros) uint8[out_blocks, in_blocks] of the module called `name`; None: dense, 8 bits."""


class Sizes:
    """Beats of streams on `units` units. Counts what is asked for, for reports."""

    def __init__(self, units: int, plan: Plan | None = None) -> None:
        self.units, self.plan = units, plan
        self.shares: dict[str, float] = {}
        """Module name -> share of its weights that are in its stream."""
        self.held = 0
        """Beats of all units' streams that hold weights or headers of some."""
        self._known: dict[tuple, tuple[int, int]] = {}
        self._headers: dict[tuple, list[stream.Headers]] = {}
        self._compressed_bits = self._compressed_weights = 0
        self._nonzeros = self._weights = 0.0

    def steps(self, rows: Rows) -> int:
        """Output-block steps of a stream."""
        return weights.output_blocks(sum(op.n_out for _, op in rows), self.units)

    def sparse(self, rows: Rows) -> bool:
        """Whether a stream has sparse blocks."""
        parts = [self._blocks(name, op) for name, op in rows]
        return any(stream.group_of(part[1], stream.LEAST_GROUP) > 1 for part in parts if part is not None)

    def sections(self, rows: Rows, steps: Sequence[int], grouped: bool) -> list[int]:
        """Beats of a stream's sections of so many output-block steps."""
        for name, op in rows:
            self._count(name, op, self._blocks(name, op))
        op, blocks = self._joined(rows)
        found = []
        for n, (shape, part) in zip(steps, self._parts(op, steps, blocks), strict=True):
            key = (*_key(shape, part, n), grouped)
            if key not in self._known:  # layers that are divided alike are counted once
                self._known[key] = stream.lengths(shape, part, self.units, n, grouped)
            found.append(self._known[key][0])
            self.held += self._known[key][1]
        return found

    def headers(self, rows: Rows, steps: Sequence[int], grouped: bool) -> list[list[stream.Headers]]:
        """Header beats of every unit's streams of those sections; streams that are divided alike share them."""
        op, blocks = self._joined(rows)
        found = []
        for n, (shape, part) in zip(steps, self._parts(op, steps, blocks), strict=True):
            key, (bits, nonzeros) = (*_key(shape, part, n), grouped), part or (None, None)
            if key not in self._headers:
                self._headers[key] = stream.headers(shape, bits, nonzeros, self.units, n, grouped)
            found.append(self._headers[key])
        return found

    def _blocks(self, name: str, op: ir.Linear) -> Blocks | None:
        return None if self.plan is None else self.plan.blocks(name, op.n_out, op.n_in)

    def _joined(self, rows: Rows) -> tuple[ir.Linear, Blocks | None]:
        """The modules as one; those that are dense are so in 8 bits."""
        first, parts = rows[0][1], [self._blocks(name, op) for name, op in rows]
        whole = replace(first, n_out=sum(op.n_out for _, op in rows))
        if all(part is None for part in parts):
            return whole, None
        held = [_dense(op) if part is None else part for (_, op), part in zip(rows, parts, strict=True)]
        return whole, (np.concatenate([bits for bits, _ in held]), np.concatenate([n for _, n in held]))

    def _parts(
        self, op: ir.Linear, steps: Sequence[int], blocks: Blocks | None
    ) -> Iterator[tuple[tuple[int, int], Blocks | None]]:
        """Shape and blocks of each section."""
        for first, end in pairwise(accumulate(steps, initial=0)):
            first, end = (step * self.units * BLOCK for step in (first, end))
            shape = (min(end, op.n_out) - first, op.n_in)
            rows = slice(first // BLOCK, ceil_div(first + shape[0], BLOCK))
            yield shape, None if blocks is None else (blocks[0][rows], blocks[1][rows])

    def _count(self, name: str, op: ir.Linear, blocks: tuple[np.ndarray, np.ndarray] | None) -> None:
        share, n = 1.0, op.n_out * op.n_in
        if blocks is not None:
            bits, nonzeros = (b.astype(np.int64) for b in blocks)
            share = float(nonzeros.mean()) / BLOCK
            self._compressed_bits += int((bits * nonzeros).sum()) * BLOCK
            self._compressed_weights += bits.size * BLOCK * BLOCK
        self.shares[name] = share
        self._nonzeros, self._weights = self._nonzeros + share * n, self._weights + n

    @property
    def average_bits(self) -> float:
        """Payload bits a weight over the compressed layers, indices and scales not counted; 8 without any."""
        return self._compressed_bits / self._compressed_weights if self._compressed_weights else 8.0

    @property
    def nonzeros(self) -> float:
        """Share of all weights that are in the streams."""
        return self._nonzeros / self._weights


def _dense(op: ir.Linear) -> Blocks:
    form = stream.dense_format((op.n_out, op.n_in))
    return form.bits, form.nonzeros


def _key(shape: tuple[int, int], blocks: Blocks | None, steps: int) -> tuple:
    """Equal for streams of equal structure."""
    digest = None if blocks is None else hashlib.sha256(blocks[0].tobytes() + blocks[1].tobytes()).digest()
    return shape, steps, digest
