"""Weight streams for tests: random ones, an encoder, and a decoder that reads hw/spec/weights.py aloud, bit by bit.

    content = random_run(rng, bits=3, nonzeros=4, window=5, blocks=0b1011_0111, last=True)     # rng: random.Random
    content.run, content.codes, content.indices     # Run, uint8[rounds, 16 rows, 16 slots], uint4[rounds, 16, 16]
    content.weights                                 # int8[rounds, 16, 16]: level * scale, zero in empty slots
    payload = encode_stream([content, ...])         # bytes: headers and payloads, a multiple of 64
    rounds = decode_stream(payload)                 # [Round]: what the chains must see, `beat` completes it
    block = random_round(rng)                       # int8[16, 16] of a RAW stream
    rounds = decode_raw(encode_raw([block, ...]))

``encode_stream(contents, per_header=n)`` puts n runs (default four) in a header; None among the contents: the header
ends here, None behind it is a header of padding. Codes and indices of empty slots are encoded as they are.
"""

from dataclasses import dataclass, field

import numpy as np

from hw.spec.config import BEAT_BYTES, BLOCK, BLOCK_BEATS
from hw.spec.weights import (
    HEADER_RUNS,
    MAX_SCALE,
    RUN_BYTES,
    Run,
    code_beats,
    level,
    mask_inputs,
    round_beats,
    round_blocks,
)

MASKED = 8
"""Non-zeros whose indices come as masks."""


@dataclass
class Content:
    """A run and what is in it. masks: uint16[rounds, 2, 16] of an N = 8 run that has other than eight bits set."""

    run: Run
    codes: np.ndarray
    indices: np.ndarray
    masks: np.ndarray | None = None

    @property
    def weights(self) -> np.ndarray:
        out = np.zeros(self.codes.shape, np.int8)
        for number, blocks in enumerate(self.run.rounds()):
            for row in range(BLOCK):
                for slot in used_slots(self.run, len(blocks), row):
                    value = level(int(self.codes[number, row, slot]), self.run.bits)
                    out[number, row, slot] = value if self.run.bits == 8 else value * self.run.scales[row]
        return out


@dataclass
class Round:
    """A round as the chains see it. used: each row's slots that hold a weight; beat: completes it; weights:
    levels or bytes; scales: what the rows' sums are multiplied by."""

    kind: dict
    blocks: list[int]
    beat: int
    used: list[list[int]]
    weights: list[list[int]] = field(default_factory=list)
    indices: list[list[int]] = field(default_factory=list)
    scales: tuple[int, ...] = (1,) * BLOCK
    single: bool = False


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


