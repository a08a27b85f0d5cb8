"""Weight streams for tests: random ones, an encoder, and a decoder that reads hw/spec/weights.py aloud, bit by bit.

    content = random_run(rng, bits=3, nonzeros=4, window=5, blocks=0b1011_0111, last=True)     # rng: random.Random
    content.run, content.codes, content.indices     # Run, uint8[rounds, 16 rows, 16 slots], uint4[rounds, 16, 16]
    bundle = random_bundle(rng, steps=(0, 2, 3), nonzeros=4, ...)   # a run for each step, `more` but for the last
    payload = encode_stream([content, *bundle, ...])                # bytes: headers and rounds, a multiple of 64
    rounds = decode_stream(payload)                 # [Round]: what the chains must see, `beat` completes it
    block = random_round(rng)                       # int8[16, 16] of a RAW stream
    rounds = decode_raw(encode_raw([block, ...]))

``encode_stream(contents, per_header=n)`` puts up to n runs (default four) in a header, and never splits a bundle; None
among the contents: the header ends here, None behind it is a header of padding. Codes and indices of empty slots are
encoded as they are.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from hw.spec.config import BEAT_BYTES, BLOCK, BLOCK_BEATS
from hw.spec.weights import (
    BITS,
    HEADER_RUNS,
    MAX_BUNDLE,
    MAX_SCALE,
    RUN_BYTES,
    WINDOW,
    Run,
    level,
    mask_inputs,
    round_beats,
    round_blocks,
)

MASKED = 8
"""Non-zeros whose indices come as masks."""
N_INDICES = {16: 0, 8: 1, 4: 2, 2: 2, 1: 1}
"""Index beats of a round."""


@dataclass
class Content:
    """A run and what is in it. masks: uint16[rounds, 2, 16] of an N = 8 run that has other than eight bits set."""

    run: Run
    codes: np.ndarray
    indices: np.ndarray
    masks: np.ndarray | None = None

    def add_to(self, matrix):
        """matrix: int[16, inputs] (+)= the run's weights."""
        run, each = self.run, BLOCK // round_blocks(self.run.nonzeros)
        for number, blocks in enumerate(run.rounds()):
            for row in range(BLOCK):
                for slot in used_slots(run, len(blocks), row):
                    weight = level(int(self.codes[number, row, slot]), run.bits)
                    place = BLOCK * (WINDOW * run.window + blocks[slot // each])
                    scale = run.scales[row] if run.bits < 8 else 1
                    matrix[row, place + int(self.indices[number, row, slot])] += weight * scale


@dataclass
class Round:
    """A round as the chains see it. blocks: of each DSP group, None where it has no weights; used: each row's slots
    that hold one; beat: completes it; weights: levels or bytes; scales: what the rows' sums are multiplied by."""

    kind: dict
    blocks: list[int | None]
    beat: int
    used: list[list[int]]
    weights: list[list[int]] = field(default_factory=list)
    indices: list[list[int]] = field(default_factory=list)
    scales: tuple[int, ...] = (1,) * BLOCK


def used_slots(run: Run, n_blocks: int, row: int) -> list[int]:
    """A row's slots that hold a weight in a round of that many blocks."""
    each = BLOCK // round_blocks(run.nonzeros)
    if run.nonzeros == 1:
        return [2 * block + (block // 4 + row // 4) % 2 for block in range(n_blocks)]
    return list(range(each * n_blocks))


# Random contents


def random_round(rng) -> np.ndarray:
    """A RAW block, int8[16 rows, 16 inputs]."""
    return np.array([rng.randint(-128, 127) for _ in range(BLOCK * BLOCK)], np.int8).reshape(BLOCK, BLOCK)


def random_run(
    rng, bits, nonzeros, window=0, blocks=0xFF, last=False, step=0, more=False, most_negative=True
) -> Content:
    """Random codes (in empty slots too), scales and ascending indices. most_negative: -128 is one of the codes."""
    largest = MAX_SCALE.get(bits, 0)
    scales = tuple(rng.randint(-largest, largest) for _ in range(BLOCK))
    run = Run(bits, nonzeros, window, blocks, last, scales, step, more)
    shape = (len(run.rounds()), BLOCK, BLOCK)
    codes = np.array([rng.getrandbits(bits) for _ in range(np.prod(shape))], np.uint8).reshape(shape)
    if bits == 8 and not most_negative:
        codes[codes == 128] = 127
    each = max(nonzeros, 2)
    indices = [sorted(rng.sample(range(BLOCK), each)) for _ in range(np.prod(shape) // each)]
    return Content(run, codes, np.array(indices, np.uint8).reshape(shape))


def random_bundle(rng, steps, bits=BITS, **options) -> list[Content]:
    """Runs of ascending steps, each of one of these precisions."""
    return [random_run(rng, rng.choice(bits), step=step, more=step != steps[-1], **options) for step in steps]


# Where the bits of a code are


def code_places(run: Run, row: int, slot: int) -> list[tuple[int, int]]:
    """(code beat, bit) of each bit of a code, from bit 0 on; of an even round, if 3 bits have a beat of high bits."""
    quarter, single, byte = row // 4, run.nonzeros == 1, 8 * (16 * (row % 4) + slot)
    if run.bits == 8:
        return [(quarter // 2 if single else quarter, byte + i) for i in range(8)]
    if run.bits == 4:
        return [(0 if single else quarter // 2, byte + (0, 4, 4, 0)[quarter] + i) for i in range(4)]
    places = [(0, byte + i) for i in ((1, 2), (5, 7), (4, 6), (0, 3))[quarter]]
    if run.bits == 3:
        places.append((0 if single else 1, byte + (0, 1, 3, 2)[quarter]))
    return places


def shares_planes(run: Run) -> bool:
    """Whether every other round brings the high bits of the next."""
    return run.bits == 3 and run.nonzeros > 1


def play(bundle: list) -> list[tuple]:
    """The rounds of a bundle's runs in order: (run's place in the bundle, round's number in its run, whether an odd
    3-bit round). Batch by batch, one round of every run; counting starts anew behind 8 bits."""
    order, odd = [], 0
    for number in range(len(bundle[0].rounds())):
        for place, run in enumerate(bundle):
            order.append((place, number, odd))
            odd = 0 if run.bits == 8 else odd ^ (run.bits == 3)
    return order


def bundles_of(runs: list[Run]) -> list[list[Run]]:
    out, bundle = [], []
    for run in runs:
        bundle.append(run)
        if not run.more:
            out.append(bundle)
            bundle = []
    assert not bundle, "the last run of a header says `more`"
    return out


# Encoder


def beats_of(values, width: int) -> bytes:
    """Unsigned values of ``width`` bits, little endian, filled up to whole beats."""
    values = np.asarray(values, np.uint32).reshape(-1, 1)
    packed = np.packbits((values >> np.arange(width) & 1).astype(np.uint8), bitorder="little").tobytes()
    return packed + bytes(-len(packed) % BEAT_BYTES)


def masks_of(indices) -> np.ndarray:
    """uint16[2 blocks, 16 rows] of indices [16 rows, 16 slots]."""
    return np.array(
        [[sum({1 << int(i) for i in row}) for row in half] for half in (indices[:, :MASKED], indices[:, MASKED:])],
        np.uint16,
    )


def encode_codes(run: Run, codes, odd: int, following=None) -> bytes:
    """Code beats of a round; codes, following: of the round and of the one whose high bits it brings along, if any."""
    bits = np.zeros((round_beats(run.bits, run.nonzeros, odd) - N_INDICES[run.nonzeros], 8 * BEAT_BYTES), np.uint8)
    for row in range(BLOCK):
        for slot in range(BLOCK) if run.nonzeros > 1 else used_slots(run, 8, row):
            for i, (beat, at) in enumerate(code_places(run, row, slot)):
                if beat < len(bits):
                    bits[beat, at] |= codes[row, slot] >> i & 1
                    if i == 2 and shares_planes(run) and following is not None:
                        bits[beat, at + 4] |= following[row, slot] >> 2
    return np.packbits(bits, axis=1, bitorder="little").tobytes()


def encode_indices(run: Run, indices, masks=None) -> bytes:
    """Index beats of a round; masks: uint16[2 blocks, 16 rows] for N = 8, None: those of its indices."""
    if run.nonzeros == BLOCK:
        return b""
    if run.nonzeros == MASKED:
        return beats_of(masks_of(indices) if masks is None else masks, 16)
    if run.nonzeros > 1:
        return beats_of(indices[:, :8], 4) + beats_of(indices[:, 8:], 4)
    shared = np.zeros((BLOCK, 8), np.uint8)
    for row in range(BLOCK):
        for slot in used_slots(run, 8, row):
            shared[row, slot % 8] = indices[row, slot]
    return beats_of(shared, 4)


def encode_bundle(bundle: list[Content]) -> bytes:
    out, order = b"", play([content.run for content in bundle])
    for at, (place, number, odd) in enumerate(order):
        content, start = bundle[place], len(out)
        run, masks = content.run, None if content.masks is None else content.masks[number]
        out += encode_indices(run, content.indices[number], masks)
        out += encode_codes(run, content.codes[number], odd, _next_three_bits(bundle, order[at + 1 :]))
        assert len(out) - start == BEAT_BYTES * round_beats(run.bits, run.nonzeros, odd)
    return out


def _next_three_bits(bundle, order):
    """Codes of the first 3-bit round in this order, unless one of 8 bits comes before."""
    for place, number, _ in order:
        if bundle[place].run.bits in (3, 8):
            return bundle[place].codes[number] if bundle[place].run.bits == 3 else None
    return None


def headers(contents, per_header: int) -> list[list[Content]]:
    """The contents of each header; a bundle lies in one."""
    out: list[list[Content]] = [[]]
    bundle: list[Content] = []
    for content in contents:
        if content is None:
            out.append([])
            continue
        bundle.append(content)
        if not content.run.more:
            if (out[-1] and len(out[-1]) + len(bundle) > per_header) or _is_full(out[-1]):
                out.append([])
            out[-1] += bundle
            bundle = []
    return out


def _is_full(header) -> bool:
    """Whether no slot may follow: the last of a beat lacks `more`."""
    return bool(header) and len(header) % HEADER_RUNS == 0


def encode_header(runs: list[Run]) -> bytes:
    assert len(runs) <= MAX_BUNDLE
    slots = b"".join(run.encode() for run in runs)
    return slots.ljust(max(1, -(-len(slots) // BEAT_BYTES)) * BEAT_BYTES, b"\0")


def encode_stream(contents, per_header=HEADER_RUNS) -> bytes:
    out = b""
    for header in headers(contents, per_header):
        out += encode_header([content.run for content in header])
        at = 0
        for bundle in bundles_of([content.run for content in header]):
            out += encode_bundle(header[at : at + len(bundle)])
            at += len(bundle)
    return out


def encode_raw(blocks) -> bytes:
    return b"".join(block.astype(np.int8).tobytes() for block in blocks)


# Decoder


def field_of(data: bytes, at: int, width: int) -> int:
    return int.from_bytes(data, "little") >> at & (1 << width) - 1


def decode_code(run: Run, codes: bytes, plane: bytes, row: int, slot: int, odd: int) -> int:
    """A slot's code, of the round's own code beats and the beat of high bits that it shares."""
    code = 0
    for i, (beat, at) in enumerate(code_places(run, row, slot)):
        if i == 2 and shares_planes(run):
            code |= field_of(plane, at + 4 * odd, 1) << 2
        else:
            code |= field_of(codes, 512 * beat + at, 1) << i
    return code


def decode_index(run: Run, indices: bytes, row: int, slot: int) -> int:
    if run.nonzeros == 16:
        return slot
    if run.nonzeros == MASKED:
        mask = field_of(indices, 256 * (slot // 8) + 16 * row, 16)
        inputs = [i for i in range(16) if mask >> i & 1]
        return inputs[slot % 8] if len(inputs) >= MASKED else mask_inputs(mask)[slot % 8]
    beat = 0 if run.nonzeros == 1 else slot // 8
    return field_of(indices, 512 * beat + 4 * (8 * row + slot % 8), 4)


def decode_round(run: Run, beats: bytes, plane: bytes, present: list[int], odd: int) -> Round:
    """A round of its own beats, and of the one of high bits that an odd 3-bit round finds before it."""
    at, each = BEAT_BYTES * N_INDICES[run.nonzeros], BLOCK // round_blocks(run.nonzeros)
    out = Round(
        {"sparse": int(run.sparse), "raw": 0, "more": int(run.more), "step": run.step, "window": run.window},
        [present[2 * g // each] if 2 * g // each < len(present) else None for g in range(8)],
        0,
        [used_slots(run, len(present), row) for row in range(BLOCK)],
        scales=run.scales if run.bits < 8 else (1,) * BLOCK,
    )
    for row in range(BLOCK):
        out.indices.append([decode_index(run, beats[:at], row, slot) for slot in range(BLOCK)])
        values = [0] * BLOCK
        for slot in out.used[row]:
            values[slot] = level(decode_code(run, beats[at:], plane, row, slot, odd), run.bits)
        out.weights.append(values)
    return out


def decode_bundle(runs: list[Run], payload: bytes) -> tuple[list[Round], int]:
    """A bundle's rounds, whose `beat` counts from its first, and its beats; ``payload`` begins with them."""
    rounds, plane, beat = [], b"", 0
    for place, number, odd in play(runs):
        run, present = runs[place], runs[place].rounds()
        n_beats = round_beats(run.bits, run.nonzeros, odd)
        beats = payload[BEAT_BYTES * beat : BEAT_BYTES * (beat + n_beats)]
        if shares_planes(run) and not odd:
            plane = beats[-BEAT_BYTES:]
        beat += n_beats
        rounds.append(decode_round(run, beats, plane, present[number], odd))
        rounds[-1].beat = beat - 1
        rounds[-1].kind["last"] = int(run.last and number == len(present) - 1)
    return rounds, beat


def decode_header(stream: bytes) -> tuple[list[Run], int]:
    """The runs of the header that the stream begins with, and its beats."""
    runs: list[Run] = []
    for at in range(0, len(stream), RUN_BYTES):
        run = Run.decode(stream[at : at + RUN_BYTES])
        if run is None:
            break
        runs.append(run)
        if len(runs) % HEADER_RUNS == 0 and not run.more:
            break
    return runs, max(1, -(-len(runs) // HEADER_RUNS))


def decode_stream(stream: bytes) -> list[Round]:
    rounds, beat = [], 0
    while BEAT_BYTES * beat < len(stream):
        runs, n_beats = decode_header(stream[BEAT_BYTES * beat :])
        beat += n_beats
        for bundle in bundles_of(runs):
            found, n_beats = decode_bundle(bundle, stream[BEAT_BYTES * beat :])
            rounds += [replace(each, beat=each.beat + beat) for each in found]
            beat += n_beats
    return rounds


def decode_raw(stream: bytes) -> list[Round]:
    rounds, size = [], BEAT_BYTES * BLOCK_BEATS
    kind = {"sparse": 0, "raw": 1, "last": 0, "more": 0, "step": 0, "window": 0}
    for number in range(len(stream) // size):
        block = np.frombuffer(stream[number * size : (number + 1) * size], np.int8).reshape(BLOCK, BLOCK).tolist()
        every = [list(range(BLOCK))] * BLOCK
        rounds.append(Round(kind, [0] * 8, number * BLOCK_BEATS + BLOCK_BEATS - 1, every, block, every))
    return rounds
