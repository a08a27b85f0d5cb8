"""Repeated layers become loops: stretches of the program that differ in constants alone.

    layer 1   SET addr 1000 .. SET ctl1 6400           SET addr r20 + 1000 .. SET ctl1 r21
    layer 2   SET addr 1400 .. SET ctl1 6656     ->    r20 += 400, r22 += 1, again while r23 -= 1 is not 0
    layer 3   SET addr 1800 .. SET ctl1 6400           (r21 = word r22 of a table: 6400, 6656, 6400)

A constant that grows evenly, as addresses do, comes from a register that grows with it. Any other one, such as the
number of bits that a layer's products are shifted by, comes from a table in the auxiliary memory. The loop issues the
very instructions of the stretches. `roll` makes sure of it: it runs the loop's registers through all passes and
compares every instruction with the one that it stands for.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from hw.spec.errors import InternalError
from hw.spec.isa import ARGUMENT_REGISTERS, OPERANDS, REGISTERS, Instruction, Op

MOST_PHASES = 8
"""Phases of the longest stretch that is looked for."""
JUMPS = (Op.BEQ, Op.BNE, Op.BLTU, Op.BGEU, Op.LOOP)
SUMS = (Op.SET, Op.ADDI, Op.LDS)
"""What adds a register to its constant: a constant that changes from pass to pass goes through a register there."""
Program = list[Instruction]
Series = tuple[int, ...]
"""What a constant is in every pass, less what it is in the first one."""


@dataclass(frozen=True)
class Repeat:
    """`times` stretches of `length` instructions from `start` on; series: of each instruction's constant."""

    start: int
    length: int
    times: int
    series: tuple[Series, ...]

    @property
    def end(self) -> int:
        return self.start + self.times * self.length

    @property
    def changing(self) -> list[Series]:
        """The series that need a register each: even ones, then those that need a table."""
        found = {each for each in self.series if any(each)}
        return sorted(found, key=lambda series: (not _is_even(series), series))

    @property
    def saved(self) -> int:
        """Instructions that the loop saves, at least."""
        sums = sum(any(each) for each in self.series)
        return (self.times - 1) * self.length - 6 - 3 * len(self.changing) - sums


def _is_even(series: Series) -> bool:
    return all(value == series[1] * time for time, value in enumerate(series))


@dataclass(frozen=True)
class Rolled:
    """A program with its repeats as loops. origin: where every instruction of it was before, those of loops left out.
    entries: where each entry begins."""

    program: Program
    origin: dict[int, int]
    entries: list[int]


def roll(program: Program, entries: Sequence[Sequence[int]], table: Callable[[list[int]], int]) -> Rolled:
    """The program with its repeats as loops, none of which goes on from one entry to the next.

    entries: where each phase of each entry begins; jumps stay within a phase. table: puts words into the auxiliary
    memory, and gives the number of the first one there.
    """
    free = _free_registers(program)
    out: Program = []
    places: dict[int, int] = {}
    """Old place -> new place."""
    begins = []
    ends = [*(starts[0] for starts in entries[1:]), len(program)]
    for starts, end in zip(entries, ends, strict=True):
        begins.append(len(out))
        at = starts[0]
        for repeat in _repeats(program, [*starts, end], len(free)):
            _copy(program, range(at, repeat.start), out, places)
            _Loop(program, repeat, free, table).write(out, places)
            at = repeat.end
        _copy(program, range(at, end), out, places)
    origin = {new: old for old, new in reversed(places.items())}
    for new, old in origin.items():
        if program[old].op in JUMPS:
            out[new] = replace(out[new], imm=places[program[old].imm])
    return Rolled(out, origin, begins)


def _copy(program: Program, part: range, out: Program, places: dict[int, int]) -> None:
    for old in part:
        places[old] = len(out)
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


# --- finding repeats ------------------------------------------------------------------------------------


