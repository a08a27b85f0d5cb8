"""Places for the buffers of a body, by the stretch of instructions in which each is needed."""

from dataclasses import dataclass

from hw.spec.config import Config
from hw.spec.errors import UserError

from ..kernels.regions import ROOM, Region, alignment, per_word
from .body import Body, Buffer


class DoesNotFitError(UserError):
    """The buffers that a tile needs at once are more than the machine has."""


@dataclass
class _Life:
    buffer: Buffer
    first: int
    last: int


def places(body: Body, config: Config) -> dict[Buffer, Region]:
    """A region for every buffer; `DoesNotFitError` where they are too many at once."""
    lives: dict[Buffer, _Life] = {}
    end = len(body.issues)
    for at, issue in enumerate(body.issues):
        for place in (*issue.reads, *issue.writes):
            if isinstance(place, Buffer):
                life = lives.setdefault(place, _Life(place, at, at))
                life.last = at
    for issue in (*body.before, *body.behind):
        for place in (*issue.reads, *issue.writes):
            if isinstance(place, Buffer):
                lives[place] = _Life(place, 0, end)
    found: dict[Buffer, Region] = {}
    for where in ROOM:
        found |= _in_one([life for life in lives.values() if life.buffer.where == where], where, config)
    return found


def _in_one(lives: list[_Life], where: str, config: Config) -> dict[Buffer, Region]:
    """Next fit: a place behind the one given last is taken first, so that what was just in use stays undisturbed."""
    limit = getattr(config, ROOM[where])
    align = alignment(config, where)
    placed: list[tuple[int, int, int]] = []
    found, at = {}, 0
    for life in sorted(lives, key=lambda each: each.first):
        size = -(-life.buffer.size // align) * align
        busy = sorted((start, end) for start, end, last in placed if last >= life.first)
        start = _gap(busy, size, limit, at)
        if start is None:
            raise DoesNotFitError(
                f"buffer {where} of configuration {config} holds {limit:,}, a tile needs more with {life.buffer.name} "
                f"({size:,}): narrow the module, shorten its lengths, or choose a larger configuration"
            )
        placed.append((start, start + size, life.last))
        at = start + size
        found[life.buffer] = Region(where, life.buffer.name, start, size, per_word(config, where))
    return found


def _gap(busy: list[tuple[int, int]], size: int, limit: int, at: int) -> int | None:
    """Where `size` elements fit between what is busy: from `at` on, else from the beginning."""
    gaps, free = [], 0
    for start, end in busy:
        if start - free >= size:
            gaps.append((free, start))
        free = max(free, end)
    if limit - free >= size:
        gaps.append((free, limit))
    behind = [max(low, at) for low, high in gaps if high - max(low, at) >= size]
    return min(behind) if behind else gaps[0][0] if gaps else None
