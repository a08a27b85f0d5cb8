"""Where everything lies in the auxiliary memory and in the channels, in beats of 64 bytes."""

import hashlib
from dataclasses import dataclass, field

import numpy as np

from hw.spec import weights
from hw.spec.config import BEAT_BYTES, Config
from hw.spec.errors import UserError
from hw.spec.weights import ceil_div

from ..integer.steps import Array, Layout, Param
from ..stream import encode


@dataclass(frozen=True)
class Rows:
    """Wide rows in the auxiliary memory: int32, every group padded to whole words."""

    base: int
    beats: int
    """Of one row."""
    layout: Layout
    count: int
    """Rows there is room for."""

    def pack(self, values: Array, words: int, lanes: int) -> Array:
        """int64[rows, groups, size] -> uint8 of whole rows."""
        out = np.zeros((len(values), self.layout.groups, words * lanes), "<i4")
        out[..., : values.shape[2]] = values
        return out.reshape(-1).view(np.uint8)

    def unpack(self, data: Array, words: int, lanes: int) -> Array:
        """Inverse of `pack`."""
        rows = data.view("<i4").reshape(-1, self.layout.groups, words * lanes)
        return rows[..., : self.layout.size].astype(np.int64)


@dataclass(frozen=True)
class Cache:
    """Keys or values of all heads in the channels, and their scale words in the auxiliary memory."""

    base: int
    scales: int
    heads: int
    size: int
    """Channels of a head, padded to whole words."""
    context: int
    """Rows there is room for."""
    key: bool

    def beats(self, config: Config) -> int:
        """Of one head, in every channel."""
        return weights.cache_beats(self.size, self.context, config.units)

    def granules(self, config: Config) -> int:
        """Of one head's scale words."""
        return weights.cache_slots(self.context, config.units) * config.units


@dataclass
class MemoryMap:
    """Gives out places; `pieces` are what is there before the first run: (port, beat, bytes)."""

    config: Config
    aux_at: int = 0
    channel_at: int = 0
    pieces: list[tuple[int, int, Array]] = field(default_factory=list)
    _params: dict[bytes, int] = field(default_factory=dict)
    _streams: dict[tuple, tuple[int, int]] = field(default_factory=dict)

    def aux(self, beats: int) -> int:
        at, self.aux_at = self.aux_at, self.aux_at + beats
        if self.aux_at * BEAT_BYTES > self.config.aux_bytes:
            raise UserError(
                f"configuration {self.config} has {self.config.aux_bytes:,} bytes of auxiliary memory, the module "
                "needs more: shorten its lengths or choose a larger configuration"
            )
        return at

    def channel(self, beats: int) -> int:
        at, self.channel_at = self.channel_at, self.channel_at + beats
        if self.channel_at * BEAT_BYTES > self.config.channel_bytes:
            raise UserError(
                f"configuration {self.config} has {self.config.channel_bytes:,} bytes a channel, the module needs "
                "more: shorten its lengths or choose a larger configuration"
            )
        return at

    def words(self, size: int) -> int:
        """Vector words of `size` channels."""
        return ceil_div(size, self.config.lanes)

    def rows(self, layout: Layout, count: int) -> Rows:
        beats = layout.groups * self.words(layout.size) * self.config.granules_per_word
        return Rows(self.aux(beats * count), beats, layout, count)

    def cache(self, layout: Layout, context: int, key: bool) -> Cache:
        size = self.words(layout.size) * self.config.lanes
        empty = Cache(0, 0, layout.groups, size, context, key)
        base = self.channel(layout.groups * empty.beats(self.config))
        scales = self.aux(layout.groups * empty.granules(self.config))
        return Cache(base, scales, layout.groups, size, context, key)

    def param(self, param: Param, layout: Layout) -> int:
        """Beat of a constant a channel, padded like rows of that layout."""
        words = self.words(layout.size)
        values = np.zeros((layout.groups, words * self.config.lanes), "<i4")
        values[:, : layout.size] = param.array.astype(np.int64).astype(np.uint32).view(np.int32)
        key = values.tobytes()
        if key not in self._params:
            self._params[key] = self.aux(layout.groups * words * self.config.granules_per_word)
            self.pieces.append((self.config.units, self._params[key], values.reshape(-1).view(np.uint8)))
        return self._params[key]

    def table(self, words: list[int]) -> int:
        """Number of the first of these words of 32 bits, counted from the beginning of the auxiliary memory."""
        data = np.array(words, np.int64).astype(np.uint32).view(np.uint8)
        at = self.aux(ceil_div(data.size, BEAT_BYTES))
        self.pieces.append((self.config.units, at, data))
        return at * BEAT_BYTES // 4

    def stream(self, param: Param, inputs: Layout, outputs: Layout) -> tuple[int, int]:
        """(beat, beats) of a weight's stream in every channel, rows and columns padded like values of these layouts.
        Entries of a module, and layers whose weights are tied, share it."""
        content = hashlib.sha256(np.ascontiguousarray(param.array).data).digest()
        key = (content, inputs.groups, inputs.size, outputs.groups, outputs.size)
        if key not in self._streams:
            padded = self._padded(param.array, inputs, outputs)
            data = encode(padded, None, self.config.units)
            beats = data.shape[1] // BEAT_BYTES
            at = self.channel(beats)
            self.pieces += [(unit, at, data[unit]) for unit in range(self.config.units)]
            self._streams[key] = at, beats
        return self._streams[key]

    def _padded(self, weight: Array, inputs: Layout, outputs: Layout) -> Array:
        lanes = self.config.lanes
        out_size, in_size = self.words(outputs.size) * lanes, self.words(inputs.size) * lanes
        split = weight.reshape(outputs.groups, outputs.size, inputs.groups, inputs.size)
        padded = np.zeros((outputs.groups, out_size, inputs.groups, in_size), np.int8)
        padded[:, : outputs.size, :, : inputs.size] = split
        return padded.reshape(outputs.groups * out_size, inputs.groups * in_size)
