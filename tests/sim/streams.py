"""Weight streams for tests: an encoder, random streams, and a slow reader, from hw/spec/weights.py alone."""

import random

import numpy as np

from hw.spec.weights import (
    FILLER_BITS,
    HEADER_RUNS,
    MAX_SCALE,
    RUN_BYTES,
    WINDOW,
    Run,
    code_beats,
    index_beats,
    level,
    mask_inputs,
    round_blocks,
)

ROWS = range(16)


def bits_of(data: bytes, width: int) -> list[int]:
    """The little-endian fields of this many bits."""
    word = int.from_bytes(data, "little")
    return [word >> at & (1 << width) - 1 for at in range(0, 8 * len(data), width)]


def packed(values: list[int], width: int) -> bytes:
    """Inverse of `bits_of`, filled up to a beat."""
    word = sum(value << i * width for i, value in enumerate(values))
    n_bytes = -(-len(values) * width // 8)
    return word.to_bytes(n_bytes, "little") + bytes(-n_bytes % 64)


# --- encoding --------------------------------------------------------------------------------------------


def encode_run(run: Run, weights: np.ndarray) -> bytes:
    """Payload of a run whose window holds int[16 rows, 128 inputs]: exactly N non-zeros a row of a block (N < 16)."""
    rounds = [cells_of(run, blocks, weights) for blocks in run.rounds()]
    out = []
    for i, (inputs, codes) in enumerate(rounds):
        following = rounds[i + 1][1] if i + 1 < len(rounds) else {}
        out += [index_bytes(run, inputs), code_bytes(run, i, codes, following)]
    return b"".join(out)


Cells = dict[tuple[int, int], int]
"""Something of each (row, slot) that is used."""


def slot_at(run: Run, row: int, block: int, number: int) -> int:
    """The slot of a row's `number`-th weight in the round's `block`-th block."""
    if run.nonzeros == 1:
        return 2 * block + (block >= 4) if row % 8 < 4 else 2 * block + (block < 4)
    return run.nonzeros * block + number


def cells_of(run: Run, blocks: list[int], weights: np.ndarray) -> tuple[Cells, Cells]:
    """(inputs, codes) of a round."""
    n, inputs, codes = run.nonzeros, {}, {}
    for i, block in enumerate(blocks):
        for r in ROWS:
            row = weights[r, block * 16 : block * 16 + 16].tolist()
            chosen = list(range(16)) if n == 16 else [c for c in range(16) if row[c]] or list(range(n))
            assert len(chosen) == (16 if n == 16 else n), "not N non-zeros in a row of a block"
            for number, c in enumerate(chosen):
                cell = r, slot_at(run, r, i, number)
                inputs[cell], codes[cell] = c, code_of(run, row[c], r)
    return inputs, codes


def index_bytes(run: Run, inputs: Cells) -> bytes:
    """Index beats of a round."""
    if run.nonzeros == 16:
        return b""
    if run.nonzeros == 8:
        masks = [[0] * 16, [0] * 16]
        for (row, slot), c in inputs.items():
            masks[slot // 8][row] |= 1 << c
        return packed(masks[0] + masks[1], 16)
    nibbles = [0] * (128 if run.nonzeros == 1 else 256)
    for (row, slot), c in inputs.items():
        nibbles[index_at(run, row, slot)] = c
    return packed(nibbles, 4)


def index_at(run: Run, row: int, slot: int) -> int:
    """The nibble of the index beats of N < 8 that is a slot's."""
    return (128 * (slot // 8) if run.nonzeros > 1 else 0) + 8 * row + slot % 8


def code_bits(run: Run, number: int, row: int, slot: int) -> list[int]:
    """Where the bits of a code lie, from bit 0 on, counted from the first code beat of the run's round `number`.

    The third bit of 3 bits and N > 1: from the first code beat of the even round, itself or the one before.
    """
    quarter, byte = row // 4, 8 * (row % 4 * 16 + slot)
    if run.bits == 8:
        beat = quarter // 2 if run.nonzeros == 1 else quarter
        return [512 * beat + byte + i for i in range(8)]
    if run.bits == 4:
        beat = 0 if run.nonzeros == 1 else quarter // 2
        return [512 * beat + byte + [0, 4, 4, 0][quarter] + i for i in range(4)]
    places = [byte + i for i in [[1, 2], [5, 7], [4, 6], [0, 3]][quarter]]
    if run.bits == 3:
        high = byte + [0, 1, 3, 2][quarter]
        places.append(high if run.nonzeros == 1 else 512 + high + 4 * (number % 2))
    return places


def code_bytes(run: Run, number: int, codes: Cells, following: Cells) -> bytes:
    """Code beats of a run's round; following: the next round's codes."""
    word, n_bytes = 0, 64 * code_beats(run.bits, run.nonzeros, number)
    for (row, slot), code in codes.items():
        for i, at in enumerate(code_bits(run, number, row, slot)):
            word |= (code >> i & 1) << at
    if run.bits == 3 and run.nonzeros > 1:
        for (row, slot), code in following.items():
            word |= (code >> 2) << code_bits(run, number + 1, row, slot)[2]
    return (word & (1 << 8 * n_bytes) - 1).to_bytes(n_bytes, "little")


def code_of(run: Run, weight: int, row: int) -> int:
    """The code of a weight; any code where the scale is zero and so is the weight."""
    scale = 1 if run.bits == 8 else run.scales[row]
    return next(c for c in range(1 << run.bits) if level(c, run.bits) * scale == weight)


def random_weights(rng: random.Random, run: Run) -> np.ndarray:
    """int[16, 128] that `encode_run` takes: random levels in the blocks of the run."""
    out = np.zeros((16, 128), np.int64)
    for block in (b for b in range(WINDOW) if run.blocks >> b & 1):
        for r in ROWS:
            scale = 1 if run.bits == 8 else run.scales[r]
            for c in rng.sample(range(16), run.nonzeros):
                levels = [level(code, run.bits) for code in range(1 << run.bits)]
                out[r, block * 16 + c] = scale * rng.choice([v for v in levels if v or run.nonzeros == 16])
    return out


def stream(runs: list[tuple[Run, bytes]], rng: random.Random | None = None) -> bytes:
    """Headers and payloads; with rng headers are not always full, and padding comes in between."""
    out, left = [], list(runs)
    while left:
        n = rng.randint(1, HEADER_RUNS) if rng else HEADER_RUNS
        if rng and rng.random() < 0.2:
            out.append(bytes(64))
        out.append(b"".join(run.encode() for run, _ in left[:n]).ljust(64, b"\0"))
        out += [payload for _, payload in left[:n]]
        left = left[n:]
    return b"".join(out)


def dense(weights: np.ndarray) -> bytes:
    """8-bit stream of a unit's int8[steps * 16, inputs] (inputs a multiple of 16)."""
    steps, kb = weights.shape[0] // 16, weights.shape[1] // 16
    runs = []
    for step in range(steps):
        for w in range(0, kb, WINDOW):
            n = min(WINDOW, kb - w)
            run = Run(8, 16, w // WINDOW, (1 << n) - 1, w + n == kb)
            padded = np.zeros((16, 128), np.int64)
            padded[:, : n * 16] = weights[step * 16 : step * 16 + 16, w * 16 : (w + n) * 16]
            runs.append((run, encode_run(run, padded)))
    return stream(runs)


# --- random streams --------------------------------------------------------------------------------------


def random_run(rng: random.Random, bits: int, nonzeros: int, window: int, rounds: int, last: bool) -> Run:
    """A run of this many rounds (which must fit its window)."""
    per = round_blocks(nonzeros)
    count = rng.randint((rounds - 1) * per + 1, min(WINDOW, rounds * per))
    blocks = sum(1 << b for b in rng.sample(range(WINDOW), count))
    limit = MAX_SCALE.get(bits, 0)
    return Run(bits, nonzeros, window, blocks, last, tuple(rng.randint(-limit, limit) for _ in ROWS))


def random_shape(rng: random.Random, steps: int, windows: int, most: int = 4) -> list[list[tuple[int, bool, int]]]:
    """What units agree on: per step, groups of (window, sparse, rounds)."""
    return [
        [(rng.randrange(windows), rng.random() < 0.5, rng.randint(1, 8)) for _ in range(rng.randint(1, most))]
        for _ in range(steps)
    ]


def random_stream(rng: random.Random, shape: list[list[tuple[int, bool, int]]], ends: bool = True) -> bytes:
    """One unit's stream of this shape in runs of its own choice, payloads of random bytes. ends: so does its last
    step."""
    runs = []
    for i, step in enumerate(shape):
        for j, (window, sparse, rounds) in enumerate(step):
            while rounds:
                nonzeros, bits = rng.choice([1, 2, 4, 8]) if sparse else 16, rng.choice([8, 4, 3, 2, FILLER_BITS])
                n = rng.randint(1, min(rounds, WINDOW // round_blocks(nonzeros)))
                rounds -= n
                last = not rounds and j == len(step) - 1 and (ends or i < len(shape) - 1)
                run = random_run(rng, bits, nonzeros, window, n, last)
                runs.append((run, rng.randbytes(run.beats() * 64)))
    return stream(runs, rng)


def random_streams(
    rng: random.Random, units: int, shape: list[list[tuple[int, bool, int]]], ends: bool = True, alike: bool = False
) -> list[bytes]:
    """A stream a unit, equally long. alike: in the same runs, so that they take the same time."""
    seed = rng.random()
    out = [random_stream(random.Random(seed if alike else seed + u), shape, ends) for u in range(units)]
    return [data.ljust(max(len(d) for d in out), b"\0") for data in out]


# --- reading ---------------------------------------------------------------------------------------------


def runs_of(data: bytes) -> list[tuple[Run, int]]:
    """(run, first payload beat) of every run."""
    out, at = [], 0
    while at < len(data) // 64:
        header = data[at * 64 : at * 64 + 64]
        at += 1
        for slot in range(HEADER_RUNS):
            run = Run.decode(header[slot * RUN_BYTES : (slot + 1) * RUN_BYTES])
            if run is None:
                break
            out.append((run, at))
            at += run.beats()
    return out


def header_positions(data: bytes) -> list[int]:
    """The beats of a stream that are headers or padding."""
    inside = {i for run, at in runs_of(data) for i in range(at, at + run.beats())}
    return [i for i in range(len(data) // 64) if i not in inside]


def beat_kinds(data: bytes) -> list[tuple[int, bool, bool] | None]:
    """Of every beat the round that it completes, (window, sparse, ends the step), or None."""
    out: list = [None] * (len(data) // 64)
    for run, at in runs_of(data):
        for i in range(len(run.rounds())):
            at += index_beats(run.nonzeros) + code_beats(run.bits, run.nonzeros, i)
            out[at - 1] = (run.window, run.sparse, run.last and i == len(run.rounds()) - 1)
    return out


def decode(data: bytes, inputs: int) -> np.ndarray:
    """One unit's weights, int64[steps, 16, inputs], value by value."""
    steps: list[np.ndarray] = []
    fresh = True
    for run, at in runs_of(data):
        if fresh:
            steps.append(np.zeros((16, inputs + 128), np.int64))
        fresh = run.last
        even = b""
        for i, blocks in enumerate(run.rounds()):
            n_index, n_code = index_beats(run.nonzeros), code_beats(run.bits, run.nonzeros, i)
            index = data[at * 64 : (at + n_index) * 64]
            code = data[(at + n_index) * 64 : (at + n_index + n_code) * 64]
            if i % 2 == 0:
                even = code
            for r in ROWS:
                for slot in range(16):
                    place = slot_of(run, i, slot, r, index, code, even)
                    if run.nonzeros in (2, 4, 8) and place and place[1] == (15, 0)[slot % 2]:
                        continue  # counts as zero
                    if place is not None and place[0] < len(blocks):
                        column = (run.window * WINDOW + blocks[place[0]]) * 16 + place[1]
                        steps[-1][r, column] += place[2]
            at += n_index + n_code
    return np.array([step[:, :inputs] for step in steps])


def slot_of(run: Run, number: int, slot: int, row: int, index: bytes, code: bytes, even: bytes) -> tuple | None:
    """(block of the round, input in it, weight) of a chain's slot; None for one that N = 1 leaves empty.

    code: the round's code beats; even: those of the even round, itself or the one before.
    """
    n = run.nonzeros
    block = slot // (max(n, 2) if n < 16 else 16)
    if n == 1 and slot != slot_at(run, row, block, 0):
        return None
    if n == 16:
        where = slot
    elif n == 8:
        where = mask_inputs(bits_of(index, 16)[block * 16 + row])[slot % 8]
    else:
        where = bits_of(index, 4)[index_at(run, row, slot)]
    words = [int.from_bytes(data, "little") for data in (code, even)]
    places = code_bits(run, number, row, slot)
    value = sum((words[n > 1 and i == 2 and run.bits == 3] >> at & 1) << i for i, at in enumerate(places))
    product = level(value, run.bits) * (1 if run.bits == 8 else run.scales[row])
    return block, where, (product + 128) % 256 - 128
