"""Block-sparse attention masks: which tiles of keys the queries of a tile attend to, beside causality."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hw.spec.errors import UserError

Array = np.ndarray


@dataclass(frozen=True)
class BlockMask:
    """`present[i, j]`: queries at places i*tile .. i*tile + tile-1 see the keys of tile j, as far as they are causal.

    Places count cached tokens, not RoPE positions. Tiles above the diagonal mean nothing; the diagonal is present.
    """

    tile: int
    present: Array

    def __post_init__(self) -> None:
        shape = self.present.shape
        if self.present.dtype != bool or len(shape) != 2 or shape[0] != shape[1]:
            raise UserError(
                f"an attention mask of {self.present.dtype}{list(shape)} is no square array of bool: give "
                "one value a tile of queries and tile of keys"
            )
        missing = np.flatnonzero(~self.present.diagonal())
        if len(missing):
            raise UserError(
                f"the attention mask leaves out tile {missing[0]} of the keys for its own queries: set the diagonal"
            )

    # --- patterns --------------------------------------------------------------------------------------

    @classmethod
    def causal(cls, tile: int, tiles: int) -> "BlockMask":
        """Everything that causality leaves."""
        return cls(tile, np.ones((tiles, tiles), bool))

    @classmethod
    def window(cls, tile: int, tiles: int, tokens: int) -> "BlockMask":
        """Every tile that holds one of some query's last `tokens` keys (itself included), and the first tile."""
        if tokens < 1:
            raise UserError(f"an attention window of {tokens} tokens sees nothing: give at least 1")
        place = np.arange(tiles)
        between = place[:, None] - place[None, :] - 1
        present = between * tile + 1 < tokens
        present[:, 0] = True
        return cls(tile, present)

    @classmethod
    def load(cls, path: Path, tile: int, tiles: int) -> "BlockMask":
        """A NumPy file with bool[tiles, tiles]."""
        try:
            present = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            raise UserError(f"the attention mask {path} is no readable .npy file: write it with numpy.save") from None
        if not isinstance(present, np.ndarray) or present.shape != (tiles, tiles):
            shape = list(getattr(present, "shape", ()))
            raise UserError(
                f"the attention mask {path} has the shape {shape}: {tiles} tiles of {tile} tokens are "
                f"compiled, so give bool[{tiles}, {tiles}]"
            )
        return cls(tile, present)

    @classmethod
    def parse(cls, text: str, tile: int, tiles: int) -> "BlockMask":
        """`causal`, `window:N` or the path of a .npy file."""
        if text == "causal":
            return cls.causal(tile, tiles)
        if text.startswith("window:"):
            if not text[7:].isdecimal():
                raise UserError(f"attention mask {text!r}: give the window in tokens, for example window:1024")
            return cls.window(tile, tiles, int(text[7:]))
        if not text.endswith(".npy"):
            raise UserError(f"unknown attention mask {text!r}: choose causal, window:N or a .npy file")
        return cls.load(Path(text), tile, tiles)

    # --- queries ---------------------------------------------------------------------------------------

    def rows(self, start: int, n: int, keys: int) -> Array:
        """bool[n, keys]: what the mask leaves to the queries at places start .. start + n-1, without causality."""
        return self.present[np.arange(start, start + n)[:, None] // self.tile, np.arange(keys)[None, :] // self.tile]

    def pairs(self, start: int, n: int) -> int:
        """Query-key pairs that are computed for the queries at places start .. start + n-1."""
        places = np.arange(start, start + n)
        return int((self.rows(start, n, start + n) & (np.arange(start + n) <= places[:, None])).sum())

    def slots(self, tile: int) -> Array:
        """Present key tiles of a query tile, ascending; the last one is the tile itself."""
        return np.flatnonzero(self.present[tile, : tile + 1])

    def runs(self, tile: int) -> Iterator[tuple[int, int]]:
        """(first, count) of the present key tiles in runs without a gap, ascending."""
        slots = self.slots(tile)
        for run in np.split(slots, np.flatnonzero(np.diff(slots) > 1) + 1):
            yield int(run[0]), len(run)
