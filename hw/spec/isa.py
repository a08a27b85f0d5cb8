"""The instruction set: 64-bit sequencer instructions and the units' descriptors.

A word is [op 8][a 8][b 8][c 8][imm 32], op in the least significant byte. The sequencer keeps one shadow
descriptor a unit; SET writes a field, ISSUE pushes a snapshot into the unit's queue together with the
semaphores to wait for and to signal.
"""

from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum

ISA_VERSION = 1
WORD_MASK = 0xFFFFFFFF
"""Registers, fields and addresses are words of 32 bits: arithmetic on them wraps."""
INSTRUCTION_BYTES = 8
REGISTERS = 32
"""32-bit registers; r0 reads 0 and ignores writes. r1..r15 are loaded from the argument CSRs at start."""
ARGUMENT_REGISTERS = 15
LOOP_DEPTH = 4


class Unit(IntEnum):
    LD = 0
    ST = 1
    RD = 2
    MX = 3
    VU = 4


class Op(IntEnum):
    """Operands: a, b, c are register numbers unless said otherwise; imm is 32 bits, signed where it matters."""

    HALT = 0x00  # stop; imm is the exit code reported to the host (0 = success)
    ADDI = 0x01  # a = b + imm
    ADD = 0x02  # a = b + c
    SUB = 0x03  # a = b - c
    MUL = 0x04  # a = low 32 bits of b * c
    SHLI = 0x05  # a = b << imm[4:0]
    SHRI = 0x06  # a = b >> imm[4:0], logical
    MIN = 0x07  # a = min(b, c), unsigned
    MAX = 0x08  # a = max(b, c), unsigned
    BEQ = 0x10  # if b == c: pc = imm
    BNE = 0x11  # if b != c: pc = imm
    BLTU = 0x12  # if b < c unsigned: pc = imm
    BGEU = 0x13  # if b >= c unsigned: pc = imm
    LOOP = 0x18  # b = count register, imm = address of the matching ENDL; count 0 skips past it
    ENDL = 0x19  # next iteration of the innermost loop, or fall through
    LDS = 0x20  # a = aux memory word at 4-byte address (b + imm); waits until LD is idle
    SET = 0x28  # descriptor field a (see FIELDS, unit << 5 | index) = b + imm
    ISSUE = 0x29  # push unit a's descriptor; b = wait mask over producers, c = signal mask over consumers
    FENCE = 0x2A  # wait until every unit in mask imm is idle with an empty queue


FIELDS = {
    Unit.LD: ("addr", "n_outer", "n_inner", "stride", "dst", "dst_stride", "kind"),
    Unit.ST: (
        "mode",
        "addr",
        "src",
        "src_tok",
        "src_head",
        "pos",
        "n_tok",
        "n_head",
        "n_gran",
        "stride_tok",
        "stride_head",
        "stride_slot",
        "stride_gran",
        "kind",
    ),
    Unit.RD: ("addr", "n_outer", "n_inner", "stride", "fmt"),
    Unit.MX: (
        "act",
        "act_stride",
        "n_rows",
        "kb",
        "ob",
        "dst",
        "dst_stride",
        "mode",
        "n_outer",
        "act_out",
        "dst_out",
        "n_last",
        "group",
    ),
    Unit.VU: (
        "ctl0",
        "ctl1",
        "imm0",
        "imm1",
        "n_outer",
        "n_mid",
        "n_words",
        "len0",
        "len_step",
        "a",
        "a_out",
        "a_mid",
        "p",
        "p_out",
        "p_mid",
        "v",
        "v_out",
        "v_mid",
        "d",
        "d_out",
        "d_mid",
        "r0",
        "r0_out",
        "r0_mid",
        "r1",
        "r1_out",
        "r1_mid",
        "w",
        "w_out",
        "w_mid",
    ),
}
"""Every field is 32 bits; what becomes of values that make no sense is in `hw.spec.legal`.

LD: for o in n_outer: n_inner beats from aux beat address addr + o*stride to PB granule dst + o*dst_stride.
LD's kind (LdKind) and ST's (StKind, in the modes that write aux) choose the counter, nothing else.
ST: see StMode. RD: for o in n_outer: n_inner beats from the channel's beat address addr + o*stride, the same
in every unit's own channel. MX: see MxMode. VU: see `hw.spec.vector`.
"""