def _repeats(program: Program, bounds: Sequence[int], free: int) -> Iterator[Repeat]:
    """Repeats that make the program shorter, from the first to the last; of several at one place the best."""
    at, phases = 0, len(bounds) - 1
    while at < phases:
        sizes = range(1, min(MOST_PHASES, (phases - at) // 2) + 1)
        found = (_repeat(program, bounds, at, size) for size in sizes)
        useful = [r for r in found if r.saved > 0 and len(r.changing) + 3 <= free and not _is_entered(program, r)]
        if not useful:
            at += 1
            continue
        best = max(useful, key=lambda r: r.saved)
        yield best
        at = bounds.index(best.end)


def _is_entered(program: Program, repeat: Repeat) -> bool:
    """Whether a jump from elsewhere leads into the stretches: it would miss what the loop does ahead of them."""
    inside = range(repeat.start, repeat.end)
    return any(one.op in JUMPS and one.imm in inside and at not in inside for at, one in enumerate(program))


def _repeat(program: Program, bounds: Sequence[int], at: int, size: int) -> Repeat:
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


# --- making loops ---------------------------------------------------------------------------------------


class _Loop:
    """One repeat as a loop: its registers, its table, its instructions."""

    def __init__(self, program: Program, repeat: Repeat, free: list[int], table: Callable[[list[int]], int]) -> None:
        self.program, self.repeat = program, repeat
        self.count, self.spare, self.row, *registers = free
        self.register = dict(zip(repeat.changing, registers, strict=False))
        self.listed = [series for series in repeat.changing if not _is_even(series)]
        self.words = [series[time] for time in range(repeat.times) for series in self.listed]
        self.table = table(self.words) if self.words else 0

    def write(self, out: Program, places: dict[int, int]) -> None:
        """Appends the loop; every old instruction of the stretches gets its place."""
        even = {r: series[1] for series, r in self.register.items() if series not in self.listed}
        steps = even | ({self.row: len(self.listed)} if self.listed else {})
        first = len(out)
        out.append(Instruction(Op.ADDI, self.count, 0, 0, self.repeat.times))
        out += [Instruction(Op.ADDI, register, 0, 0, 0) for register in steps]
        top = len(out)
        for at, series in enumerate(self.listed):
            out.append(Instruction(Op.LDS, self.register[series], self.row, 0, self.table + at))
        for at in range(self.repeat.length):
            made = self._instruction(at)
            for time in range(self.repeat.times):
                places[self.repeat.start + time * self.repeat.length + at] = len(out)
            out += made
        out += [Instruction(Op.ADDI, register, register, 0, step) for register, step in steps.items()]
        out.append(Instruction(Op.ADDI, self.count, self.count, 0, -1))
        out.append(Instruction(Op.BNE, 0, self.count, 0, top))
        self._check(out[first:top], out[top:-1])

    def _instruction(self, at: int) -> Program:
        """An instruction of the stretch, with a register added to its sum where its constant changes."""
        old, series = self.program[self.repeat.start + at], self.repeat.series[at]
        if not any(series):
            return [old]
        register = self.register[series]
        if old.b == 0:
            return [replace(old, b=register)]
        return [Instruction(Op.ADD, self.spare, old.b, register), replace(old, b=self.spare)]

    def _check(self, before: Program, body: Program) -> None:
        """InternalError unless the passes are the stretches, instruction by instruction."""
        repeat, values = self.repeat, {0: 0}
        issued = list(self._run(before, values))
        for _ in range(repeat.times):
            issued += self._run(body, values)
        for at, (found, wanted) in enumerate(zip(issued, self.program[repeat.start : repeat.end], strict=True)):
            if wanted.op in JUMPS:
                wanted = replace(wanted, imm=wanted.imm - at // repeat.length * repeat.length)
            if found != wanted:
                raise InternalError(f"a loop over layers does {found} in place of {wanted}")
        if values[self.count]:
            raise InternalError(f"a loop over layers has {values[self.count]} passes left at its end")

    def _run(self, part: Program, values: dict[int, int]) -> Iterator[Instruction]:
        """What is left of instructions once the loop's own registers are known; values: of these."""
        own = {self.count, self.spare, self.row, *self.register.values()}
        sums: tuple[int, int] = 0, 0
        for one in part:
            if one.op == Op.LDS and one.a in own:
                values[one.a] = self.words[values[one.b] + one.imm - self.table]
            elif one.op == Op.ADDI and one.a in own:
                values[one.a] = values[one.b] + one.imm
            elif one.op == Op.ADD and one.a == self.spare:
                sums = one.b, values[one.c]
            elif one.op in SUMS and one.b == self.spare:
                yield replace(one, b=sums[0], imm=one.imm + sums[1])
            elif one.op in SUMS and one.b in own:
                yield replace(one, b=0, imm=one.imm + values[one.b])
            else:
                yield one
