"""Finding what repeats in a program: layers, and where instructions do not fit, heads.

Layers are phases that come again. Heads are stretches between two jumps that come again: the order of a tile's
instructions was chosen freely, and settles to a period after a few heads. Both become loops (`loops.Loop`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hw.spec.isa import ARGUMENT_REGISTERS, OPERANDS, REGISTERS, Op

from .loops import JUMPS, LEAST_FREE, SUMS, Loop, Program, Repeat

MOST_PHASES = 8
"""Phases of the longest stretch that is looked for."""
MOST_INSTRUCTIONS = 1024
"""Instructions of the longest stretch that is looked for within a tile."""


@dataclass(frozen=True)
class Rolled:
    """A program with repeats as loops. origin: where every instruction of it was before, those of loops left out.
    entries: where each entry begins."""

    program: Program
    origin: dict[int, int]
    entries: list[int]


def roll(program: Program, entries: Sequence[Sequence[int]], table: Callable[[list[int]], int], room: int) -> Rolled:
    """The program with its layers as loops, and its heads where it has more instructions than `room`. No loop goes on
    from one entry to the next.

    entries: where each phase of each entry begins; jumps stay within a phase. table: puts words into the auxiliary
    memory, and gives the number of the first one there.
    """
    free = _free_registers(program)
    ends = [*(starts[0] for starts in entries[1:]), len(program)]
    repeats = [r for starts, end in zip(entries, ends, strict=True) for r in _layers(program, [*starts, end], free)]
    layers = _rolled(program, [starts[0] for starts in entries], repeats, table)
    if len(layers.program) <= room:
        return layers
    free = _free_registers(layers.program)
    repeats = _enough(layers.program, _heads(layers.program, layers.entries, free), free, room)
    heads = _rolled(layers.program, layers.entries, repeats, table)
    origin = {new: layers.origin[old] for new, old in heads.origin.items() if old in layers.origin}
    return Rolled(heads.program, origin, heads.entries)


def _rolled(program: Program, entries: Sequence[int], repeats: Sequence[Repeat], table: Callable) -> Rolled:
    """The program with these repeats, in the order of their places, as loops. entries: where each entry begins."""
    free = _free_registers(program)
    out: Program = []
    places: dict[int, int] = {}
    """Old place -> new place."""
    origin: dict[int, int] = {}
    at, begins = 0, {}
    for repeat in repeats:
        _copy(program, range(at, repeat.start), out, places, origin)
        begins[repeat.start] = len(out)
        Loop(program, repeat, free).write(out, places, origin, table)
        at = repeat.end
    _copy(program, range(at, len(program)), out, places, origin)
    for new, old in origin.items():
        if program[old].op in JUMPS:
            out[new] = replace(out[new], imm=places[program[old].imm])
    return Rolled(out, origin, [begins.get(start, places[start]) for start in entries])


def _copy(program: Program, part: range, out: Program, places: dict[int, int], origin: dict[int, int]) -> None:
    for old in part:
        places[old], origin[len(out)] = len(out), old
        out.append(program[old])


def _free_registers(program: Program) -> list[int]:
    """Registers that the program never names, arguments aside."""
    used = {
        getattr(instruction, name)
        for instruction in program
        for name, kind in zip("abc", OPERANDS[instruction.op], strict=True)
        if kind == "r"
    }
    return [r for r in range(ARGUMENT_REGISTERS + 1, REGISTERS) if r not in used]


# --- layers ---------------------------------------------------------------------------------------------


def _layers(program: Program, bounds: Sequence[int], free: list[int]) -> Iterator[Repeat]:
    """Phases of an entry that repeat, where a loop is shorter; of several repeats at one place the best."""
    if len(free) < LEAST_FREE:
        return
    at, phases = 0, len(bounds) - 1
    while at < phases:
        sizes = range(1, min(MOST_PHASES, (phases - at) // 2) + 1)
        found = [_phases(program, bounds, at, size) for size in sizes]
        saved = {r: Loop(program, r, free).saved for r in found if r.times > 1 and not _is_entered(program, r)}
        best = max(saved, key=lambda repeat: saved[repeat], default=None)
        if best is None or saved[best] <= 0:
            at += 1
            continue
        yield best
        at = bounds.index(best.end)


def _is_entered(program: Program, repeat: Repeat) -> bool:
    """Whether a jump from elsewhere leads into the stretches: it would miss what the loop does ahead of them."""
    inside = range(repeat.start, repeat.end)
    return any(one.op in JUMPS and one.imm in inside and at not in inside for at, one in enumerate(program))


def _phases(program: Program, bounds: Sequence[int], at: int, size: int) -> Repeat:
    """How often the `size` phases from phase `at` on come again."""
    start, length = bounds[at], bounds[at + size] - bounds[at]
    constants: list[list[int]] = [[0] * length]
    for here, end in zip(bounds[at + size :: size], bounds[at + 2 * size :: size], strict=False):
        found = _differences(program, start, here, length) if end - here == length else None
        if found is None:
            break
        constants.append(found)
    return Repeat(start, length, len(constants), tuple(zip(*constants, strict=True)))


def _differences(program: Program, first: int, other: int, length: int) -> list[int] | None:
    """By how much the constants of two stretches differ; None if the stretches differ in anything else, or if a jump
    leaves them: at their end the loop goes on otherwise than the program did."""
    found, inside = [], range(first, first + length)
    for a, b in zip(program[first : first + length], program[other : other + length], strict=True):
        if a.op in JUMPS and a.imm not in inside:
            return None
        difference = b.imm - a.imm - (other - first if a.op in JUMPS else 0)
        if replace(a, imm=0) != replace(b, imm=0) or (difference and a.op not in SUMS):
            return None
        found.append(difference)
    return found


# --- heads ----------------------------------------------------------------------------------------------


def _heads(program: Program, entries: Sequence[int], free: list[int]) -> Iterator[Repeat]:
    """Stretches that repeat between two jumps."""
    if len(free) < LEAST_FREE:
        return
    kinds: dict[tuple, int] = {}
    fixed = [(one.op, one.a, one.b, one.c, 0 if one.op in SUMS else one.imm) for one in program]
    shape = np.array([kinds.setdefault(each, len(kinds)) for each in fixed])
    for first, end in _straight(program, entries):
        yield from _within(program, shape, first, end, free)


def _enough(program: Program, repeats: Iterable[Repeat], free: list[int], room: int) -> list[Repeat]:
    """Those that save most, until the program fits: a loop takes a few cycles that straight code does not."""
    chosen: list[Repeat] = []
    length = len(program)
    for saved, repeat in sorted(((Loop(program, r, free).saved, r) for r in repeats), key=lambda each: -each[0]):
        if length <= room:
            break
        length -= saved
        chosen.append(repeat)
    return sorted(chosen, key=lambda repeat: repeat.start)


def _straight(program: Program, entries: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The parts without jumps, to nothing of which a jump leads, and in the midst of which no entry begins."""
    ends = {at for at, one in enumerate(program) if one.op in (*JUMPS, Op.ENDL, Op.HALT)}
    targets = {program[at].imm for at in ends if program[at].op in JUMPS}
    at = 0
    for place in sorted(ends | targets | set(entries)):
        if place > at:
            yield at, place
        at = place + 1