class StMode(IntEnum):
    """t in n_tok, h in n_head, g in n_gran: source SB granule src + t*src_tok + h*src_head + g.

    With key = pos + t: block = key >> 4, unit = block mod units, slot = block div units, k = key & 15.
    """

    LIN = 0  # aux beat addr + t*stride_tok + h*stride_head + g <- the whole granule (16 int32)
    K = 1  # unit's channel, beat addr + h*stride_head + slot*stride_slot + g*stride_gran + (k >> 2):
    #          the granule's 16 low bytes at byte (k & 3)*16
    V = 2  # as K, beats addr + ... + i for i in 0..3: low byte of lane 4i+j at byte j*16 + k, j in 0..3
    SC = 3  # aux beat addr + h*stride_head + (key >> 4): lane 0 (int32) at byte (key & 15)*4 (g ignored)


class LdKind(IntEnum):
    """What an LD reads, for the traffic counters. What a program does not declare counts as activations."""

    ACTIVATIONS = 0  # patches, feature rows, residual rows
    EMBEDDING = 1  # rows of the embedding
    PARAMETERS = 2  # scale words, biases, norms
    KV_SCALES = 3  # scales of cached keys and values
    TABLES = 4  # RoPE and position tables


class StKind(IntEnum):
    """What an ST writes to aux, for the traffic counters."""

    ACTIVATIONS = 0  # feature rows, residual rows
    RESULTS = 1  # logits
    KV_SCALES = 2  # scales of cached keys and values
    LISTS = 3  # indices and lists that the program reads back


class StreamFormat(IntEnum):
    RAW = 0  # dense INT8 16x16 blocks, nothing else (K and V)
    STREAM = 1  # self-describing, see hw.spec.weights


class MxMode(IntEnum):
    """out[row, ...] int32 = sum over k of act[row, k] * weight[channel, k]; act row r at OB block act + r*act_stride.

    The stream holds, a unit, ob x kb blocks, kb innermost. Output granules are AB dst + r*dst_stride + ...
    All of that n_outer times, behind each other: the o-th time with act + o*act_out and dst + o*dst_out; the last time
    with n_last rows (0: n_rows). A STREAM's ob steps come in groups of `group` (0: 1), see `hw.spec.weights`.
    """

    SPLIT_N = 0  # every unit reads the same act block (kb); unit u's step j is granule j*units + u
    SPLIT_K = 1  # unit u reads act block kb*units + u; the units' results are added; step j is granule j


# --- vector unit control words -------------------------------------------------------------------------


class Src(IntEnum):
    A = 0  # accumulator buffer
    V = 1  # vector buffer
    P = 2  # parameter buffer
    R0 = 3  # row operand r0 in every lane


class Mul1(IntEnum):
    NONE = 0
    P = 1  # mul_scale by the parameter word, adjust adj1
    IMM = 2  # mul_scale by imm0, adjust adj1
    ROPE = 3  # rotate lane pairs by the parameter word


class Mul2(IntEnum):
    NONE = 0
    R0 = 1  # mul_scale by row operand r0, adjust adj2


class Add(IntEnum):
    NONE = 0
    V = 1
    P = 2
    SUB_R1 = 3  # minus row operand r1


class Func(IntEnum):
    NONE = 0
    SILU = 1
    GELU = 2
    QGELU = 3
    EXP2 = 4
    SIGMOID = 5  # the factor that SILU multiplies by, alone


