"""Regions of the on-chip buffers, and the allocator that places them.

Sizes and bases count granules (16 int32) in AB, PB, VB, SB, blocks (16 int8) in OB and entries in RS. `MEMORY`
regions stand for stretches of external memory, so that cache writes and reads are ordered like buffer accesses.
"""

from dataclasses import dataclass, replace

from hw.spec.config import Config
from hw.spec.errors import UserError

ROOM = {
    "AB": "ab_granules",
    "PB": "pb_granules",
    "VB": "vb_granules",
    "SB": "sb_granules",
    "OB": "ob_blocks",
    "RS": "rs_entries",
}
"""The field of a configuration that says how many elements a buffer holds."""
UNITS = {"OB": "blocks", "RS": "entries"}
"""What sizes of other buffers than those of granules count."""


@dataclass(frozen=True)
class Region:
    """`size` elements of `buffer` from `base` on; regions may overlap, hazards are found by interval."""

    buffer: str
    name: str
    base: int
    size: int
    per_word: int = 1
    """Elements in a vector-unit word (1 for OB, RS, MEMORY)."""
    reach: int = 0
    """Elements from `base` on that an offset may lead to, where these are more than `size`."""

    @property
    def room(self) -> int:
        return max(self.size, self.reach)

    @property
    def unit(self) -> str:
        return UNITS.get(self.buffer, "granules")

    @property
    def word(self) -> int:
        """First vector-unit word."""
        return self.base // self.per_word

    def part(self, first: int, size: int) -> "Region":
        """`size` elements from element `first` on."""
        return replace(self, base=self.base + first, size=size, reach=0)

    def overlaps(self, other: "Region") -> bool:
        return (
            self.buffer == other.buffer and self.base < other.base + other.size and other.base < self.base + self.size
        )


def memory_region(name: str) -> Region:
    """A named stretch of external memory; two overlap when they have the same name."""
    return Region("MEMORY", name, int.from_bytes(name.encode()[:7], "big"), 1)


def per_word(config: Config, buffer: str) -> int:
    """Elements in a vector-unit word."""
    return 1 if buffer in ("OB", "RS") else config.granules_per_word


def alignment(config: Config, buffer: str) -> int:
    """A region begins at a multiple of so many elements."""
    return 1 if buffer == "RS" else max(config.granules_per_word, config.units if buffer == "OB" else 1)


class Allocator:
    """Places regions in one buffer. `mark`/`release` reuse space between phases; `ring` wraps around."""

    def __init__(self, config: Config, buffer: str) -> None:
        self.buffer, self.limit = buffer, getattr(config, ROOM[buffer])
        self.per_word, self.align = per_word(config, buffer), alignment(config, buffer)
        self.at, self.config = 0, config

    def take(self, name: str, size: int) -> Region:
        """The next `size` elements; UserError when they do not fit."""
        size = -(-size // self.align) * self.align
        region = Region(self.buffer, name, self.at, size, self.per_word)
        self.at += size
        if self.at > self.limit:
            raise UserError(
                f"buffer {self.buffer} of configuration {self.config.name} holds {self.limit} "
                f"{region.unit}, {name} needs up to {self.at}: choose a larger "
                "configuration or a shorter context"
            )
        return region

    def ring(self, name: str, size: int) -> Region:
        """Like `take`, but starts again at 0 when the end is reached (order is kept by tokens)."""
        if self.at + -(-size // self.align) * self.align > self.limit:
            self.at = 0
        return self.take(name, size)
