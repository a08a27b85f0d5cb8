"""A program as text that people can follow: `hw.spec.assembly` with comments, which the assembler ignores.

    # lm: r1 n_tokens, r2 position
    # self_attn.q_proj
    SET vu.ctl0, r0 + 10878978              # 412: src=V mul2=R0 row0=FIN dst=OB
    ISSUE vu, wait=mx, signal=none          # 413
    BEQ r4, r0, 70                          # 414: goes on at 70

Every instruction has its pc behind it. Of a control word the fields that are not 0 follow, by name; VU's constants
follow in hexadecimal. A line of its own names an entry where it begins, and an operator where its instructions begin.
"""

from collections.abc import Iterable, Mapping

from .assembly import disassemble_word
from .isa import (
    CTL0,
    CTL1,
    FIELDS,
    INSTRUCTION_BYTES,
    Instruction,
    LdKind,
    MxMode,
    Op,
    StKind,
    StMode,
    StreamFormat,
    Unit,
    unpack_bits,
)

COLUMN = 40
"""Where comments begin."""
_ENUMERATIONS = {
    (Unit.LD, "kind"): LdKind,
    (Unit.ST, "mode"): StMode,
    (Unit.ST, "kind"): StKind,
    (Unit.RD, "fmt"): StreamFormat,
    (Unit.MX, "mode"): MxMode,
}
_BIT_FIELDS = {(Unit.VU, "ctl0"): CTL0, (Unit.VU, "ctl1"): CTL1}
_HEXADECIMAL = {(Unit.VU, "imm0"), (Unit.VU, "imm1")}
_BRANCHES = (Op.BEQ, Op.BNE, Op.BLTU, Op.BGEU)


def listing(program: bytes, labels: Mapping[int, str] | None = None, operators: Iterable[tuple[int, str]] = ()) -> str:
    """The text of an encoded program.

    labels: pc -> what begins there. operators: pc of each ISSUE that is for another operator than the one before it,
    and that operator (`compiler.program.Program.operator_changes`).
    """
    if len(program) % INSTRUCTION_BYTES:
        raise ValueError(f"a program of {len(program)} bytes is not a multiple of {INSTRUCTION_BYTES} bytes")
    words = [
        int.from_bytes(program[at : at + INSTRUCTION_BYTES], "little")
        for at in range(0, len(program), INSTRUCTION_BYTES)
    ]
    decoded = [_decoded(word) for word in words]
    begins = _beginnings(decoded, operators)
    notes = _loop_notes(decoded)
    lines = []
    for pc, (word, instruction) in enumerate(zip(words, decoded, strict=True)):
        lines += [f"# {text}" for text in ((labels or {}).get(pc), begins.get(pc)) if text]
        note = notes.get(pc) or _note(instruction)
        lines.append(f"{disassemble_word(word):<{COLUMN - 1}} # {pc}{': ' if note else ''}{note}")
    return "".join(f"{line}\n" for line in lines)


def _decoded(word: int) -> Instruction | None:
    try:
        return Instruction.decode(word)
    except ValueError:
        return None


def _beginnings(decoded: list[Instruction | None], operators: Iterable[tuple[int, str]]) -> dict[int, str]:
    """pc behind the ISSUE before, where the instructions of the next operator begin, -> operator."""
    issues = [pc for pc, instruction in enumerate(decoded) if instruction is not None and instruction.op == Op.ISSUE]
    before = dict(zip(issues, [-1, *issues], strict=False))
    return {before[pc] + 1: name for pc, name in operators if pc in before}


def _loop_notes(decoded: list[Instruction | None]) -> dict[int, str]:
    """Where the loop that an ENDL closes begins."""
    return {
        instruction.imm: f"end of the loop at {pc}"
        for pc, instruction in enumerate(decoded)
        if instruction is not None and instruction.op == Op.LOOP
    }


def _note(instruction: Instruction | None) -> str:
    """What an instruction's numbers mean."""
    if instruction is None:
        return "no legal instruction"
    if instruction.op in _BRANCHES:
        return f"goes on at {instruction.imm}"
    if instruction.op == Op.LOOP:
        return f"repeats up to {instruction.imm}"
    return _constant(instruction) if instruction.op == Op.SET else ""


def _constant(i: Instruction) -> str:
    """A descriptor field's constant by its names, else in hexadecimal where decimals say nothing."""
    unit = Unit(i.a >> 5)
    field = unit, FIELDS[unit][i.a & 31]
    if field in _BIT_FIELDS:
        values = unpack_bits(_BIT_FIELDS[field], i.imm)
        shown = [f"{name}={getattr(value, 'name', value)}" for name, value in values.items() if value]
        return " ".join(shown) or ("" if i.b else "every field 0")
    if i.b == 0 and field in _ENUMERATIONS and i.imm in list(_ENUMERATIONS[field]):
        return _ENUMERATIONS[field](i.imm).name
    return f"0x{i.imm:08x}" if field in _HEXADECIMAL and i.b == 0 else ""
