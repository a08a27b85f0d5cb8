"""Registers: the virtual ones that kernels write with become those of the machine.

A kernel takes a new virtual register for every value. A value is live from where it is written to where it is last
read, on every path of the control flow. Two values interfere where one is written while the other is live: they need
two registers. The colouring of that graph gives each value, in the order in which they are first written, the lowest
register that none of its neighbours has. Arguments keep theirs.

    0  ADDI v32 = 3            live behind it: v32          v32 -> r1
    1  LOOP v32                                             v33 -> r1, v32 is dead: LOOP reads its count once
    2    ADDI v33 = 5          v33
    3    SHLI v34 = v33 << 1   v33 v34                      v34 -> r2, it interferes with v33
    4    SET  field = v34      v33
    5    SET  field = v33
    6  ENDL                    back to 2, or on
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from hw.spec import isa
from hw.spec.errors import InternalError
from hw.spec.isa import OPERANDS, Instruction, Op

FIRST_VIRTUAL = isa.REGISTERS
"""Virtual registers are counted from here on; below are r0, which is 0, and the arguments."""
BRANCHES = (Op.BEQ, Op.BNE, Op.BLTU, Op.BGEU)
Live = int
"""A set of values: bit n stands for register n."""


def written(instruction: Instruction) -> int:
    """The register that an instruction writes, 0 for none."""
    return instruction.a if OPERANDS[instruction.op][0] == "r" else 0


def read(instruction: Instruction) -> set[int]:
    """The registers that an instruction reads; r0 is a constant."""
    operands = zip(OPERANDS[instruction.op][1:], (instruction.b, instruction.c), strict=True)
    return {register for kind, register in operands if kind == "r" and register}


def successors(program: Sequence[Instruction]) -> list[tuple[int, ...]]:
    """Where control goes from each instruction."""
    loops = {each.imm: pc for pc, each in enumerate(program) if each.op == Op.LOOP}
    found = []
    for pc, each in enumerate(program):
        match each.op:
            case Op.HALT:
                following: tuple[int, ...] = ()
            case Op.BEQ if each.b == each.c:
                following = (each.imm,)
            case op if op in BRANCHES:
                following = (pc + 1, each.imm)
            case Op.LOOP:
                following = (pc + 1, each.imm + 1)
            case Op.ENDL:
                following = (loops[pc] + 1, pc + 1)
            case _:
                following = (pc + 1,)
        found.append(tuple(to for to in following if to < len(program)))
    return found


def _bits(registers: Iterable[int]) -> Live:
    return sum(1 << register for register in registers)


def _members(live: Live) -> Iterator[int]:
    while live:
        lowest = live & -live
        yield lowest.bit_length() - 1
        live ^= lowest


class Liveness:
    """What is live ahead of and behind every instruction: the backward data flow to its fixed point."""

    def __init__(self, program: Sequence[Instruction]) -> None:
        self.program, self.following = program, successors(program)
        self.ahead: list[Live] = [0] * len(program)
        reads, kept = [_bits(read(each)) for each in program], [~(1 << written(each)) for each in program]
        changed = True
        while changed:
            changed = False
            for pc in reversed(range(len(program))):
                live = reads[pc] | self.behind(pc) & kept[pc]
                changed |= live != self.ahead[pc]
                self.ahead[pc] = live

    def behind(self, pc: int) -> Live:
        """The values that some path behind an instruction reads before it writes them."""
        live = 0
        for to in self.following[pc]:
            live |= self.ahead[to]
        return live

    def needed(self, pc: int) -> Live:
        """The values that need a register of their own behind an instruction: its result does, even if nobody reads
        it."""
        target = written(self.program[pc])
        return self.behind(pc) | (1 << target if target else 0)

    def most(self) -> tuple[int, int]:
        """(the largest number of values that are live at once, the first instruction behind which they are)."""
        counts = [self.needed(pc).bit_count() for pc in range(len(self.program))]
        return max(((n, -pc) for pc, n in enumerate(counts)), default=(0, 0))

    def interference(self) -> dict[int, Live]:
        """The neighbours of every value, by the value; values in the order in which they are first written."""
        found: dict[int, Live] = {}
        for pc, each in enumerate(self.program):
            if target := written(each):
                found[target] = found.get(target, 0) | self.behind(pc)
        for value in list(found):
            found[value] &= ~(1 << value)
            for other in _members(found[value]):
                found[other] = found.get(other, 0) | 1 << value
        return found


def assign(program: Sequence[Instruction], entries: Iterable[int] = (0,)) -> list[Instruction]:
    """The program with registers of the machine; entries: where it may start.

    InternalError where a value is read that no instruction wrote, or where too many are live.
    """
    liveness = Liveness(program)
    for entry in entries:
        _require_written(liveness, entry)
    most, at = liveness.most()
    if most >= isa.REGISTERS:
        raise InternalError(
            f"{most} values are live behind {_place(program, -at)}, the machine has {isa.REGISTERS - 1} registers"
        )
    colours = _colours(liveness.interference())
    return [_renamed(each, colours) for each in program]


def _place(program: Sequence[Instruction], pc: int) -> str:
    return f"instruction {pc} ({program[pc].op.name})"


def _require_written(liveness: Liveness, entry: int) -> None:
    """At an entry nothing but arguments has a value."""
    if entry >= len(liveness.program):
        return
    for value in _members(liveness.ahead[entry]):
        if value > isa.ARGUMENT_REGISTERS:
            pc = _first_read(liveness, entry, value)
            raise InternalError(f"{_place(liveness.program, pc)} reads v{value}, which a path to it does not write")


def _first_read(liveness: Liveness, entry: int, value: int) -> int:
    """The instruction that reads a value first, on a path from the entry along which it is live."""
    waiting, seen = [entry], {entry}
    for pc in waiting:
        if value in read(liveness.program[pc]):
            return pc
        more = [to for to in liveness.following[pc] if liveness.ahead[to] >> value & 1 and to not in seen]
        waiting += more
        seen |= set(more)
    raise InternalError(f"v{value} is live at instruction {entry}, but no path reads it")


def _colours(graph: Mapping[int, Live]) -> dict[int, int]:
    """A register for every value, none as a neighbour's."""
    found = {register: register for register in range(FIRST_VIRTUAL)}
    for value, neighbours in graph.items():
        if value < FIRST_VIRTUAL:
            continue
        taken = {found[other] for other in _members(neighbours) if other in found}
        free = (register for register in range(1, isa.REGISTERS) if register not in taken)
        if (register := next(free, None)) is None:
            raise InternalError(
                f"v{value} interferes with values in all of the machine's {isa.REGISTERS - 1} registers"
            )
        found[value] = register
    return found


def _renamed(instruction: Instruction, colours: Mapping[int, int]) -> Instruction:
    operands = zip(OPERANDS[instruction.op], (instruction.a, instruction.b, instruction.c), strict=True)
    a, b, c = (colours[number] if kind == "r" else number for kind, number in operands)
    return Instruction(instruction.op, a, b, c, instruction.imm)