class Mul3(IntEnum):
    NONE = 0
    V = 1  # multiply_shift by the vector word, shift sh3
    R1 = 2  # mul_scale by row operand r1, adjust adj2


class Row(IntEnum):
    """How a row operand is read from its entry {raw, fin}."""

    RAW = 0
    SCALE = 1  # to_scale(raw)
    FIN = 2


class Tap(IntEnum):
    OUT = 0  # reduce what is written (after mul3, before clipping)
    FUNC = 1  # reduce what func gave


class Reduce(IntEnum):
    NONE = 0
    SUM = 1
    MAX = 2
    ABSMAX = 3
    SUMSQ = 4  # sum of (x >> square_shift(raw of r0's entry))**2


class Fin(IntEnum):
    """What goes into the entry's fin; raw is sat32 of the reduction except for MEAN."""

    NONE = 0
    RECIP = 1  # recip_scale(raw)
    QRECIP = 2  # qrecip_scale(raw)
    RSQRT = 3  # rsqrt_scale(sum, shift, epsilon = imm1)
    MEAN = 4  # raw = mul_scale-like: sat32(rshift_round(sum * mantissa(imm1), exponent(imm1))), fin 0


class Dst(IntEnum):
    NONE = 0
    VB = 1
    SB = 2
    OB = 3  # int8, clipped to -127..127
    OBH = 4  # high plane of a probability
    OBL = 5  # low plane


CTL0 = (
    ("src", 2, Src),
    ("mul1", 2, Mul1),
    ("mul2", 1, Mul2),
    ("add", 2, Add),
    ("func", 3, Func),
    ("mul3", 2, Mul3),
    ("row0", 2, Row),
    ("row1", 2, Row),
    ("tap", 1, Tap),
    ("reduce", 3, Reduce),
    ("fin", 3, Fin),
    ("dst", 3, Dst),
    ("clip8", 1, int),
    ("level", 1, int),
)
"""Bit fields of ctl0 from bit 0 on: (name, bits, type). level: 0 reduces a (outer, mid) row, 1 a whole outer row."""
CTL1 = (("adj1", 8, int), ("adj2", 8, int), ("sh3", 8, int))
"""adj1, adj2 signed, sh3 unsigned."""


def pack_bits(layout, values: dict) -> int:
    word, at, values = 0, 0, dict(values)
    for name, bits, _ in layout:
        value = int(values.pop(name, 0))
        if not -(1 << bits - 1) <= value < 1 << bits:
            raise ValueError(f"{name} = {value} does not fit its {bits} bits")
        word |= (value & ((1 << bits) - 1)) << at
        at += bits
    if values:
        raise ValueError(f"unknown control fields: {', '.join(values)}")
    return word


def unpack_bits(layout, word: int) -> dict:
    """Field values; adj fields are signed, enumerated ones keep plain ints when the code is undefined."""
    out, at = {}, 0
    for name, bits, kind in layout:
        value = (word >> at) & ((1 << bits) - 1)
        at += bits
        if name.startswith("adj"):
            value = (value ^ (1 << bits - 1)) - (1 << bits - 1)
        elif kind is not int:
            with suppress(ValueError):
                value = kind(value)
        out[name] = value
    return out


def field_code(unit: Unit, name: str) -> int:
    """Operand a of SET: unit << 5 | index."""
    return unit << 5 | FIELDS[unit].index(name)


class Error(IntEnum):
    """Status CSR codes; 0 is success. The machine stops at the first."""

    NONE = 0
    ILLEGAL_INSTRUCTION = 1  # opcode, register, field, unit or mask outside its range
    PC_RANGE = 2  # fetch at or beyond the program's end
    LOOP_STACK = 3  # LOOP deeper than LOOP_DEPTH, or ENDL without LOOP
    BUFFER_RANGE = 4  # an on-chip address beyond its buffer
    BUS_READ = 5
    BUS_WRITE = 6
    STREAM_HEADER = 7  # unknown header, or a header where none belongs
    WATCHDOG = 8  # no instruction retired for the watchdog's cycles
    INSTRUCTION_LIMIT = 9
    SEMAPHORE = 10  # a counting semaphore overflowed
    ILLEGAL_DESCRIPTOR = 11  # an enumerated field outside its range, a zero count, too many rows
    HALT_CODE = 12  # HALT with a code other than 0
    POISONED = 13  # refused: the bus has not answered an earlier program, only a reset helps