def _within(program: Program, shape: np.ndarray, first: int, end: int, free: list[int]) -> Iterator[Repeat]:
    """The repeat that saves most, and those ahead of it and behind it."""
    best, most = None, 0
    for bound, repeat in sorted(_candidates(shape, first, end), reverse=True):
        if bound <= most:
            break
        made = _with_series(program, *repeat)
        if (saved := Loop(program, made, free).saved) > most:
            best, most = made, saved
    if best is not None:
        yield from _within(program, shape, first, best.start, free)
        yield best
        yield from _within(program, shape, best.end, end, free)


def _candidates(shape: np.ndarray, first: int, end: int) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """(instructions that go, (start, length, times)) of all that repeats in operations and registers."""
    for length in range(2, min(MOST_INSTRUCTIONS, (end - first) // 2) + 1):
        same = np.zeros(end - first - length + 2, np.int8)
        same[1:-1] = shape[first : end - length] == shape[first + length : end]
        (edges,) = np.nonzero(np.diff(same))
        starts, sizes = edges[::2], edges[1::2] - edges[::2]
        for start, more in zip(starts[sizes >= length].tolist(), sizes[sizes >= length] // length, strict=True):
            yield int(more) * length, (first + start, length, int(more) + 1)


def _with_series(program: Program, start: int, length: int, times: int) -> Repeat:
    constants = [program[at].imm for at in range(start, start + times * length)]
    series = (tuple(constants[time * length + at] - constants[at] for time in range(times)) for at in range(length))
    return Repeat(start, length, times, tuple(series))
