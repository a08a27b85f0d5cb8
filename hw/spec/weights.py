"""Weight streams and cache layouts in a matrix unit's channel.

A weight matrix int8[out, in] is cut into 16 x 16 **blocks** (16 output channels, 16 inputs), eight consecutive input
blocks being a **window** of 128 inputs. Output block j*units + u is the j-th *step* of unit u. A block has a precision
(2, 3, 4 or 8 bits) and N non-zeros of 16 in every row (N in 1, 2, 4, 8, 16); blocks without non-zeros are left out.

**Round.** What the chains hold at once: 16 rows x 16 slots of INT8 and the index (0..15, inside its block) of each
slot's input. A round of N = 16 is one block, slot c being input c. A sparse round reduces over 16 / max(N, 2) blocks:
with m = max(N, 2), slots m*i .. m*i + m - 1 are those of its i-th block, and empty slots are zero. Two slots are a DSP
group; N = 1 uses one of the two: in row r slot 2*i + (i // 4 + r // 4) % 2 (`single_slot`).

**Run.** The blocks of one window and step with equal (bits, N) and one scale a row. Its rounds take its blocks in
ascending order. A weight is `level(code) * scale`; 8-bit weights are their code and have no scale.

**Bundle.** Sparse runs of several steps with the same window, N and blocks: their rounds multiply the same activations,
so a matrix unit looks these up in tables that it writes once for all of them (docs/machine.md, "Tables"). A bundle's
rounds follow each other block by block: the first round of every run, in the order of the runs, then the second of
every run, and so on. The rounds that stand side by side in this order are a **batch**; a batch of fewer than 8 rounds
is as slow as one of 8 (`TABLE_ENTRIES` cycles for two rows). Example, N = 8 (two blocks a round), two runs a, b with
blocks 0, 1, 4, 5: rounds a(0, 1) b(0, 1) a(4, 5) b(4, 5), two batches. A dense run is a bundle by itself.

**Group.** Output steps whose bundles lie between each other. The groups of a matrix have `group` steps each, and the
last one what is left (the MX field of that name). A stream without sparse rounds has groups of one step.

**Stream.** A header lists runs, one slot of 16 bytes each, four to a beat: the descriptor (RUN_FIELDS, little endian)
and sixteen signed scales of SCALE_BITS bits (row r at bit 32 + 6 r). `more` says that the next slot is of the same
bundle. An all-zero slot ends the header, and so does a beat whose fourth slot lacks `more`; a header has at most
MAX_BUNDLE slots. The bundles' rounds follow in order, every round from a new beat on, then comes the next header; an
all-zero header beat is padding. Within a group, bundles may come in any order, but in every unit the k-th round of a
stream has the same window, step, kind (dense: N = 16, or sparse) and place in its batch, and ends a group or not,
because the units work in lockstep on one broadcast activation. A round that a unit lacks is filled in with one of zero
scales (`FILLER_BITS`, N = 16 or 1). Every step of a group has a round in it.

**A round's beats** (`round_beats`), all little endian: indices, then codes. Bits that no weight needs are zero.
 indices  N = 16: none. N = 8: one beat of masks, [2 blocks][16 rows] of 16 bits, eight of them set: bit c = input c
          (other masks: `mask_inputs`). N = 4 and 2: two beats, [16 rows][8 slots] of 4 bits: slots 0..7, then 8..15.
          N = 1: one such beat, in which slots s and s + 8 share a place: a row uses only one of them.
 codes    The code of (row, slot) lies in byte x mod 64 of a beat, x = 16 * row + slot. Which of the byte's bits it has
          depends on x // 64, a **quarter** of the round (four rows):
              quarter                      0     1     2     3
              8 bits                       0..7  0..7  0..7  0..7
              4 bits                       0..3  4..7  4..7  0..3      `NIBBLES`
              2 and 3 bits: bits 0 and 1   1, 2  5, 7  4, 6  0, 3      `LOW_BITS`
              3 bits: bit 2                0     1     3     2         `HIGH_BITS`
          N > 1: a beat holds one quarter at 8 bits, two at 4, all at 3 and 2. 3 bits: bit 2 lies in a beat behind
          the low bits of every other 3-bit round of a bundle: for that round as above, for the next 3-bit round four
          bits higher. Counting starts anew behind a round of 8 bits.
          N = 1: a byte holds cells of two quarters only, 0 and 2 or 1 and 3. A beat holds two quarters at 8 bits (0
          and 1, then 2 and 3), else all; bit 2 of 3 bits lies with the others.

RAW streams (K and V) are dense 8-bit blocks of four beats each and nothing else.
"""

from dataclasses import dataclass

from .config import BEAT_BYTES, BLOCK, BLOCK_BEATS