SEMAPHORE_MAX = 255
ALL_UNITS = (1 << len(Unit)) - 1


@dataclass(frozen=True)
class Instruction:
    """One decoded instruction; imm is kept unsigned (0 .. 2**32 - 1)."""

    op: Op
    a: int = 0
    b: int = 0
    c: int = 0
    imm: int = 0

    def encode(self) -> int:
        for name, value, limit in (("a", self.a, 1 << 8), ("b", self.b, 1 << 8), ("c", self.c, 1 << 8)):
            if not 0 <= value < limit:
                raise ValueError(f"{self.op.name}: operand {name} = {value} is outside 0..{limit - 1}")
        if not -(1 << 31) <= self.imm < 1 << 32:
            raise ValueError(f"{self.op.name}: immediate {self.imm} does not fit 32 bits")
        return self.op | self.a << 8 | self.b << 16 | self.c << 24 | (self.imm & WORD_MASK) << 32

    @classmethod
    def decode(cls, word: int) -> "Instruction":
        """Inverse of `encode`; ValueError for an undefined opcode or illegal operand."""
        op = word & 0xFF
        if op not in Op._value2member_map_:
            raise ValueError(f"illegal opcode 0x{op:02x}")
        instruction = cls(Op(op), word >> 8 & 0xFF, word >> 16 & 0xFF, word >> 24 & 0xFF, word >> 32 & WORD_MASK)
        problem = instruction.problem()
        if problem:
            raise ValueError(f"{instruction.op.name}: {problem}")
        return instruction

    def problem(self) -> str | None:
        """Why the hardware would refuse it, or None."""
        used = OPERANDS[self.op]
        for name, kind in zip("abc", used, strict=True):
            value = getattr(self, name)
            if kind == "r" and value >= REGISTERS:
                return f"register {value} is outside 0..{REGISTERS - 1}"
            if kind == "m" and value > ALL_UNITS:
                return f"unit mask 0x{value:x} is outside 0..0x{ALL_UNITS:x}"
            if kind == "u" and value not in Unit._value2member_map_:
                return f"unit {value} does not exist"
            if kind == "f" and (
                value >> 5 not in Unit._value2member_map_ or value & 31 >= len(FIELDS[Unit(value >> 5)])
            ):
                return f"descriptor field {value} does not exist"
            if kind == "-" and value:
                return f"unused operand {name} = {value} must be 0"
        if self.op == Op.FENCE and self.imm > ALL_UNITS:
            return f"unit mask 0x{self.imm:x} is outside 0..0x{ALL_UNITS:x}"
        return None


OPERANDS = {
    Op.HALT: "---",
    Op.ADDI: "rr-",
    Op.ADD: "rrr",
    Op.SUB: "rrr",
    Op.MUL: "rrr",
    Op.SHLI: "rr-",
    Op.SHRI: "rr-",
    Op.MIN: "rrr",
    Op.MAX: "rrr",
    Op.BEQ: "-rr",
    Op.BNE: "-rr",
    Op.BLTU: "-rr",
    Op.BGEU: "-rr",
    Op.LOOP: "-r-",
    Op.ENDL: "---",
    Op.LDS: "rr-",
    Op.SET: "fr-",
    Op.ISSUE: "umm",
    Op.FENCE: "---",
}
"""Kinds of operands a, b, c: r register, u unit, m unit mask, f descriptor field, - must be 0."""
