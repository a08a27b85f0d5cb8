"""A phase's body: what one tile of rows does, as instructions over values that have no place yet.

Buffers are values here: each is written by one instruction after another until it is complete, and gets its place on
the chip when the order of all instructions is known (`compiler.stages.place`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hw.spec.isa import Unit


@dataclass(eq=False)
class Buffer:
    """`size` elements in an on-chip buffer, for the largest tile: granules, blocks in OB, entries in RS."""

    name: str
    where: str
    size: int


@dataclass(frozen=True)
class Home:
    """Where a value lies: words from one row to the next and from one group to the next (OB: blocks; RS: entries)."""

    buffer: Buffer
    row: int
    group: int = 0
    heads_first: bool = False
    """int8 queries: [head][row] instead of [row][head], for attention."""


@dataclass(frozen=True)
class Memory:
    """A stretch of external memory, by name: instructions that touch the same one keep their order."""

    name: str


Place = Buffer | Memory


@dataclass(eq=False)
class Issue:
    """One instruction of a unit. emit writes it with an `Emitter`, once buffers have places."""

    unit: Unit
    operator: str
    reads: tuple[Place, ...]
    writes: tuple[Place, ...]
    emit: Callable[[Any], None]
    cycles: int = 1
    """About what it takes for the largest tile."""


@dataclass
class Body:
    """Instructions of one tile, in an order that keeps every value's readers behind its writers."""

    tile: int
    """Rows of the largest tile."""
    issues: list[Issue] = field(default_factory=list)
    before: list[Issue] = field(default_factory=list)
    """Once ahead of the loop over tiles; buffers that these touch keep their places until the end."""
    behind: list[Issue] = field(default_factory=list)
    """Once behind the loop."""
