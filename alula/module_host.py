"""The host's side of a program's entry: what it puts into memory before a run, and what must be there afterwards."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from alula.expected import Piece, cache_blocks, cache_words
from compiler.integer import steps as s
from compiler.integer.steps import Array, Held
from compiler.stages.memory import Cache
from compiler.stages.program import Lowered
from hw.spec.config import BEAT_BYTES, GRANULE_LANES
from hw.spec.run import Invocation
from hw.spec.weights import cache_slots
from sim.memory_image import MemoryImage


def image(lowered: Lowered) -> MemoryImage:
    """Memory with program, weights and constants."""
    config = lowered.config
    found = MemoryImage(config)
    for port, beat, data in lowered.memory.pieces:
        found.write(port, beat * BEAT_BYTES, data)
    found.write(config.aux_port, 0, np.array(lowered.words, np.uint64).view(np.uint8))
    return found


class Host:
    """Of one entry of a lowered module."""

    def __init__(self, lowered: Lowered, entry: str) -> None:
        self.words, self.config, self.memory = lowered.words, lowered.config, lowered.memory
        self.lowered = lowered.entries[entry]
        self.steps = self.lowered.integers.steps

    def invocation(self, lengths: Mapping[str, int]) -> Invocation:
        found = self.lowered
        arguments = found.argument_values(lengths)
        return Invocation(0, len(self.words), found.start, arguments, own_scalars=found.own_scalars)

    def put(self, image: MemoryImage, feed: Mapping[str, Any], lengths: Mapping[str, int]) -> None:
        """Writes what is brought; feed: as in `compiler.integer.feed`."""
        for name, value in feed.items():
            step = self.steps[name]
            if isinstance(step, s.Past):
                for piece in self._cache_pieces(self._cache_behind(name), value, name):
                    image.write(piece.port, piece.address, piece.data)
            elif isinstance(step, s.Mask):
                self._put_mask(image, step, value)
            elif name in self.lowered.rows:
                rows = self.lowered.rows[name]
                data = rows.pack(value, self.memory.words(rows.layout.size), self.config.lanes)
                image.write(self.config.aux_port, rows.base * BEAT_BYTES, data)

    def _put_mask(self, image: MemoryImage, step: s.Mask, value: Array) -> None:
        """Rows of masks are as long as rows of scores at this number of keys."""
        keys = value.shape[2]
        granules = cache_slots(keys, self.config.units) * self.config.units
        out = np.zeros((*value.shape[:2], granules * GRANULE_LANES), "<i4")
        out[..., :keys] = value
        image.write(
            self.config.aux_port, self.lowered.rows[step.name].base * BEAT_BYTES, out.reshape(-1).view(np.uint8)
        )

    def _cache_behind(self, past: str) -> Cache:
        """Where new rows go behind past ones: both lie in one cache."""
        holds = self.lowered.integers.of_kind(s.Hold)
        return self.lowered.caches[next((step.name for step in holds if step.past == past), past)]

    # --- what must be there ------------------------------------------------------------------------------

    def pieces(self, values: Mapping[str, Any]) -> list[Piece]:
        """The golden model's bytes of all results and of all state. values: of `interpret`."""
        found = []
        for output, view in self.lowered.integers.results.items():
            if view.base in self.lowered.rows and not isinstance(self.steps[view.base], s.Input):
                found.append(self._rows_piece(output, view.base, values[view.base]))
        for name, cache in self.lowered.caches.items():
            found += self._cache_pieces(cache, values[name], name)
        return found

    def _rows_piece(self, what: str, name: str, value: Array) -> Piece:
        rows = self.lowered.rows[name]
        data = rows.pack(value, self.memory.words(rows.layout.size), self.config.lanes)
        return Piece(what, self.config.aux_port, rows.base * BEAT_BYTES, data)

    def _cache_pieces(self, cache: Cache, held: Held, name: str) -> list[Piece]:
        """Keys or values in the channels and their scale words; only rows that there are count."""
        padded = np.zeros((cache.heads, len(held.rows), cache.size), np.int8)
        padded[..., : held.rows.shape[2]] = held.rows.transpose(1, 0, 2)
        units = self.config.units
        data, there = (
            cache_blocks(each, units, cache.context, transposed=not cache.key)
            for each in (padded, np.ones_like(padded))
        )
        found = [
            Piece(name, unit, cache.base * BEAT_BYTES, data[unit], there[unit] != 0)
            for unit in range(units)
            if there[unit].any()
        ]
        words, marks = (
            cache_words(each, units, cache.context) for each in (held.words.T, np.full(held.words.T.shape, -1))
        )
        if marks.any():
            found.append(Piece(f"{name} scales", self.config.aux_port, cache.scales * BEAT_BYTES, words, marks != 0))
        return found

    def results(self, image: MemoryImage, lengths: Mapping[str, int]) -> dict[str, Array]:
        """Integers of all results that lie in the auxiliary memory: int64[rows, groups, size], by output."""
        found = {}
        for output, view in self.lowered.integers.results.items():
            rows = self.lowered.rows[view.base]
            step = self.steps[view.base]
            count = step.rows if isinstance(step.rows, int) else step.rows.at(lengths)
            data = image.read(self.config.aux_port, rows.base * BEAT_BYTES, rows.beats * BEAT_BYTES * count)
            found[output] = rows.unpack(data, self.memory.words(rows.layout.size), self.config.lanes)
        return found
