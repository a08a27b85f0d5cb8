"""Encoding, decoding and program text are inverses of each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.spec.assembly import AssemblyError, assemble, disassemble, disassemble_word
from hw.spec.isa import ALL_UNITS, FIELDS, OPERANDS, REGISTERS, Instruction, Op, Unit, field_code

FIELD_CODES = [field_code(unit, name) for unit in Unit for name in FIELDS[unit]]
OF_KIND = {
    "r": st.integers(0, REGISTERS - 1),
    "u": st.sampled_from([int(u) for u in Unit]),
    "m": st.integers(0, ALL_UNITS),
    "f": st.sampled_from(FIELD_CODES),
    "-": st.just(0),
}


@st.composite
def instructions(draw):
    op = draw(st.sampled_from(list(Op)))
    a, b, c = (draw(OF_KIND[kind]) for kind in OPERANDS[op])
    return Instruction(op, a, b, c, draw(st.integers(0, ALL_UNITS if op == Op.FENCE else (1 << 32) - 1)))


@given(instructions())
def test_decode_inverts_encode(instruction):
    assert Instruction.decode(instruction.encode()) == instruction


@given(st.lists(instructions(), max_size=20))
def test_assemble_inverts_disassemble(program):
    code = b"".join(i.encode().to_bytes(8, "little") for i in program)
    assert assemble(disassemble(code)) == code


@given(st.binary(max_size=64).map(lambda b: b[: len(b) // 8 * 8]))
def test_any_bytes_survive(code):
    assert assemble(disassemble(code)) == code


@given(st.integers(0, (1 << 64) - 1))
def test_text_is_a_legal_instruction_or_a_word(word):
    text = disassemble_word(word)
    try:
        Instruction.decode(word)
    except ValueError:
        assert text.startswith(".word")
    else:
        assert not text.startswith(".word")


@pytest.mark.parametrize(
    "instruction, text",
    [
        (Instruction(Op.SET, field_code(Unit.VU, "len0"), 3, 0, 5), "SET vu.len0, r3 + 5"),
        (Instruction(Op.SET, field_code(Unit.RD, "addr"), 0, 0, 0xFFFFFFFF), "SET rd.addr, r0 - 1"),
        (Instruction(Op.ISSUE, Unit.MX, 1 << Unit.VU, 0), "ISSUE mx, wait=vu, signal=none"),
        (Instruction(Op.FENCE, imm=ALL_UNITS), "FENCE ld|st|rd|mx|vu"),
        (Instruction(Op.LOOP, b=4, imm=17), "LOOP r4, 17"),
        (Instruction(Op.ENDL), "ENDL"),
        (Instruction(Op.ADD, 1, 2, 3), "ADD r1, r2, r3"),
    ],
)
def test_texts(instruction, text):
    assert disassemble_word(instruction.encode()) == text
    assert assemble(f"  {text}   # a comment") == instruction.encode().to_bytes(8, "little")


@pytest.mark.parametrize("line", ["SET vu.nothing, r0 + 1", "ADD r1, r2", "ADDI r40, r0, 1", "JUMP 3", "SET vu.a, 3"])
def test_bad_lines_are_quoted(line):
    with pytest.raises(AssemblyError, match="cannot assemble"):
        assemble(line)
