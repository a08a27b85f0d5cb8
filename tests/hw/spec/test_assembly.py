"""Encoding, decoding and program text are inverses of each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.spec.assembly import AssemblyError, assemble, disassemble, disassemble_word
from hw.spec.isa import (
    ALL_UNITS,
    CTL0,
    FIELDS,
    OPERANDS,
    REGISTERS,
    Dst,
    Instruction,
    Op,
    Src,
    StMode,
    Unit,
    field_code,
    pack_bits,
)
from hw.spec.listing import listing

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


def encoded(*program: Instruction) -> bytes:
    return b"".join(i.encode().to_bytes(8, "little") for i in program)


@given(st.lists(instructions(), max_size=20), st.dictionaries(st.integers(0, 20), st.text("ab:# ,", max_size=9)))
def test_comments_change_nothing(program, labels):
    code = encoded(*program)
    assert assemble(listing(code, labels, [(at, "mlp") for at in labels])) == code


def test_a_listing_says_what_numbers_mean():
    word = pack_bits(CTL0, {"src": Src.V, "dst": Dst.OB, "clip8": 1})
    code = encoded(
        Instruction(Op.LOOP, b=4, imm=5),
        Instruction(Op.SET, field_code(Unit.VU, "ctl0"), 0, 0, word),
        Instruction(Op.SET, field_code(Unit.ST, "mode"), 0, 0, StMode.K),
        Instruction(Op.SET, field_code(Unit.VU, "imm0"), 0, 0, 0xABC),
        Instruction(Op.ISSUE, Unit.VU, 0, 0),
        Instruction(Op.ENDL),
        Instruction(Op.BEQ, 0, 0, 0, 7),
        Instruction(Op.ISSUE, Unit.MX, 0, 0),
        Instruction(Op.HALT),
    )
    text = listing(code, {0: "lm: r1 n_tokens"}, [(4, "softmax"), (7, "lm_head")])
    parts = [[part.strip() for part in line.split("#")] for line in text.splitlines()]
    assert [part for part in parts if not part[0]] == [["", "lm: r1 n_tokens"], ["", "softmax"], ["", "lm_head"]]
    assert text.index("# softmax") < text.index("LOOP") < text.index("# lm_head") < text.index("ENDL")
    assert [part[1] for part in parts if part[0]] == [
        "0: repeats up to 5", "1: src=V dst=OB clip8=1", "2: K", "3: 0x00000abc", "4", "5: end of the loop at 0",
        "6: goes on at 7", "7", "8",
    ]  # fmt: skip


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
