"""Program text: one instruction a line, with symbolic descriptor fields. asm(disasm(p)) == p, byte for byte.

    SET vu.len0, r3 + 5
    ISSUE vu, wait=ld|mx, signal=st
    ADDI r1, r2, -1
    BLTU r1, r2, 17
    LDS r4, r5 + 12
    .word 0x00000000000000ff      (a word that is no legal instruction)

Blank lines and what follows `#` are ignored.
"""

import re

from .isa import ALL_UNITS, FIELDS, INSTRUCTION_BYTES, OPERANDS, Instruction, Op, Unit

_UNIT_NAMES = {unit: unit.name.lower() for unit in Unit}
_BASE_AND_OFFSET = (Op.SET, Op.LDS)
_NO_IMMEDIATE = (Op.ADD, Op.SUB, Op.MUL, Op.MIN, Op.MAX, Op.ENDL, Op.ISSUE)
"""Their immediate is not used; it is written all the same when it is not 0."""
_BRANCHES = (Op.BEQ, Op.BNE, Op.BLTU, Op.BGEU, Op.LOOP)


SHOWN = 60
"""Characters of a line that an error message quotes."""


class AssemblyError(ValueError):
    """A line that is no instruction; the message holds the line."""


def disassemble(program: bytes) -> str:
    """The text of an encoded program, a line an instruction, without the comments that `hw.spec.listing` adds."""
    if len(program) % INSTRUCTION_BYTES:
        raise ValueError(f"a program of {len(program)} bytes is not a multiple of {INSTRUCTION_BYTES} bytes")
    words = (program[i : i + INSTRUCTION_BYTES] for i in range(0, len(program), INSTRUCTION_BYTES))
    return "".join(f"{disassemble_word(int.from_bytes(word, 'little'))}\n" for word in words)


def assemble(text: str) -> bytes:
    """Inverse of `disassemble`."""
    words = []
    for number, line in enumerate(text.splitlines(), 1):
        if code := line.split("#")[0].strip():
            try:
                words.append(assemble_line(code))
            except AssemblyError as error:
                raise AssemblyError(f"line {number}: {error}") from None
    return b"".join(word.to_bytes(INSTRUCTION_BYTES, "little") for word in words)


def disassemble_word(word: int) -> str:
    try:
        return format_instruction(Instruction.decode(word))
    except ValueError:
        return f".word 0x{word:016x}"


def format_instruction(i: Instruction) -> str:
    """One instruction's text."""
    parts = [text for kind, value in _operands(i) if (text := _operand_text(kind, value))]
    if i.op == Op.ISSUE:
        parts[1:] = [f"wait={_mask_text(i.b)}", f"signal={_mask_text(i.c)}"]
    if i.op in _BASE_AND_OFFSET:
        parts[-1] += f" {'-' if i.imm >> 31 else '+'} {abs(_signed(i.imm))}"
    elif i.op == Op.FENCE:
        parts.append(_mask_text(i.imm))
    elif i.op not in _NO_IMMEDIATE or i.imm:
        parts.append(str(i.imm if i.op in (*_BRANCHES, Op.HALT) else _signed(i.imm)))
    return f"{i.op.name} {', '.join(parts)}".rstrip()


def assemble_line(line: str) -> int:
    """The encoded word of one line."""
    try:
        if line.startswith(".word"):
            return int(line.split()[1], 0)
        name, _, rest = line.partition(" ")
        return _parse(Op[name.upper()], [part.strip() for part in rest.split(",") if part.strip()]).encode()
    except (KeyError, IndexError, ValueError) as error:
        raise AssemblyError(f"cannot assemble {_short(line)!r}: {_short(str(error))}") from None


def _short(text: str) -> str:
    """A text as an error message shows it."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _parse(op: Op, parts: list[str]) -> Instruction:
    if op in _BASE_AND_OFFSET:
        base = re.fullmatch(r"(r\d+)(?:\s*([+-])\s*(\w+))?", parts[-1])
        if base is None:
            raise ValueError(f"expected a register and an offset, got {parts[-1]!r}")
        parts[-1:] = [base[1], f"{base[2] or '+'}{base[3] or 0}"]
    values = {}
    for place, kind in zip("abc", OPERANDS[op], strict=True):
        if kind != "-":
            values[place] = _operand_value(kind, parts.pop(0))
    imm = 0
    if op == Op.FENCE:
        imm = _mask_value(parts.pop(0))
    elif parts:
        imm = int(parts.pop(0), 0)
    elif op not in _NO_IMMEDIATE:
        raise ValueError("an immediate is missing")
    if parts:
        raise ValueError(f"unexpected {parts[0]!r}")
    instruction = Instruction(op, **values, imm=imm)
    if problem := instruction.problem():
        raise ValueError(problem)
    return instruction


def _signed(imm: int) -> int:
    return imm - (1 << 32) if imm >> 31 else imm


def _operands(i: Instruction):
    return zip(OPERANDS[i.op], (i.a, i.b, i.c), strict=True)


def _operand_text(kind: str, value: int) -> str:
    if kind == "r":
        return f"r{value}"
    if kind == "f":
        unit = Unit(value >> 5)
        return f"{_UNIT_NAMES[unit]}.{FIELDS[unit][value & 31]}"
    if kind == "u":
        return _UNIT_NAMES[Unit(value)]
    return "" if kind == "-" else _mask_text(value)


def _operand_value(kind: str, text: str) -> int:
    if kind == "r":
        if not re.fullmatch(r"r\d+", text):
            raise ValueError(f"expected a register, got {text!r}")
        return int(text[1:])
    if kind == "f":
        unit, _, field = text.partition(".")
        fields = FIELDS[Unit[unit.upper()]]
        if field not in fields:
            raise ValueError(f"{unit} has no field {field!r}")
        return Unit[unit.upper()] << 5 | fields.index(field)
    return Unit[text.upper()] if kind == "u" else _mask_value(text.partition("=")[2])


def _mask_text(mask: int) -> str:
    return "|".join(name for unit, name in _UNIT_NAMES.items() if mask >> unit & 1) or "none"


def _mask_value(text: str) -> int:
    if text == "none":
        return 0
    return ALL_UNITS if text == "all" else sum({1 << Unit[name.upper()] for name in text.split("|")})
