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
    rounds = [encode_round(run, blocks, weights) for blocks in run.rounds()]
    out = []
    for i, (indices, codes, high) in enumerate(rounds):
        out += [indices, codes]
        if run.bits == 3 and run.nonzeros > 1 and i % 2 == 0:
            out.append(high[:32] + (rounds[i + 1][2][:32] if i + 1 < len(rounds) else bytes(32)))
    return b"".join(out)


def encode_round(run: Run, blocks: list[int], weights: np.ndarray) -> tuple[bytes, bytes, bytes]:
    """(index beats, code beats without the high plane of N > 1, high plane)"""
    n, each = run.nonzeros, min(run.nonzeros, 8) if run.nonzeros < 16 else 16
    slots = 8 if n == 1 else 16
    inputs, codes = [[0] * slots for _ in ROWS], [[0] * slots for _ in ROWS]
    masks = [[0] * 16, [0] * 16]
    for i, block in enumerate(blocks):
        for r in ROWS:
            row = weights[r, block * 16 : block * 16 + 16].tolist()
            chosen = list(range(16)) if n == 16 else [c for c in range(16) if row[c]] or list(range(n))
            assert len(chosen) == (16 if n == 16 else n), "not N non-zeros in a row of a block"
            for s, c in enumerate(chosen):
                inputs[r][i * each + s], codes[r][i * each + s] = c, code_of(run, row[c], r)
                if n == 8:
                    masks[i][r] |= 1 << c
    flat = [v for row in inputs for v in row]
    indices = {16: b"", 8: packed(masks[0] + masks[1], 16)}.get(n, packed(flat, 4))
    values = [v for row in codes for v in row]
    if run.bits > 3:
        return indices, packed(values, run.bits), b""
    low, high = packed([v & 3 for v in values], 2), packed([v >> 2 for v in values], 1)
    return indices, low[:32] + high[:32] if run.bits == 3 and n == 1 else low, high


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


def random_streams(rng: random.Random, units: int, shape: list[list[tuple[int, bool, int]]], ends: bool = True,
                   alike: bool = False) -> list[bytes]:  # fmt: skip
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
        plane = 0
        for i, blocks in enumerate(run.rounds()):
            n_index, n_code = index_beats(run.nonzeros), code_beats(run.bits, run.nonzeros, i)
            index = data[at * 64 : (at + n_index) * 64]
            code = data[(at + n_index) * 64 : (at + n_index + n_code) * 64]
            if run.bits == 3 and run.nonzeros > 1:
                plane = code[64:] if i % 2 == 0 else plane[32:]
            elif run.bits == 3:
                plane = code[32:]
            for r in ROWS:
                for slot in range(16):
                    place = slot_of(run, slot, r, index, code, plane)
                    if place is not None and place[0] < len(blocks):
                        column = (run.window * WINDOW + blocks[place[0]]) * 16 + place[1]
                        steps[-1][r, column] += place[2]
            at += n_index + n_code
    return np.array([step[:, :inputs] for step in steps])


def slot_of(run: Run, slot: int, row: int, index: bytes, code: bytes, plane: bytes) -> tuple[int, int, int] | None:
    """(block of the round, input in it, weight) of a chain's slot; None for the odd slots of N = 1."""
    n = run.nonzeros
    if n == 1 and slot % 2:
        return None
    m = max(n, 2) if n < 16 else 16
    block = slot // m
    stored, width = (slot // 2, 8) if n == 1 else (slot, 16)
    if n == 16:
        where = slot
    elif n == 8:
        mask = bits_of(index, 16)[block * 16 + row]
        where = ([c for c in range(16) if mask >> c & 1] + [0] * 8)[slot % 8]
    else:
        where = bits_of(index, 4)[row * width + stored]
    if run.bits > 3:
        value = bits_of(code, run.bits)[row * width + stored]
    else:
        value = bits_of(code[:64], 2)[row * width + stored]
        if run.bits == 3:
            value |= bits_of(plane, 1)[row * width + stored] << 2
    product = level(value, run.bits) * (1 if run.bits == 8 else run.scales[row])
    return block, where, (product + 128) % 256 - 128