WINDOW = 8
"""Input blocks in a window: what the activation broadcast carries at once."""
HEADER_RUNS = 4
"""Slots of a header beat."""
MAX_BUNDLE = 16
"""Runs in a header, and so in a bundle; steps in a group."""
TABLE_ENTRIES = BLOCK
"""A batch multiplies for at least as many cycles, for every pair of rows: those that writing a table takes."""
LEAST_GROUP = 8
"""Steps whose rounds keep the chains busy while the next tables are written, two rows a pass."""
RUN_BYTES = 16
RUN_MAGIC = 0xA
SCALE_BITS = 6
SCALE_BASE = 32
"""Bit of a slot at which row 0's scale starts."""
BITS = (8, 4, 3, 2)
"""Precisions; the descriptor carries the place in this tuple."""
NONZEROS = (16, 8, 4, 2, 1)
"""Non-zeros of 16; the descriptor carries the place in this tuple."""
QUARTERS = BLOCK_BEATS
"""Parts of a round: four rows, as many cells as a beat has bytes."""
ROWS_A_QUARTER = BLOCK // QUARTERS
FILLER_BITS = 2
NIBBLES = (0, 1, 1, 0)
"""Each quarter's nibble of a byte at 4 bits."""
LOW_BITS = ((1, 2), (5, 7), (4, 6), (0, 3))
"""Each quarter's bits of a byte for the low two bits of 3- and 2-bit codes."""
HIGH_BITS = (0, 1, 3, 2)
"""Each quarter's bit of a byte for the high bit of 3-bit codes."""
MAX_SCALE = {4: 15, 3: 18, 2: 31}
"""Largest |scale|: level * scale stays in -127..127."""

RUN_FIELDS = (
    ("magic", 4),
    ("bits", 2),
    ("nonzeros", 3),
    ("last", 1),
    ("window", 9),
    ("blocks", 8),
    ("step", 4),
    ("more", 1),
)
"""Bit fields of a run's descriptor from bit 0 on. blocks: bit i = block i of the window; last: the bundle's last batch
ends its group; step: of the group; more: the next run is of the same bundle."""
SHARED_FIELDS = ("nonzeros", "last", "window", "blocks")
"""Equal in the runs of a bundle, whose steps ascend."""
MAX_WINDOWS = 1 << dict(RUN_FIELDS)["window"]


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def level(code: int, bits: int) -> int:
    """The level of a code: two's complement; at 3 and 2 bits the odd levels 2 * code + 1, which lack zero."""
    signed = code - (code >> bits - 1 << bits)
    return signed if bits >= 4 else 2 * signed + 1


def mask_inputs(mask: int) -> list[int]:
    """Inputs of a row's eight slots from its mask: the first eight bits set.

    The first four of eight lie in nibbles 0..2 of the mask, the last four in nibbles 1..3, and the unpacker looks
    nowhere else; what it finds where a mask has fewer bits is told here.
    """
    before = [0]  # bits set ahead of each nibble
    for nibble in range(3):
        before.append(before[nibble] + sum([mask >> 4 * nibble + i & 1 for i in range(4)]))
    found = []
    for n in range(8):
        nibble = n // 4
        while nibble < n // 4 + 2 and before[nibble + 1] <= n:
            nibble += 1
        places = [i for i in range(4) if mask >> 4 * nibble + i & 1]
        rank = (n - before[nibble]) % 4
        found.append(4 * nibble + (places[rank] if rank < len(places) else 3))
    return found


