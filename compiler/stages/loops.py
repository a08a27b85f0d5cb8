"""Stretches of a program that differ in constants alone, as one loop.

    layer 1   SET addr 1000 .. SET ctl1 6400           LOOP 3
    layer 2   SET addr 1400 .. SET ctl1 6656     ->      r21 = word r22 of a table: 6400, 6656, 6400
    layer 3   SET addr 1800 .. SET ctl1 6400             SET addr r20 + 1000 .. SET ctl1 r21
                                                         r20 += 400, r22 += 1
                                                       ENDL

A constant that grows evenly, as addresses do, comes from a register that grows with it. Any other one, such as the
number of bits that a layer's products are shifted by, comes from a table in the auxiliary memory. Where registers end,
constants come from the table at the place where they are used, through one register for all.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from hw.spec.errors import InternalError
from hw.spec.isa import WORD_MASK, Instruction, Op

JUMPS = (Op.BEQ, Op.BNE, Op.BLTU, Op.BGEU, Op.LOOP)
SUMS = (Op.SET, Op.ADDI, Op.LDS)
"""What adds a register to its constant: a constant that changes from pass to pass goes through a register there."""
Program = list[Instruction]
Series = tuple[int, ...]
"""What a constant is in every pass, less what it is in the first one."""
LEAST_FREE = 2
"""Registers that a loop needs: one for sums, one for its row of the table."""


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

    @cached_property
    def changing(self) -> list[Series]:
        """The series of constants that change: even ones first, the most frequent ones first among them."""
        found = Counter(each for each in self.series if any(each))
        return sorted(found, key=lambda series: (not is_even(series), -found[series], series))


def is_even(series: Series) -> bool:
    return all(value == series[1] * time for time, value in enumerate(series))


class Loop:
    """One repeat as a loop. free: registers that the program does not use, `LEAST_FREE` at least."""

    def __init__(self, program: Program, repeat: Repeat, free: list[int]) -> None:
        self.program, self.repeat = program, repeat
        self.spare, *registers = free
        changing = repeat.changing
        if len(changing) > len(registers) or not all(is_even(series) for series in changing):
            self.row = registers.pop(0)
        self.register = dict(zip(changing, registers, strict=False))
        self.even = {series: r for series, r in self.register.items() if is_even(series)}
        self.listed = [series for series in changing if series not in self.even]
        """Series in the table."""

    @property
    def words(self) -> list[int]:
        """The table, pass by pass."""
        return [series[time] for time in range(self.repeat.times) for series in self.listed]

    @property
    def saved(self) -> int:
        """Instructions that the loop saves."""
        body = [self._instruction(at, 0) for at in range(self.repeat.length)]
        made = len(self._before()) + len(self._top(0)) + sum(map(len, body)) + len(self._steps()) + 2
        return self.repeat.times * self.repeat.length - made

    def write(self, out: Program, places: dict[int, int], origin: dict[int, int], table: Callable) -> None:
        """Appends the loop. places: gets where each old instruction is now; origin: the other way round; table: puts
        words into the auxiliary memory, and gives the number of the first one there."""
        repeat, at_table = self.repeat, table(self.words) if self.listed else 0
        first = len(out)
        out += self._before()
        start = len(out)
        out.append(Instruction(Op.LOOP, 0, self.spare))
        out += self._top(at_table)
        for at in range(repeat.length):
            made = self._instruction(at, at_table)
            for time in range(repeat.times):
                places[repeat.start + time * repeat.length + at] = len(out)
            out += made
            origin[len(out) - 1] = repeat.start + at
        out += self._steps()
        out[start] = replace(out[start], imm=len(out))
        out.append(Instruction(Op.ENDL))
        self._check(out[first:start], out[start + 1 : -1], at_table)

    # --- its parts ---------------------------------------------------------------------------------------

    def _before(self) -> Program:
        """Registers as the first pass needs them, and the count in the last one of these."""
        rows = [self.row] if self.listed else []
        zeros = [Instruction(Op.ADDI, register, 0, 0, 0) for register in (*self.even.values(), *rows)]
        return [*zeros, Instruction(Op.ADDI, self.spare, 0, 0, self.repeat.times)]

    def _top(self, table: int) -> Program:
        """A pass begins with what it needs of the table in registers of its own."""
        listed = enumerate(self.listed)
        return [
            Instruction(Op.LDS, self.register[series], self.row, 0, table + at)
            for at, series in listed
            if series in self.register
        ]

    def _steps(self) -> Program:
        """A pass ends with registers as the next one needs them."""
        steps = {register: series[1] for series, register in self.even.items()}
        steps |= {self.row: len(self.listed)} if self.listed else {}
        return [Instruction(Op.ADDI, register, register, 0, step) for register, step in steps.items()]

    def _instruction(self, at: int, table: int) -> Program:
        """An instruction of the stretch, with a register added to its sum where its constant changes."""
        old, series = self.program[self.repeat.start + at], self.repeat.series[at]
        if not any(series):
            return [old]
        register, made = self.register.get(series, self.spare), []
        if register == self.spare:
            made.append(Instruction(Op.LDS, self.spare, self.row, 0, table + self.listed.index(series)))
        if old.b:
            made.append(Instruction(Op.ADD, self.spare, old.b, register))
            register = self.spare
        return [*made, replace(old, b=register)]

    # --- the check ---------------------------------------------------------------------------------------

    def _check(self, before: Program, body: Program, table: int) -> None:
        """InternalError unless the passes are the stretches, instruction by instruction."""
        repeat, values, words = self.repeat, {0: 0}, dict(enumerate(self.words, table))
        issued = list(self._run(before, values, words))
        if values[self.spare] != repeat.times:
            raise InternalError(f"a loop over {repeat.times} stretches is made for {values[self.spare]}")
        for _ in range(repeat.times):
            issued += self._run(body, values, words)
        wanted = self.program[repeat.start : repeat.end]
        for at, (found, want) in enumerate(zip(issued, wanted, strict=True)):
            if want.op in JUMPS:
                want = replace(want, imm=want.imm - at // repeat.length * repeat.length)
            if replace(found, imm=found.imm & WORD_MASK) != replace(want, imm=want.imm & WORD_MASK):
                raise InternalError(f"a loop does {found} in place of {want}")

    def _run(self, part: Program, values: dict[int, int], words: dict[int, int]) -> Iterator[Instruction]:
        """What is left of instructions once the loop's own registers are known; values: of these."""
        own = {self.spare, *self.register.values()} | ({self.row} if self.listed else set())
        base = 0
        for one in part:
            if one.op == Op.LDS and one.a in own:
                values[one.a] = words[values[one.b] + one.imm]
            elif one.op == Op.ADDI and one.a in own:
                values[one.a] = values[one.b] + one.imm
            elif one.op == Op.ADD and one.a == self.spare:
                base, values[self.spare] = one.b, values[one.c]
            elif one.op in SUMS and one.b in own:
                yield replace(one, b=base, imm=one.imm + values[one.b])
                base = 0
            else:
                yield one
