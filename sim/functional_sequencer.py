"""The sequencer's meaning: registers, branches, loops and shadow descriptors, without time.

The driver (functional or cycle) decides when ISSUE, FENCE, LDS and HALT may execute.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from hw.spec.config import BEAT_BYTES, Config
from hw.spec.isa import FIELDS, INSTRUCTION_BYTES, LOOP_DEPTH, REGISTERS, WORD_MASK, Error, Instruction, Op, Unit
from hw.spec.run import Invocation, MachineError
from sim.memory_image import MemoryImage, OutOfRange

ENDING = frozenset((Op.ISSUE, Op.FENCE, Op.LDS, Op.HALT))
"""Instructions whose execution depends on other units; every other one is scalar."""
_SET = int(Op.SET)


@dataclass(slots=True)
class Issued:
    """A queue entry: fields as the unit's FIELDS name them; wait and signal are masks over units."""

    unit: int
    pc: int
    fields: dict[str, int]
    wait: int
    signal: int
    visible: int = 0
    """First cycle in which the unit may see it as its head (cycle simulator)."""


class Sequencer:
    """Architectural state. `run_scalars` executes up to the next instruction that concerns the units."""

    def __init__(self, config: Config, memory: MemoryImage, invocation: Invocation, program: "Program | None" = None):
        """program: what is in instruction memory, if it need not be fetched."""
        args = invocation.args
        self.registers = [0, *(a & WORD_MASK for a in args)] + [0] * (REGISTERS - 1 - len(args))
        self.pc = invocation.entry
        self.loops: list[list[int]] = []
        self.shadow = [dict.fromkeys(FIELDS[unit], 0) for unit in Unit]
        self.names = [FIELDS[unit] for unit in Unit]
        self.places = {
            unit << 5 | i: (self.shadow[unit], name) for unit in Unit for i, name in enumerate(self.names[unit])
        }
        """Where a SET's a puts its value."""
        self.executed = 0
        self.limit = invocation.instruction_limit
        self.program = load_program(config, memory, invocation) if program is None else program

    def fail(self, status: Error) -> MachineError:
        return MachineError(status, pc=self.pc)

    def current(self) -> tuple[int, int, int, int, int]:
        """(op, a, b, c, imm) of the instruction at pc."""
        if not 0 <= self.pc < len(self.program):
            raise self.fail(Error.PC_RANGE)
        if self.limit and self.executed >= self.limit:
            raise self.fail(Error.INSTRUCTION_LIMIT)
        instruction = self.program[self.pc]
        if instruction is None:
            raise self.fail(Error.ILLEGAL_INSTRUCTION)
        return instruction

    def scalar(self, op: int, a: int, b: int, c: int, imm: int) -> None:
        """Executes one scalar instruction."""
        r, following = self.registers, self.pc + 1
        if op == _SET:
            fields, name = self.places[a]
            fields[name] = (r[b] + imm) & WORD_MASK
        elif (compute := _ARITHMETIC.get(op)) is not None:
            if a:
                r[a] = compute(r[b], r[c], imm) & WORD_MASK
        elif (taken := _BRANCHES.get(op)) is not None:
            if taken(r[b], r[c]):
                following = imm
        elif op == Op.LOOP:
            if not r[b]:
                following = imm + 1 & WORD_MASK
            elif len(self.loops) == LOOP_DEPTH:
                raise self.fail(Error.LOOP_STACK)
            else:
                self.loops.append([following, r[b]])
        else:
            following = self._end_loop(following)
        self.pc = following
        self.executed += 1

    def _end_loop(self, following: int) -> int:
        if not self.loops:
            raise self.fail(Error.LOOP_STACK)
        top = self.loops[-1]
        top[1] -= 1
        if top[1]:
            return top[0]
        self.loops.pop()
        return following

    def run_scalars(self, budget: int = 1 << 62) -> int:
        """Executes scalar instructions until one of ENDING is next (or the budget ends); returns how many."""
        before = self.executed
        while self.executed - before < budget:
            instruction = self.current()
            if instruction[0] in ENDING:
                break
            self.scalar(*instruction)
        return self.executed - before

    def retire(self) -> None:
        self.pc += 1
        self.executed += 1

    def issue(self, a: int, wait: int, signal: int) -> Issued:
        """The queue entry of the ISSUE at pc, which retires."""
        entry = Issued(a, self.pc, dict(self.shadow[a]), wait, signal)
        self.retire()
        return entry

    def scalar_at(self, memory: MemoryImage, port: int, b: int, imm: int) -> int:
        """What an LDS reads; `OutOfRange` beyond the memory."""
        address = (self.registers[b] + imm & WORD_MASK) * 4
        # The bus reads the whole beat.
        beat = memory.read(port, address // BEAT_BYTES * BEAT_BYTES, BEAT_BYTES)
        return int.from_bytes(beat[address % BEAT_BYTES :][:4].tobytes(), "little")

    def load(self, memory: MemoryImage, port: int, a: int, b: int, imm: int) -> None:
        """Executes an LDS."""
        try:
            self.loaded(a, self.scalar_at(memory, port, b, imm))
        except OutOfRange:
            raise self.fail(Error.BUS_READ) from None

    def loaded(self, a: int, value: int) -> None:
        """Executes an LDS that has read this."""
        if a:
            self.registers[a] = value
        self.retire()


_ARITHMETIC: dict[int, Callable[[int, int, int], int]] = {
    Op.ADDI: lambda b, c, imm: b + imm,
    Op.ADD: lambda b, c, imm: b + c,
    Op.SUB: lambda b, c, imm: b - c,
    Op.MUL: lambda b, c, imm: b * c,
    Op.SHLI: lambda b, c, imm: b << (imm & 31),
    Op.SHRI: lambda b, c, imm: b >> (imm & 31),
    Op.MIN: lambda b, c, imm: min(b, c),
    Op.MAX: lambda b, c, imm: max(b, c),
}
_BRANCHES: dict[int, Callable[[int, int], bool]] = {
    Op.BEQ: lambda b, c: b == c,
    Op.BNE: lambda b, c: b != c,
    Op.BLTU: lambda b, c: b < c,
    Op.BGEU: lambda b, c: b >= c,
}


Program = list[tuple[int, int, int, int, int] | None]
"""Decoded instructions, None where one is illegal."""


def load_program(config: Config, memory: MemoryImage, invocation: Invocation) -> Program:
    """The program; MachineError if it cannot be fetched."""
    if invocation.program_length > config.imem_instructions:
        raise MachineError(Error.ILLEGAL_INSTRUCTION, pc=invocation.entry)
    n_bytes = -(-invocation.program_length * INSTRUCTION_BYTES // BEAT_BYTES) * BEAT_BYTES
    try:
        raw = memory.read(config.aux_port, invocation.program_addr * BEAT_BYTES, n_bytes)
    except OutOfRange:
        raise MachineError(Error.BUS_READ, pc=invocation.entry) from None
    words = raw[: invocation.program_length * INSTRUCTION_BYTES].copy().view("<u8").tolist()
    return [_decoded(word) for word in words]


@lru_cache(maxsize=1 << 16)
def _decoded(word: int) -> tuple[int, int, int, int, int] | None:
    try:
        i = Instruction.decode(word)
    except ValueError:
        return None
    return int(i.op), i.a, i.b, i.c, i.imm