def single_slot(row: int, block: int) -> int:
    """The slot of a row's weight in the i-th block of a round of N = 1."""
    return 2 * block + (block // 4 + row // ROWS_A_QUARTER) % 2


def code_byte(code: int, bits: int, quarter: int) -> int:
    """What a code adds to its byte of a code beat; 3 bits: its low two."""
    if bits == 8:
        return code
    if bits == 4:
        return code << 4 * NIBBLES[quarter]
    return sum((code >> i & 1) << at for i, at in enumerate(LOW_BITS[quarter]))


@dataclass(frozen=True)
class Run:
    """One slot of a header. blocks: bit mask over the window's blocks; scales: sixteen integers, zeros at 8 bits."""

    bits: int
    nonzeros: int
    window: int
    blocks: int
    last: bool = False
    scales: tuple[int, ...] = (0,) * BLOCK
    step: int = 0
    more: bool = False

    def encode(self) -> bytes:
        fields = {
            "magic": RUN_MAGIC,
            "bits": BITS.index(self.bits),
            "nonzeros": NONZEROS.index(self.nonzeros),
            "last": int(self.last),
            "window": self.window,
            "blocks": self.blocks,
            "step": self.step,
            "more": int(self.more),
        }
        word, at = 0, 0
        for name, width in RUN_FIELDS:
            if not 0 <= fields[name] < 1 << width:
                raise ValueError(f"{name} = {fields[name]} of a run does not fit its {width} bits")
            word |= fields[name] << at
            at += width
        if not self.blocks:
            raise ValueError("a run without blocks")
        if self.more and not self.sparse:
            raise ValueError("a dense run is a bundle by itself")
        for row, scale in enumerate(self.scales):
            if abs(scale) > MAX_SCALE.get(self.bits, 0):
                raise ValueError(f"scale {scale} at {self.bits} bits is beyond {MAX_SCALE.get(self.bits, 0)}")
            word |= (scale & (1 << SCALE_BITS) - 1) << SCALE_BASE + SCALE_BITS * row
        return word.to_bytes(RUN_BYTES, "little")

    @classmethod
    def decode(cls, slot: bytes) -> "Run | None":
        """Inverse of `encode`; None for an all-zero slot, ValueError for what is no run."""
        word = int.from_bytes(slot, "little")
        if not word:
            return None
        fields, at = {}, 0
        for name, width in RUN_FIELDS:
            fields[name] = word >> at & (1 << width) - 1
            at += width
        if (
            fields["magic"] != RUN_MAGIC
            or not fields["blocks"]
            or fields["nonzeros"] >= len(NONZEROS)
            or (fields["more"] and not fields["nonzeros"])
        ):
            raise ValueError(f"0x{word & 0xFFFFFFFF:08x} is no run's descriptor")
        half = 1 << SCALE_BITS - 1
        scales = tuple(((word >> SCALE_BASE + SCALE_BITS * row & 2 * half - 1) ^ half) - half for row in range(BLOCK))
        return cls(
            BITS[fields["bits"]],
            NONZEROS[fields["nonzeros"]],
            fields["window"],
            fields["blocks"],
            bool(fields["last"]),
            scales,
            fields["step"],
            bool(fields["more"]),
        )

    @property
    def sparse(self) -> bool:
        return self.nonzeros < BLOCK

    def rounds(self) -> list[list[int]]:
        """The window's blocks of each round."""
        present = [i for i in range(WINDOW) if self.blocks >> i & 1]
        n = round_blocks(self.nonzeros)
        return [present[i : i + n] for i in range(0, len(present), n)]


def round_blocks(nonzeros: int) -> int:
    """Blocks that a full round holds."""
    return BLOCK // max(nonzeros, 2)


def index_beats(nonzeros: int) -> int:
    return {16: 0, 8: 1, 4: 2, 2: 2, 1: 1}[nonzeros]


def code_beats(bits: int, nonzeros: int, odd: int) -> int:
    """Code beats of a round. odd: how many 3-bit rounds of its bundle lie ahead of it, modulo 2: the even ones bring
    the high bits of the next one along."""
    if nonzeros == 1:
        return {8: 2, 4: 1, 3: 1, 2: 1}[bits]
    return {8: 4, 4: 2, 3: 2 - odd, 2: 1}[bits]


def next_odd(bits: int, odd: int) -> int:
    """`odd` of the round behind one of so many bits, in its bundle."""
    return {8: 0, 4: odd, 3: 1 - odd, 2: odd}[bits]


def code_beat(bits: int, nonzeros: int, quarter: int) -> int:
    """The round's code beat that brings a quarter's codes (3 bits: their low two)."""
    beats = code_beats(bits, nonzeros, 1)
    return quarter * beats // QUARTERS


def round_beats(bits: int, nonzeros: int, odd: int) -> int:
    """Beats of a round: indices, then codes. The last of them completes the round."""
    return index_beats(nonzeros) + code_beats(bits, nonzeros, odd)


def group_steps(steps: int) -> int:
    """Steps of a group of a matrix with sparse rounds: as few as keep the chains busy, groups as equal as they can be.

    steps: output-block steps of the matrix. 8 -> 8, 22 -> 11 (two groups), 63 -> 9 (seven), 5 -> 5.
    """
    return ceil_div(steps, max(1, steps // LEAST_GROUP))


def output_blocks(out_features: int, units: int) -> int:
    """Output-block steps a unit (the MX field ob in SPLIT_N)."""
    return ceil_div(out_features, BLOCK * units)


def input_blocks(in_features: int) -> int:
    return ceil_div(in_features, BLOCK)


def windows(in_features: int) -> int:
    return ceil_div(input_blocks(in_features), WINDOW)


def stream_beats(out_features: int, in_features: int, units: int) -> int:
    """Beats of one unit's dense 8-bit stream, headers included."""
    runs = output_blocks(out_features, units) * windows(in_features)
    blocks = output_blocks(out_features, units) * input_blocks(in_features)
    return ceil_div(runs, HEADER_RUNS) + blocks * BLOCK_BEATS


def cache_slots(context: int, units: int) -> int:
    """Key blocks of 16 a unit for a context of that many tokens."""
    return ceil_div(context, BLOCK * units)


def k_strides(head_dim: int) -> dict[str, int]:
    """Beat strides of a head's K cache [slot][dim block][key 16][dim 16]; scores stream ob = slots, kb = dims."""
    return {"slot": head_dim // BLOCK * BLOCK_BEATS, "gran": BLOCK_BEATS}


def v_strides(context: int, units: int) -> dict[str, int]:
    """Beat strides of a head's V cache [dim block][slot][dim 16][key 16]; PV streams ob = dims, kb = slots."""
    return {"slot": BLOCK_BEATS, "gran": cache_slots(context, units) * BLOCK_BEATS}


def cache_beats(head_dim: int, context: int, units: int) -> int:
    """Beats of one head's K (or V) in one unit's channel."""
    return cache_slots(context, units) * (head_dim // BLOCK) * BLOCK_BEATS


assert BEAT_BYTES == HEADER_RUNS * RUN_BYTES
