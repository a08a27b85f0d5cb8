"""What memory must hold: the golden model's arrays as bytes at their addresses, and the comparison.

Layouts are those of `hw.spec.weights`; nothing here knows how programs bring the bytes about.
"""

import hashlib
from dataclasses import dataclass, fields, replace

import numpy as np

from compiler.layout import Layout
from hw.spec.config import BEAT_BYTES, BLOCK, GRANULE_LANES
from hw.spec.weights import cache_slots
from ref_model.golden.model import LayerCache
from sim.memory_image import MemoryImage

WORD_BYTES = 4


@dataclass(frozen=True)
class Piece:
    """Bytes that a port's memory must hold after a run."""

    what: str
    port: int
    address: int
    data: np.ndarray
    where: np.ndarray | None = None
    """Bytes that count (default: all)."""

    @property
    def nbytes(self) -> int:
        """Bytes that count."""
        return self.data.nbytes if self.where is None else int(np.count_nonzero(self.where))

    def differing(self, memory: MemoryImage) -> int:
        """Bytes of `memory` that differ."""
        wrong = memory.read(self.port, self.address, self.data.nbytes) != self.data
        return int(np.count_nonzero(wrong if self.where is None else wrong & self.where))


def digest(pieces: list[Piece]) -> str:
    """SHA-256 of the bytes that count, in their order, with their places."""
    state = hashlib.sha256()
    for piece in pieces:
        state.update(f"{piece.port} {piece.address} {piece.data.nbytes}\n".encode())
        state.update(np.ascontiguousarray(piece.data if piece.where is None else piece.data * piece.where).data)
    return state.hexdigest()


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def pack_rows(rows: np.ndarray, granules: int) -> np.ndarray:
    """Wide rows int64[n, width] as aux rows: int32, each padded to whole granules; uint8."""
    out = np.zeros((len(rows), granules * GRANULE_LANES), "<i4")
    out[:, : rows.shape[1]] = rows
    return _bytes(out)


def cache_blocks(values: np.ndarray, units: int, context: int, *, transposed: bool) -> np.ndarray:
    """int8[heads, n, hd] as the channels hold it: uint8[units, bytes].

    K lies as [head][slot][dim block][key][dim], V (transposed) as [head][dim block][slot][dim][key].
    """
    heads, n, width = values.shape
    slots, blocks = cache_slots(context, units), width // BLOCK
    padded = np.zeros((heads, slots * units * BLOCK, width), np.int8)
    padded[:, :n] = values
    split = padded.reshape(heads, slots, units, BLOCK, blocks, BLOCK)
    order = (2, 0, 4, 1, 5, 3) if transposed else (2, 0, 1, 4, 3, 5)
    return np.ascontiguousarray(split.transpose(order)).reshape(units, -1).view(np.uint8)


def cache_words(words: np.ndarray, units: int, context: int) -> np.ndarray:
    """int64[heads, n] as the auxiliary memory holds a scale table: uint8 of [head][key], padded to the context."""
    out = np.zeros((words.shape[0], cache_slots(context, units) * units * BLOCK), "<i4")
    out[:, : words.shape[1]] = words
    return _bytes(out)


def cache_pieces(layout: Layout, prefix: str, index: int, cache: LayerCache, context: int) -> list[Piece]:
    """K, V and their scales of layer `index` (of the compiled ones) in the `text` or `vision` sections."""
    config, records = layout.config, getattr(layout, prefix)
    store = layout.channel[f"{prefix}.cache"].base + index * records["cache"].beats
    scales = layout.aux[f"{prefix}.scales"].base + index * records["scales"].beats
    pieces = []
    for name, values, words in (("k", cache.k8, cache.k_words), ("v", cache.v8, cache.v_raw)):
        packed = cache_blocks(values, config.units, context, transposed=name == "v")
        address = (store + records["cache"][name]) * BEAT_BYTES
        pieces += [Piece(f"layer {index} {name}", unit, address, packed[unit]) for unit in range(config.units)]
        address = (scales + records["scales"][name]) * BEAT_BYTES
        pieces.append(
            Piece(f"layer {index} {name} scales", config.aux_port, address, cache_words(words, config.units, context))
        )
    return pieces


def filled_places(layout: Layout, pieces: list[Piece], cache: LayerCache, context: int) -> list[Piece]:
    """The pieces of a layer's cache without what lies in places behind the last token."""
    full = replace(cache, **{f.name: np.full_like(getattr(cache, f.name), -1) for f in fields(cache)})
    marks = cache_pieces(layout, "text", 0, full, context)
    return [replace(piece, where=mark.data != 0) for piece, mark in zip(pieces, marks, strict=True)]


def result_piece(layout: Layout, result: np.ndarray, head: bool, address_beats: int) -> Piece:
    """Logits int64[vocab] (head) or a residual row int64[hidden] at a beat address, the padding channels zero."""
    granules = layout.head.count * layout.head.granules if head else layout.geo.granules(len(result))
    return Piece(
        "logits" if head else "residual",
        layout.config.aux_port,
        address_beats * BEAT_BYTES,
        pack_rows(result[None], granules),
    )


def features_piece(layout: Layout, features: np.ndarray, address_beats: int) -> Piece:
    """Visual tokens int64[n, hidden] at a beat address."""
    granules = layout.geo.granules(features.shape[1])
    return Piece("features", layout.config.aux_port, address_beats * BEAT_BYTES, pack_rows(features, granules))


def choice_piece(layout: Layout, logits: np.ndarray) -> Piece:
    """The machine's greedy choice: the lowest number of a largest logit."""
    chosen = _bytes(np.array([logits.argmax()], "<u4"))
    return Piece("choice", layout.config.aux_port, layout.aux["token"].base * BEAT_BYTES, chosen)


def survivors_piece(layout: Layout, survivors: list[int]) -> Piece:
    """The list of patches that the machine kept."""
    beat = layout.aux["selection"].base + layout.selection["kept"]
    return Piece("survivors", layout.config.aux_port, beat * BEAT_BYTES, _bytes(np.array(survivors, "<u4")))


def write_pieces(memory: MemoryImage, pieces: list[Piece]) -> None:
    """Puts bytes into a memory: a cache of earlier tokens, for example."""
    for piece in pieces:
        memory.write(piece.port, piece.address, piece.data)


__all__ = ["Piece", "cache_pieces", "features_piece", "pack_rows", "result_piece", "write_pieces"]
