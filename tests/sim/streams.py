"""Weight streams for tests: an encoder, random streams, and a slow reader, from hw/spec/weights.py alone."""

import random
from dataclasses import dataclass

import numpy as np

from hw.spec.weights import (
    FILLER_BITS,
    HEADER_RUNS,
    MAX_BUNDLE,
    MAX_SCALE,
    RUN_BYTES,
    WINDOW,
    Run,
    code_beats,
    index_beats,
    level,
    mask_inputs,
    next_odd,
    round_beats,
    round_blocks,
)

ROWS = range(16)
Bundle = list[Run]


def bits_of(data: bytes, width: int) -> list[int]:
    """The little-endian fields of this many bits."""
    word = int.from_bytes(data, "little")
    return [word >> at & (1 << width) - 1 for at in range(0, 8 * len(data), width)]


def packed(values: list[int], width: int) -> bytes:
    """Inverse of `bits_of`, filled up to a beat."""
    word = sum(value << i * width for i, value in enumerate(values))
    n_bytes = -(-len(values) * width // 8)
    return word.to_bytes(n_bytes, "little") + bytes(-n_bytes % 64)


@dataclass
class Round:
    """One round of a bundle. odd: the 3-bit rounds ahead of it, modulo 2; more: the next one is of its batch; last:
    its batch ends the group."""

    run: Run
    blocks: list[int]
    odd: int
    more: bool
    last: bool

    @property
    def index_beats(self) -> int:
        return index_beats(self.run.nonzeros)

    @property
    def code_beats(self) -> int:
        return code_beats(self.run.bits, self.run.nonzeros, self.odd)

    @property
    def beats(self) -> int:
        return round_beats(self.run.bits, self.run.nonzeros, self.odd)


def bundle_rounds(bundle: Bundle) -> list[Round]:
    """The rounds of a bundle in the order of the stream: the first of every run, then the second of every run, ..."""
    out, odd = [], 0
    batches = list(zip(*(run.rounds() for run in bundle), strict=True))
    for number, batch in enumerate(batches):
        for run, blocks in zip(bundle, batch, strict=True):
            last = run.last and number == len(batches) - 1
            out.append(Round(run, blocks, odd, run is not bundle[-1], last))
            odd = next_odd(run.bits, odd)
    return out


def bundle_beats(bundle: Bundle) -> int:
    return sum(one.beats for one in bundle_rounds(bundle))


# --- encoding --------------------------------------------------------------------------------------------


def encode_bundle(bundle: Bundle, weights: list[np.ndarray]) -> bytes:
    """Payload of a bundle whose runs hold int[16 rows, 128 inputs] each: N non-zeros a row of a block (N < 16)."""
    rounds = bundle_rounds(bundle)
    of_run = {id(run): w for run, w in zip(bundle, weights, strict=True)}
    cells = [cells_of(one.run, one.blocks, of_run[id(one.run)]) for one in rounds]
    out = []
    for i, (one, (inputs, codes)) in enumerate(zip(rounds, cells, strict=True)):
        partner = partner_of(rounds, i)
        out += [index_bytes(one.run, inputs), code_bytes(one, codes, cells[partner][1] if partner else {})]
    return b"".join(out)


def encode_run(run: Run, weights: np.ndarray) -> bytes:
    """Payload of a bundle of one run."""
    return encode_bundle([run], [weights])


def partner_of(rounds: list[Round], number: int) -> int | None:
    """The next 3-bit round, whose high bits an even 3-bit round brings along; none if one of 8 bits comes before."""
    if rounds[number].run.bits != 3 or rounds[number].odd:
        return None
    for i in range(number + 1, len(rounds)):
        if rounds[i].run.bits in (3, 8):
            return i if rounds[i].run.bits == 3 else None
    return None


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


def code_bits(run: Run, odd: int, row: int, slot: int) -> list[int]:
    """Where the bits of a code lie, from bit 0 on, counted from the round's first code beat.

    The third bit of 3 bits and N > 1: from the first code beat of the even round, itself or the 3-bit round before.
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
        places.append(high if run.nonzeros == 1 else 512 + high + 4 * odd)
    return places


def code_bytes(one: Round, codes: Cells, following: Cells) -> bytes:
    """Code beats of a round; following: the codes of the round whose high bits it brings along (`partner_of`)."""
    word, n_bytes = 0, 64 * one.code_beats
    for (row, slot), code in codes.items():
        for i, at in enumerate(code_bits(one.run, one.odd, row, slot)):
            word |= (code >> i & 1) << at
    if one.run.nonzeros > 1:
        for (row, slot), code in following.items():
            word |= (code >> 2) << code_bits(one.run, 1, row, slot)[2]
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


def stream(bundles: list[tuple[Bundle, bytes]], rng: random.Random | None = None) -> bytes:
    """Headers and payloads; with rng headers are not always full, and padding comes in between."""
    out, left = [], list(bundles)
    while left:
        if rng and rng.random() < 0.2:
            out.append(bytes(64))
        runs, n = list(left[0][0]), 1
        while n < len(left) and len(runs) % HEADER_RUNS and len(runs) + len(left[n][0]) <= MAX_BUNDLE:
            if rng and rng.random() < 0.3:
                break
            runs += left[n][0]
            n += 1
        slots = b"".join(run.encode() for run in runs)
        out.append(slots + bytes(-len(slots) % 64))
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
            runs.append(([run], encode_run(run, padded)))
    return stream(runs)


# --- random streams --------------------------------------------------------------------------------------


Part = tuple[int, bool, tuple[int, ...], int]
"""(window, sparse, steps of each batch, batches): rounds that units agree on. A dense batch is a round."""
Group = list[Part]


def random_bundle(
    rng: random.Random, part: Part, nonzeros: int, batches: int, last: bool, bits: int | None = None
) -> Bundle:
    """Runs for so many batches (which must fit a window) of the part, in precisions of their own or in `bits`."""
    window, _, steps, _ = part
    per = round_blocks(nonzeros)
    count = rng.randint((batches - 1) * per + 1, min(WINDOW, batches * per))
    blocks = sum(1 << b for b in rng.sample(range(WINDOW), count))
    out = []
    for step in steps:
        chosen = bits or rng.choice([8, 4, 3, 3, 2, FILLER_BITS])
        limit = MAX_SCALE.get(chosen, 0)
        scales = tuple(rng.randint(-limit, limit) for _ in ROWS)
        out.append(Run(chosen, nonzeros, window, blocks, last, scales, step, step != steps[-1]))
    return out


def random_group(rng: random.Random, size: int, windows: int, most: int = 4) -> Group:
    """What units agree on in a group of so many steps, all of which have rounds."""
    out: Group = []
    missing = set(range(size))
    while missing or (len(out) < most and rng.random() < 0.5):
        some = rng.sample(range(size), rng.randint(1, size))
        if rng.random() < 0.5 and size > 1:
            some = list(range(size))
        sparse = rng.random() < 0.5 if len(out) < most else True
        steps = tuple(sorted(missing or some if len(out) >= most - 1 else some)) if sparse else (some[0],)
        out.append((rng.randrange(windows), sparse, steps, rng.randint(1, 8 if len(steps) < 3 else 3)))
        missing -= set(steps)
    return out


def group_sizes(steps: int, group: int) -> list[int]:
    """The steps of each group of so many steps; group: the MX field of that name."""
    size = max(1, group)
    return [min(size, steps - first) for first in range(0, steps, size)]


def random_shape(rng: random.Random, sizes: list[int], windows: int, most: int = 4) -> list[Group]:
    """A group of each of these sizes, in steps."""
    return [random_group(rng, size, windows, most) for size in sizes]


def random_stream(rng: random.Random, shape: list[Group], ends: bool = True) -> bytes:
    """One unit's stream of this shape in bundles of its own choice, payloads of random bytes. ends: so does its last
    group."""
    bundles = []
    for i, group in enumerate(shape):
        for j, part in enumerate(group):
            left = part[3]
            while left:
                nonzeros = rng.choice([1, 2, 4, 8, 8]) if part[1] else 16
                n = rng.randint(1, min(left, WINDOW // round_blocks(nonzeros)))
                left -= n
                last = not left and j == len(group) - 1 and (ends or i < len(shape) - 1)
                bundle = random_bundle(rng, part, nonzeros, n, last)
                bundles.append((bundle, rng.randbytes(bundle_beats(bundle) * 64)))
    return stream(bundles, rng)


def random_streams(
    rng: random.Random, units: int, shape: list[Group], ends: bool = True, alike: bool = False
) -> list[bytes]:
    """A stream a unit, equally long. alike: in the same runs, so that they take the same time."""
    seed = rng.random()
    out = [random_stream(random.Random(seed if alike else seed + u), shape, ends) for u in range(units)]
    return [data.ljust(max(len(d) for d in out), b"\0") for data in out]


# --- reading ---------------------------------------------------------------------------------------------


def bundles_of(data: bytes) -> list[tuple[Bundle, int]]:
    """(bundle, first payload beat) of every bundle."""
    out, at = [], 0
    while at < len(data) // 64:
        runs, at = header_runs(data, at)
        while runs:
            size = next(i for i, run in enumerate(runs, 1) if not run.more)
            out.append((runs[:size], at))
            at += bundle_beats(runs[:size])
            runs = runs[size:]
    return out


def header_runs(data: bytes, at: int) -> tuple[list[Run], int]:
    """The runs of the header at a beat, and the beat behind it."""
    runs: list[Run] = []
    while True:
        for slot in range(HEADER_RUNS):
            run = Run.decode(data[at * 64 + slot * RUN_BYTES :][:RUN_BYTES])
            if run is None:
                return runs, at + 1
            runs.append(run)
        at += 1
        if not runs[-1].more:
            return runs, at


def header_positions(data: bytes) -> list[int]:
    """The beats of a stream that are headers or padding."""
    inside = {i for bundle, at in bundles_of(data) for i in range(at, at + bundle_beats(bundle))}
    return [i for i in range(len(data) // 64) if i not in inside]


Kind = tuple[int, int, bool, bool, bool]
"""(window, step of the group, sparse, more, last) of a round, see `Round`."""


def beat_kinds(data: bytes) -> list[Kind | None]:
    """Of every beat the round that it completes, or None."""
    out: list[Kind | None] = [None] * (len(data) // 64)
    for bundle, at in bundles_of(data):
        for one in bundle_rounds(bundle):
            at += one.beats
            out[at - 1] = (one.run.window, one.run.step, one.run.sparse, one.more, one.last)
    return out


def decode(data: bytes, inputs: int) -> np.ndarray:
    """One unit's weights, int64[steps, 16, inputs], value by value. A group has as many steps as rounds say."""
    groups: list[dict[int, np.ndarray]] = [{}]
    for bundle, at in bundles_of(data):
        even = b""
        for one in bundle_rounds(bundle):
            index = data[at * 64 : (at + one.index_beats) * 64]
            code = data[(at + one.index_beats) * 64 : (at + one.beats) * 64]
            at += one.beats
            if one.run.bits == 3 and not one.odd:
                even = code
            weights = groups[-1].setdefault(one.run.step, np.zeros((16, inputs + 128), np.int64))
            add_round(weights, one, index, code, even)
        if bundle[0].last:
            groups.append({})
    return np.array([group[step][:, :inputs] for group in groups for step in sorted(group)])


def add_round(weights: np.ndarray, one: Round, index: bytes, code: bytes, even: bytes) -> None:
    """Adds a round's weights to those of its step."""
    fields = bits_of(index, 16 if one.run.nonzeros == 8 else 4)
    words = int.from_bytes(code, "little"), int.from_bytes(even, "little")
    for r in ROWS:
        for slot in range(16):
            place = slot_of(one, slot, r, fields, words)
            if place is not None and place[0] < len(one.blocks):
                weights[r, (one.run.window * WINDOW + one.blocks[place[0]]) * 16 + place[1]] += place[2]


def slot_of(one: Round, slot: int, row: int, fields: list[int], words: tuple[int, int]) -> tuple | None:
    """(block of the round, input in it, weight) of a chain's slot; None for one that N = 1 leaves empty.

    fields: of the index beats; words: the round's code beats, and those of the latest even 3-bit round, which may be
    itself.
    """
    run, n = one.run, one.run.nonzeros
    block = slot // (max(n, 2) if n < 16 else 16)
    if n == 1 and slot != slot_at(run, row, block, 0):
        return None
    if n == 16:
        where = slot
    elif n == 8:
        where = mask_inputs(fields[block * 16 + row])[slot % 8]
    else:
        where = fields[index_at(run, row, slot)]
    places = code_bits(run, one.odd, row, slot)
    value = sum((words[n > 1 and i == 2 and run.bits == 3] >> at & 1) << i for i, at in enumerate(places))
    product = level(value, run.bits) * (1 if run.bits == 8 else run.scales[row])
    return block, where, (product + 128) % 256 - 128