def random_run(rng, bits, nonzeros, window=0, blocks=0xFF, last=False) -> Content:
    """Random codes (in empty slots too), scales and ascending indices."""
    largest = MAX_SCALE.get(bits, 0)
    run = Run(bits, nonzeros, window, blocks, last, tuple(rng.randint(-largest, largest) for _ in range(BLOCK)))
    shape = (len(run.rounds()), BLOCK, BLOCK)
    codes = np.array([rng.getrandbits(bits) for _ in range(np.prod(shape))], np.uint8).reshape(shape)
    each = max(nonzeros, 2)
    indices = [sorted(rng.sample(range(BLOCK), each)) for _ in range(np.prod(shape) // each)]
    return Content(run, codes, np.array(indices, np.uint8).reshape(shape))


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


def encode_codes(run: Run, codes, number: int) -> bytes:
    """Code beats of a run's round ``number``; ``codes`` are the whole run's."""
    bits = np.zeros((code_beats(run.bits, run.nonzeros, number), 512), np.uint8)
    for row in range(BLOCK):
        for slot in range(BLOCK) if run.nonzeros > 1 else used_slots(run, 8, row):
            for i, (beat, at) in enumerate(code_places(run, row, slot)):
                if beat < len(bits):
                    bits[beat, at] |= codes[number, row, slot] >> i & 1
                if beat < len(bits) and run.bits == 3 and i == 2 and run.nonzeros > 1 and number + 1 < len(codes):
                    bits[beat, at + 4] |= codes[number + 1, row, slot] >> 2
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


def encode_run(content: Content) -> bytes:
    run, out = content.run, b""
    for number in range(len(run.rounds())):
        start = len(out)
        out += encode_indices(run, content.indices[number], None if content.masks is None else content.masks[number])
        out += encode_codes(run, content.codes, number)
        assert len(out) - start == BEAT_BYTES * round_beats(run.bits, run.nonzeros, number)
    return out


def encode_stream(contents, per_header=HEADER_RUNS) -> bytes:
    groups: list[list[Content]] = [[]]
    for content in contents:
        if content is None or len(groups[-1]) == per_header:
            groups.append([])
        if content is not None:
            groups[-1].append(content)
    out = b""
    for group in groups:
        header = b"".join(each.run.encode() for each in group)
        out += header + bytes(BEAT_BYTES - len(header)) + b"".join(map(encode_run, group))
    return out


def encode_raw(blocks) -> bytes:
    return b"".join(block.astype(np.int8).tobytes() for block in blocks)


# Decoder


def field_of(data: bytes, at: int, width: int) -> int:
    return int.from_bytes(data, "little") >> at & (1 << width) - 1


def decode_code(run: Run, codes: bytes, plane: bytes, row: int, slot: int, number: int) -> int:
    """A slot's code, of the round's own code beats and the beat of high bits that it shares."""
    code = 0
    for i, (beat, at) in enumerate(code_places(run, row, slot)):
        if run.bits == 3 and i == 2 and run.nonzeros > 1:
            code |= field_of(plane, at + 4 * (number % 2), 1) << 2
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


def decode_run(run: Run, payload: bytes, beat: int) -> list[Round]:
    """A run's rounds; ``payload`` begins with it, ``beat`` is the number of its first beat."""
    rounds, plane, n_indices = [], b"", {16: 0, 8: 1, 4: 2, 2: 2, 1: 1}[run.nonzeros]
    each = BLOCK // round_blocks(run.nonzeros)
    for number, present in enumerate(run.rounds()):
        n_beats = round_beats(run.bits, run.nonzeros, number)
        mine, payload = payload[: BEAT_BYTES * n_beats], payload[BEAT_BYTES * n_beats :]
        indices, codes = mine[: BEAT_BYTES * n_indices], mine[BEAT_BYTES * n_indices :]
        beat += n_beats
        if run.bits == 3 and number % 2 == 0:
            plane = codes[BEAT_BYTES:]
        last = run.last and number == len(run.rounds()) - 1
        kind = {"sparse": int(run.sparse), "raw": 0, "last": int(last), "window": run.window}
        blocks = [present[2 * g // each] if 2 * g // each < len(present) else None for g in range(8)]
        out = Round(
            kind,
            blocks,
            beat - 1,
            [used_slots(run, len(present), row) for row in range(BLOCK)],
            scales=run.scales if run.bits < 8 else (1,) * BLOCK,
            single=run.nonzeros == 1,
        )
        for row in range(BLOCK):
            out.indices.append([decode_index(run, indices, row, slot) for slot in range(BLOCK)])
            values = [0] * BLOCK
            for slot in out.used[row]:
                values[slot] = level(decode_code(run, codes, plane, row, slot, number), run.bits)
            out.weights.append(values)
        rounds.append(out)
    return rounds


def decode_stream(stream: bytes) -> list[Round]:
    rounds, beat = [], 0
    while BEAT_BYTES * beat < len(stream):
        header = stream[BEAT_BYTES * beat : BEAT_BYTES * (beat + 1)]
        beat += 1
        for at in range(0, BEAT_BYTES, RUN_BYTES):
            run = Run.decode(header[at : at + RUN_BYTES])
            if run is None:
                break
            payload = stream[BEAT_BYTES * beat : BEAT_BYTES * (beat + run.beats())]
            rounds += decode_run(run, payload, beat)
            beat += run.beats()
    return rounds


def decode_raw(stream: bytes) -> list[Round]:
    rounds, size = [], BEAT_BYTES * BLOCK_BEATS
    for number in range(len(stream) // size):
        block = np.frombuffer(stream[number * size : (number + 1) * size], np.int8).reshape(BLOCK, BLOCK).tolist()
        kind = {"sparse": 0, "raw": 1, "last": 0, "window": 0}
        rounds.append(
            Round(
                kind,
                [0] * 8,
                number * BLOCK_BEATS + BLOCK_BEATS - 1,
                [list(range(BLOCK))] * BLOCK,
                block,
                [list(range(BLOCK))] * BLOCK,
            )
        )
    return rounds
