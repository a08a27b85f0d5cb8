"""The weight stream's encoder: int8 matrices and their block formats to the beats of every unit's channel.

The format is described in `hw/spec/weights.py`. `encode` and `beats` share the table of runs, so that layouts can be
made from a plan (precision and non-zeros of every block) before there are weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from hw.spec import weights as spec
from hw.spec.config import BEAT_BYTES, BLOCK, BLOCK_BEATS
from hw.spec.weights import (
    FILLER_BITS,
    HEADER_RUNS,
    LEAST_GROUP,
    MAX_SCALE,
    RUN_BYTES,
    WINDOW,
    ceil_div,
    round_blocks,
)
from ref_model.compress.format import BlockFormat, group_blocks

Array = np.ndarray
Headers = tuple[Array, Array]
"""Header beats of a stream: their places int64[n], ascending, and their bytes uint8[n, 64]."""
LOWEST = {8: -128, 4: -8, 3: -7, 2: -3}
HIGHEST = {8: 127, 4: 7, 3: 7, 2: 3}


def encode(
    weight: Array, fmt: BlockFormat | None, units: int, steps: int | None = None, grouped: bool | None = None
) -> Array:
    """int8[out, in] -> uint8[units, bytes]; fmt None: dense, 8 bits. steps: output-block steps (default: as needed).

    grouped: whether the steps come in groups of `hw.spec.weights.group_steps`; by default where blocks are sparse,
    which need it.
    """
    n_out, n_in = weight.shape
    steps = _steps(n_out, units, steps)
    if fmt is None and not grouped:
        return _encode_dense(weight, units, steps)
    fmt = fmt or dense_format((n_out, n_in))
    _check_shape((n_out, n_in), fmt.bits, fmt.nonzeros)
    runs = _runs((n_out, n_in), fmt.bits, fmt.nonzeros, units, steps, grouped)
    tensor = _Blocks(weight, fmt)
    out = np.zeros((units, int(runs.place(units).max()), BEAT_BYTES), np.uint8)
    tensor.check_runs(runs)
    _write_headers(out, runs, tensor)
    for bits, nonzeros in runs.classes():
        _write_rounds(out, runs, tensor, bits, nonzeros)
    return out.reshape(units, -1)


def beats(shape: tuple[int, int], bits: Array, nonzeros: Array, units: int, steps: int | None = None) -> int:
    """Beats of every unit's stream of a weight [out, in]; bits, nonzeros: uint8[out_blocks, in_blocks]."""
    return lengths(shape, (bits, nonzeros), units, steps)[0]


def dense_format(shape: tuple[int, int]) -> BlockFormat:
    """Whole blocks of 8 bits."""
    blocks = ceil_div(shape[0], BLOCK), ceil_div(shape[1], BLOCK)
    return BlockFormat(
        np.full(blocks, 8, np.uint8),
        np.full(blocks, BLOCK, np.uint8),
        np.zeros((blocks[0] * BLOCK, blocks[1]), np.int8),
    )


def lengths(
    shape: tuple[int, int],
    blocks: tuple[Array, Array] | None,
    units: int,
    steps: int | None = None,
    grouped: bool | None = None,
) -> tuple[int, int]:
    """Beats of every unit's stream, and beats of all units together that hold weights with their headers: without
    padding, fillers and absent output blocks.

    blocks: bits and non-zeros as `beats` takes them; None: dense, 8 bits. grouped: as `encode`.
    """
    steps = _steps(shape[0], units, steps)
    if blocks is None and grouped:
        blocks = dense_format(shape).bits, dense_format(shape).nonzeros
    if blocks is None:
        windows = spec.windows(shape[1])
        mine = np.bincount(np.arange(ceil_div(shape[0], BLOCK)) % units, minlength=units)
        held = mine * spec.input_blocks(shape[1]) * BLOCK_BEATS + -(-mine * windows // HEADER_RUNS)
        return dense_beats(shape, units, steps), int(held.sum())
    _check_shape(shape, *blocks)
    runs = _runs(shape, *blocks, units, steps, grouped)
    kept = np.flatnonzero(~runs.filler)
    headers_kept = -(-np.bincount(runs.unit[kept], minlength=units) // HEADER_RUNS)
    return int(runs.place(units).max()), runs.beats(kept) + int(headers_kept.sum())


def headers(
    shape: tuple[int, int],
    bits: Array | None,
    nonzeros: Array | None,
    units: int,
    steps: int | None = None,
    grouped: bool | None = None,
) -> list[Headers]:
    """Header beats of every unit's stream, scales left zero; bits None: dense, 8 bits. grouped: as `encode`.

    Units (all of them, when dense) whose streams are divided alike share one object.
    """
    steps = _steps(shape[0], units, steps)
    if bits is None or nonzeros is None:
        if not grouped:
            return [_dense_headers(shape[1], steps)] * units
        bits, nonzeros = dense_format(shape).bits, dense_format(shape).nonzeros
    _check_shape(shape, bits, nonzeros)
    runs = _runs(shape, bits, nonzeros, units, steps, grouped)
    length = runs.place(units)
    slots, found, known = _slots_of(runs), list[Headers](), dict[bytes, Headers]()
    bounds = np.searchsorted(runs.unit, np.arange(units + 1))
    for first, end, used in zip(bounds[:-1], bounds[1:], length, strict=True):
        opens = runs.slot[first:end] == 0
        beat = np.cumsum(opens) - 1
        # Padding is headers without runs.
        where = np.concatenate([runs.header[first:end][opens], np.arange(used, length.max())])
        beats = np.zeros((len(where), HEADER_RUNS, RUN_BYTES), np.uint8)
        beats[beat, runs.slot[first:end]] = slots[first:end]
        key = where.tobytes() + beats.tobytes()
        found.append(known.setdefault(key, (where, beats.reshape(-1, BEAT_BYTES))))
    return found


def dense_beats(shape: tuple[int, int], units: int, steps: int | None = None) -> int:
    """Beats of every unit's dense 8-bit stream."""
    return spec.stream_beats(_steps(shape[0], units, steps) * units * BLOCK, shape[1], units)


def _steps(n_out: int, units: int, steps: int | None) -> int:
    needed = spec.output_blocks(n_out, units)
    if steps is not None and steps < needed:
        raise ValueError(f"{n_out} outputs need {needed} steps of {units} units, there are {steps}")
    return needed if steps is None else steps


def _check_shape(shape: tuple[int, int], bits: Array, nonzeros: Array) -> None:
    blocks = (ceil_div(shape[0], BLOCK), ceil_div(shape[1], BLOCK))
    if bits.shape != blocks or nonzeros.shape != blocks:
        raise ValueError(f"a weight {shape} has {blocks} blocks, its format is for {bits.shape}")
    if spec.windows(shape[1]) > spec.MAX_WINDOWS:
        raise ValueError(f"{shape[1]} inputs are beyond {spec.MAX_WINDOWS} windows")
    for what, values, allowed in (("bits", bits, spec.BITS), ("non-zeros", nonzeros, (0, *spec.NONZEROS))):
        if not set(_values(values)) <= set(allowed):
            raise ValueError(f"a block's {what} must be one of {allowed}")
    if shape[1] % BLOCK and ((bits[:, -1] < 4) & (nonzeros[:, -1] > 0)).any():
        raise ValueError(f"{shape[1]} inputs are not whole blocks, and 2 and 3 bits have no zero to fill them up")


def _values(numbers: Array) -> list[int]:
    """The small non-negative numbers that occur, in ascending order."""
    return np.flatnonzero(np.bincount(numbers.reshape(-1))).tolist()


# --- dense ---------------------------------------------------------------------------------------------


def _encode_dense(weight: Array, units: int, steps: int) -> Array:
    """Every block, 8 bits: the windows of each step, four to a header."""
    n_out, n_in = weight.shape
    kb, windows = spec.input_blocks(n_in), spec.windows(n_in)
    if windows > spec.MAX_WINDOWS:
        raise ValueError(f"{n_in} inputs are beyond {spec.MAX_WINDOWS} windows")
    padded = np.zeros((steps * units * BLOCK, kb * BLOCK), np.int8)
    padded[:n_out, :n_in] = weight
    blocks = padded.reshape(steps, units, BLOCK, kb, BLOCK).transpose(1, 0, 3, 2, 4)
    body = np.ascontiguousarray(blocks).reshape(units, steps * kb, BLOCK_BEATS * BEAT_BYTES).view(np.uint8)
    out = np.zeros((units, dense_beats((n_out, n_in), units, steps), BEAT_BYTES), np.uint8)
    where, headers = _dense_headers(n_in, steps)
    out[:, where] = headers
    payload = np.ones(out.shape[1], bool)
    payload[where] = False
    out[:, payload] = body.reshape(units, -1, BEAT_BYTES)
    return out.reshape(units, -1)


@lru_cache(maxsize=64)
def _dense_headers(n_in: int, steps: int) -> Headers:
    """Of a dense stream: the windows of each step, four to a header."""
    kb, windows = spec.input_blocks(n_in), spec.windows(n_in)
    counts = [min(WINDOW, kb - w * WINDOW) for w in range(windows)]
    runs = b"".join(spec.Run(8, BLOCK, w, (1 << n) - 1, w == windows - 1).encode() for w, n in enumerate(counts))
    beats = np.zeros((ceil_div(steps * windows, HEADER_RUNS), BEAT_BYTES), np.uint8)
    beats.reshape(-1)[: steps * len(runs)] = np.tile(np.frombuffer(runs, np.uint8), steps)
    before = np.concatenate([[0], np.cumsum(np.tile(counts, steps))])[: steps * windows : HEADER_RUNS]
    return before * BLOCK_BEATS + np.arange(len(beats)), beats


# --- runs ----------------------------------------------------------------------------------------------

_PER_RUN = ("unit", "step", "window", "bits", "nonzeros", "mask", "filler", "order", "bundled")


@dataclass
class _Runs:
    """Runs of all units as parallel int64 arrays, in the order of the streams; `filler` runs hold no weights."""

    unit: Array
    step: Array
    window: Array
    bits: Array
    nonzeros: Array
    mask: Array
    filler: Array
    order: Array
    """Place among the bundles of a unit, kind, group and window (of single runs: of a step and window)."""
    bundled: Array
    """Whether the run is of a bundle of all steps of its group."""
    group_steps: int
    """Steps of a group, but for the last."""

    def __post_init__(self) -> None:
        self._sort()
        self.first, self.size = self._bundles()
        """The first run of every bundle, and how many it has."""
        self.bundle = np.repeat(np.arange(len(self.size)), self.size)
        """Number of the run's bundle."""
        self._count()

    @property
    def group(self) -> Array:
        return self.step // self.group_steps

    def _sort(self) -> None:
        """Sparse runs come first, window by window; runs of dense matrices step by step."""
        dense = self.nonzeros == BLOCK
        keys = [self.order, dense, self.window, self.step, self.unit]
        if self.group_steps > 1:
            single = np.where(self.bundled, 0, self.step)
            keys = [self.step, self.order, single, self.window, dense, self.group, self.unit]
        at = np.lexsort(keys)
        for name in _PER_RUN:
            setattr(self, name, getattr(self, name)[at])

    def _bundles(self) -> tuple[Array, Array]:
        same = [getattr(self, name) for name in ("unit", "group", "window", "order", "nonzeros", "mask")]
        goes_on = np.logical_and.reduce([self.bundled[1:], self.bundled[:-1], *(a[1:] == a[:-1] for a in same)])
        first = np.flatnonzero(np.concatenate([[True], ~goes_on]))
        return first, np.diff(np.append(first, len(self.unit)))

    @property
    def more(self) -> Array:
        """Whether the next run is of the same bundle."""
        return np.append(self.bundle[1:] == self.bundle[:-1], False)

    def rounds(self) -> Array:
        return -(-_POPCOUNT[self.mask] // (BLOCK // np.maximum(self.nonzeros, 2)))

    def classes(self) -> list[tuple[int, int]]:
        """The (bits, non-zeros) of runs that hold weights."""
        chosen = ~self.filler
        return [divmod(key, 32) for key in _values(self.bits[chosen] * 32 + self.nonzeros[chosen])]

    def _count(self) -> None:
        """Rounds of every bundle, in one table: where each begins in the payload, and where its high bits are."""
        patterns, which = self._patterns()
        lengths = np.array([len(pattern.start) for pattern in patterns])
        self.table = (np.cumsum(lengths) - lengths)[which]
        """Where the rounds of each bundle begin in `start`, `odd` and `plane`."""
        self.start, self.odd, self.plane = (
            np.concatenate([getattr(p, name) for p in patterns]) for name in ("start", "odd", "plane")
        )
        self.payload_beats = np.array([pattern.beats for pattern in patterns])[which]
        """Payload beats of every bundle."""

    def _patterns(self) -> tuple[list["Pattern"], Array]:
        """The patterns that occur, and which is each bundle's."""
        rounds, nonzeros = self.rounds()[self.first], self.nonzeros[self.first]
        if (self.size == 1).all():
            kinds, which = np.unique(np.stack([self.bits, nonzeros, rounds], 1), axis=0, return_inverse=True)
            return [_pattern(*kind) for kind in kinds.tolist()], which.reshape(-1)
        found, which_of = dict[tuple[int, ...], int](), list[int]()
        bits = self.bits.tolist()
        columns = (self.first, self.first + self.size, nonzeros, rounds)
        for first, end, *rest in zip(*(column.tolist() for column in columns), strict=True):
            which_of.append(found.setdefault((*bits[first:end], *rest), len(found)))
        return [_pattern(*key) for key in found], np.array(which_of)

    def round_at(self, run: Array, number: Array) -> Array:
        """Place in the table of rounds of the number-th round of each run."""
        bundle = self.bundle[run]
        return self.table[bundle] + number * self.size[bundle] + run - self.first[bundle]

    def every_round(self, kept: Array) -> tuple[Array, Array]:
        """(run, number of the round in the run) of all rounds of the runs with these numbers."""
        counts = self.rounds()[kept]
        run = np.repeat(kept, counts)
        return run, np.arange(len(run)) - np.repeat(np.cumsum(counts) - counts, counts)

    def beats(self, kept: Array) -> int:
        """Payload beats of the rounds of these runs."""
        run, number = self.every_round(kept)
        late = self.odd[self.round_at(run, number)].astype(np.int64)
        return int(_ROUND_BEATS[late, self.bits[run], self.nonzeros[run]].sum())

    def place(self, units: int) -> Array:
        """Gives every run its header beat, slot and payload; the beats of each unit's stream, int64[units].

        A bundle that does not fit into what is left of its header's beat begins a header.
        """
        owner = self.unit[self.first]
        bounds = np.searchsorted(owner, np.arange(units + 1)).tolist()
        header, payload, slot = (np.zeros(len(self.size), np.int64) for _ in range(3))
        length = np.zeros(units, np.int64)
        for unit, (begin, end) in enumerate(pairwise(bounds)):
            if begin == end:
                continue
            mine = slice(begin, end)
            opens, slot[mine] = _headers(self.size[mine])
            beats = self.payload_beats[mine]
            before = np.cumsum(beats) - beats
            which = np.cumsum(opens) - 1
            header_beats = -(-np.bincount(which, self.size[mine]).astype(np.int64) // HEADER_RUNS)
            behind = np.cumsum(header_beats)[which]
            header[mine] = before[opens][which] + behind - header_beats[which]
            payload[mine] = before + behind
            length[unit] = beats.sum() + header_beats.sum()
        number = slot[self.bundle] + np.arange(len(self.bundle)) - self.first[self.bundle]
        self.header, self.slot = header[self.bundle] + number // HEADER_RUNS, number % HEADER_RUNS
        self.payload = payload[self.bundle]
        """First payload beat of the run's bundle."""
        group = self.group[self.first]
        self.last = np.append((owner[1:] != owner[:-1]) | (group[1:] != group[:-1]), True)[self.bundle]
        return length


def _headers(sizes: Array) -> tuple[Array, Array]:
    """(which bundles begin a header, each one's first slot in its header) of a stream's bundles of these sizes."""
    number = np.arange(len(sizes))
    if (sizes == 1).all():
        return number % HEADER_RUNS == 0, number % HEADER_RUNS
    opens, slots, used = np.zeros(len(sizes), bool), np.zeros(len(sizes), np.int64), 0
    for i, size in enumerate(sizes.tolist()):
        if used % HEADER_RUNS == 0 or used % HEADER_RUNS + size > HEADER_RUNS:
            opens[i], used = True, 0
        slots[i] = used
        used += size
    return opens, slots


class Pattern(NamedTuple):
    """A bundle's rounds in the order of the stream."""

    beats: int
    """Payload beats of all."""
    start: Array
    """First beat of each."""
    odd: Array
    """Whether the high bits of its 3-bit codes come with a round before."""
    plane: Array
    """The beat that holds them."""


@cache
def _pattern(*key: int) -> Pattern:
    """key: the precisions of the bundle's runs, then their non-zeros and their rounds."""
    *bits, nonzeros, parts = key
    start, odds, planes, at, odd, plane = [], [], [], 0, 0, 0
    for width in bits * parts:
        if not odd:
            plane = at + spec.index_beats(nonzeros) + 1
        start.append(at)
        odds.append(odd)
        planes.append(plane)
        at += spec.round_beats(width, nonzeros, odd)
        odd = spec.next_odd(width, odd)
    return Pattern(at, np.array(start, np.int64), np.array(odds, bool), np.array(planes, np.int64))


_POPCOUNT = np.array([i.bit_count() for i in range(256)], np.int64)
_PRESENT = np.array([([b for b in range(8) if i >> b & 1] + [-1] * 8)[:8] for i in range(256)], np.int64)
"""The blocks of a run's mask in ascending order, then -1: int64[256, 8]."""
_ROUND_BEATS = np.zeros((2, 9, BLOCK + 1), np.int64)
"""`round_beats` of [odd, bits, non-zeros]."""
for _odd in range(2):
    for _bits in spec.BITS:
        for _nonzeros in spec.NONZEROS:
            _ROUND_BEATS[_odd, _bits, _nonzeros] = spec.round_beats(_bits, _nonzeros, _odd)


def group_of(nonzeros: Array | None, steps: int) -> int:
    """Steps of a group of a weight's stream, the MX field `group`: 1 if none of its blocks is sparse.

    nonzeros: uint8[out_blocks, in_blocks], or None: dense, 8 bits.
    """
    sparse = nonzeros is not None and bool(((nonzeros > 0) & (nonzeros < BLOCK)).any())
    return spec.group_steps(steps) if sparse else 1


def _by_class(bits: Array, nonzeros: Array) -> Iterator[tuple[int, int, Array]]:
    """(bits, non-zeros, mask): the possible runs of each (output block, window), from [blocks, windows, 8]."""
    keys = bits.astype(np.uint16) * 32 + nonzeros
    for key in _values(keys):
        width, n = divmod(key, 32)
        if not n:
            continue
        group = group_blocks(width, n)
        whole = np.packbits(keys == key, axis=-1, bitorder="little")[..., 0]
        for start in range(0, WINDOW, group):
            yield width, n, (whole & ((1 << group) - 1 << start & 0xFF)).astype(np.int64)


def _runs(shape: tuple[int, int], bits: Array, nonzeros: Array, units: int, steps: int, grouped: bool | None) -> _Runs:
    """The runs of every unit, fillers included."""
    windows, size = spec.windows(shape[1]), spec.group_steps(steps) if grouped else group_of(nonzeros, steps)
    padded = [np.zeros((steps * units, windows * WINDOW), np.uint8) for _ in range(2)]
    for target, values in zip(padded, (bits, nonzeros), strict=True):
        target[: values.shape[0], : values.shape[1]] = values
    found, sparse = list[tuple](), list[tuple[int, int, Array]]()
    dense = np.zeros((steps, units, windows), np.int64)
    for order, (width, n, masks) in enumerate(_by_class(*(p.reshape(-1, windows, WINDOW) for p in padded))):
        masks = masks.reshape(dense.shape)
        if n < BLOCK:
            sparse.append((width, n, masks))
        else:
            step, unit, window = np.nonzero(masks)
            found.append((unit, step, window, width, n, masks[step, unit, window], False, order, False))
            dense += _POPCOUNT[masks]
    found += _dense_fillers(dense) + _sparse_runs(sparse, size, dense)
    columns = zip(*(np.broadcast_arrays(*run) for run in found), strict=True)
    return _Runs(**dict(zip(_PER_RUN, map(np.concatenate, columns), strict=True)), group_steps=size)


def _dense_fillers(rounds: Array) -> list[tuple]:
    """Runs that bring every unit to the dense rounds of the busiest one; rounds: [step, unit, window]."""
    missing = rounds.max(axis=1, keepdims=True) - rounds
    step, unit, window = np.nonzero(missing)
    masks = (1 << missing[step, unit, window]) - 1
    return [(unit, step, window, FILLER_BITS, BLOCK, masks, True, _LATE, False)]


_LATE = 1 << 8
"""Order of fillers: behind all runs."""


def _sparse_runs(sparse: list[tuple[int, int, Array]], size: int, dense: Array) -> list[tuple]:
    """The sparse runs, and fillers that give every unit as many batches as the busiest one.

    sparse: (bits, non-zeros, masks int64[steps, units, windows]); size: steps of a group; dense: rounds, int64[steps,
    units, windows]. Where in every unit all steps of a group have the same blocks with the same non-zeros in a window,
    the runs are bundles of all steps; a step in which a unit has no output block is filled in. Elsewhere each run is a
    bundle by itself. A step without any round gets a filler.
    """
    steps, units, windows = dense.shape
    firsts = np.arange(0, steps, size)
    group = np.arange(steps) // size
    classes = [_sorted_masks(sparse, n, dense.shape) for n in sorted({n for _, n, _ in sparse})]
    aligned: Array = np.ones((len(firsts), windows), bool)
    for _, _, masks in classes:
        most = np.maximum.reduceat(masks, firsts, axis=1)[:, group]
        absent = ~np.any([m.any(axis=0) for _, _, m in classes], axis=0)  # no output block
        alike = ((masks == most) | absent).all(axis=(0, 2))
        aligned &= np.logical_and.reduceat(alike, firsts, axis=0)
    found, order = list[tuple](), 0
    batches = np.zeros((len(firsts), units, windows), np.int64)
    singles = np.zeros_like(dense)
    for n, widths, masks in classes:
        for width, mask in zip(widths, masks, strict=True):
            of_group = np.maximum.reduceat(mask, firsts, axis=0) * aligned[:, None]
            batches += -(-_POPCOUNT[of_group] // round_blocks(n))
            step, unit, window = np.nonzero(of_group[group])
            there = mask[step, unit, window] > 0
            bits = np.where(there, width[step, unit, window], FILLER_BITS)
            found.append((unit, step, window, bits, n, of_group[group[step], unit, window], ~there, order, True))
            alone = mask * ~aligned[group][:, None]
            singles += -(-_POPCOUNT[alone] // round_blocks(n))
            step, unit, window = np.nonzero(alone)
            bits = width[step, unit, window]
            found.append((unit, step, window, bits, n, alone[step, unit, window], False, order, False))
            order += 1
    return found + _sparse_fillers(batches, singles, group, dense)


def _sorted_masks(sparse: list[tuple[int, int, Array]], n: int, shape: tuple[int, ...]) -> tuple[int, Array, Array]:
    """(n, precisions, masks) of the runs with n non-zeros, int64[precisions, steps, units, windows]: the largest mask
    first, so that steps can be compared whatever their precisions are."""
    chosen = [(width, masks) for width, non_zeros, masks in sparse if non_zeros == n]
    masks = np.stack([masks for _, masks in chosen])
    widths = np.broadcast_to(np.array([width for width, _ in chosen])[:, None, None, None], masks.shape)
    at = np.argsort(-masks, axis=0, kind="stable")
    return n, np.take_along_axis(widths, at, 0), np.take_along_axis(masks, at, 0)


def _sparse_fillers(batches: Array, singles: Array, group: Array, dense: Array) -> list[tuple]:
    """Runs of one round of N = 1 that bring every unit to the batches of the busiest one, of all steps of a group
    (batches: int64[groups, units, windows]) and of a step (singles: int64[steps, units, windows])."""
    wanted = singles.max(axis=1)
    groups_work: Array = np.asarray(batches.any(axis=(1, 2)))
    idle = ~(dense.any(axis=(1, 2)) | groups_work[group] | wanted.any(axis=1))
    wanted[idle, 0] = 1
    missing = wanted[:, None] - singles
    of_group = (batches.max(axis=1, keepdims=True) - batches)[group]
    found = list[tuple]()
    for short, bundled in ((missing, False), (of_group, True)):
        for number in range(int(short.max(initial=0))):
            step, unit, window = np.nonzero(short > number)
            found.append((unit, step, window, FILLER_BITS, 1, 1, True, _LATE + number, bundled))
    return found


# --- weights -------------------------------------------------------------------------------------------


class _Blocks:
    """A weight in blocks with its scales, checked as it is read."""

    def __init__(self, weight: Array, fmt: BlockFormat) -> None:
        n_out, n_in = weight.shape
        ob, kb = fmt.bits.shape
        padded = np.zeros((ob * BLOCK, kb * BLOCK), np.int8)
        padded[:n_out, :n_in] = weight
        self.values = np.ascontiguousarray(padded.reshape(ob, BLOCK, kb, BLOCK).transpose(0, 2, 1, 3))
        """int8[out_blocks, in_blocks, 16 rows, 16 inputs]"""
        scales = np.zeros((ob * BLOCK, kb), np.int8)
        scales[:n_out] = fmt.scales[:n_out]
        self.scales = np.ascontiguousarray(scales.reshape(ob, BLOCK, kb).transpose(0, 2, 1))
        """int8[out_blocks, in_blocks, 16 rows]"""
        limit = np.array([MAX_SCALE.get(b, 127) for b in range(9)])[fmt.bits]
        used = (fmt.nonzeros > 0) & (fmt.bits < 8)
        wrong = used & (np.abs(self.scales.astype(np.int16)).max(axis=2) > limit)
        self.refuse(wrong, "a scale beyond its precision's largest")
        left_out = (fmt.nonzeros == 0) & self.values.any(axis=(2, 3))
        self.refuse(left_out, "weights, and its format says it is empty")

    @staticmethod
    def refuse(wrong: Array, what: str) -> None:
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise ValueError(f"block ({row}, {column}) has {what}")

    def check_runs(self, runs: _Runs) -> None:
        """The blocks of a run have the same scales."""
        kept = np.nonzero(~runs.filler & (runs.bits < 8))[0]
        units = int(runs.unit.max()) + 1
        present = _PRESENT[runs.mask[kept]]
        ob, base = runs.step[kept] * units + runs.unit[kept], runs.window[kept] * WINDOW
        first = self.scales[ob, base + present[:, 0]]
        for place in range(1, WINDOW):
            there = present[:, place] >= 0
            same = (self.scales[ob[there], (base + present[:, place])[there]] == first[there]).all(axis=1)
            if not same.all():
                at = np.nonzero(there)[0][~same][0]
                raise ValueError(f"block ({ob[at]}, {base[at] + present[at, place]}) has other scales than its run")

    def codes(self, ob: Array, kb: Array, bits: int, nonzeros: int) -> tuple[Array, Array]:
        """(codes uint8[n, 16 rows, N], their inputs uint8[n, 16, N]) of the blocks (ob, kb) [n]."""
        values = self.values[ob, kb]
        if nonzeros < BLOCK:
            inputs, real = _slots(values, nonzeros, ob, kb)
            values = np.take_along_axis(values, inputs.astype(np.intp), axis=2)
        else:
            inputs, real = np.empty((0,), np.uint8), values != 0
        if bits == 8:
            return values.view(np.uint8), inputs
        scales = self.scales[ob, kb][:, :, None]
        levels = values // np.where(scales, scales, 1)
        bad = (levels * scales != values) | (levels < LOWEST[bits]) | (levels > HIGHEST[bits])
        if bits < 4:
            bad |= (scales != 0) & ~(real & (levels & 1).astype(bool))
        if bad.any():
            at = np.argwhere(bad.any(axis=(1, 2)))[0, 0]
            raise ValueError(
                f"block ({ob[at]}, {kb[at]}) has weights that are no {bits}-bit level times its scales"
                + (f", or a row without {nonzeros} non-zeros" if bits < 4 else "")
            )
        if bits == 4:
            return (levels & 15).astype(np.uint8), inputs
        return np.where(scales != 0, levels >> 1 & (1 << bits) - 1, 0).astype(np.uint8), inputs


@lru_cache(maxsize=4)
def _slot_table(nonzeros: int) -> Array:
    """The N inputs of every row mask of at most N bits, filled up with the lowest free ones: uint8[65536, N]."""
    places = np.arange(BLOCK)
    bits = (np.arange(1 << BLOCK)[:, None] >> places & 1).astype(bool)
    chosen = np.sort(np.argsort(~bits, axis=1, kind="stable")[:, :nonzeros], axis=1)
    return chosen.astype(np.uint8)


def _slots(values: Array, nonzeros: int, ob: Array, kb: Array) -> tuple[Array, Array]:
    """(inputs uint8[n, 16, N] of every row's slots, which of them are non-zero); values: int8[n, 16, 16]."""
    packed = np.packbits(values != 0, axis=2, bitorder="little").view(np.uint16)[..., 0]
    over = (np.bitwise_count(packed) > nonzeros).any(axis=1)
    if over.any():
        at = np.nonzero(over)[0][0]
        raise ValueError(f"block ({ob[at]}, {kb[at]}) has a row with more than {nonzeros} non-zeros")
    inputs = _slot_table(nonzeros)[packed]
    return inputs, np.take_along_axis(values, inputs.astype(np.intp), axis=2) != 0


# --- beats ---------------------------------------------------------------------------------------------


def _write_headers(out: Array, runs: _Runs, tensor: _Blocks) -> None:
    units, slots = out.shape[0], _slots_of(runs)
    scaled = ~runs.filler & (runs.bits < 8)
    first = runs.window[scaled] * WINDOW + _PRESENT[runs.mask[scaled], 0]
    scales = tensor.scales[runs.step[scaled] * units + runs.unit[scaled], first]
    slots[scaled, 4:] = _packed(scales.view(np.uint8), spec.SCALE_BITS)
    out.reshape(units, -1, HEADER_RUNS, RUN_BYTES)[runs.unit, runs.header, runs.slot] = slots


def _slots_of(runs: _Runs) -> Array:
    """Descriptors with zero scales: uint8[runs, 16]."""
    fields = {
        "magic": np.int64(spec.RUN_MAGIC),
        "bits": _index(spec.BITS)[runs.bits],
        "nonzeros": _index(spec.NONZEROS)[runs.nonzeros],
        "last": runs.last.astype(np.int64),
        "window": runs.window,
        "blocks": runs.mask,
        "step": runs.step % runs.group_steps,
        "more": runs.more.astype(np.int64),
    }
    word, at = np.zeros(len(runs.unit), np.int64), 0
    for name, width in spec.RUN_FIELDS:
        word |= fields[name] << at
        at += width
    slots = np.zeros((len(word), RUN_BYTES), np.uint8)
    slots[:, :4] = word.astype("<u4").view(np.uint8).reshape(-1, 4)
    return slots


def _index(values: tuple[int, ...]) -> Array:
    """Value -> place in the tuple, as an array."""
    out = np.zeros(max(values) + 1, np.int64)
    out[list(values)] = np.arange(len(values))
    return out


def _packed(values: Array, width: int) -> Array:
    """uint8[n, m] -> uint8[n, m * width / 8]: the low `width` bits of each, little endian."""
    if width == 4:
        return (values[:, ::2] & 15) | values[:, 1::2] << 4
    bits = values[:, :, None] >> np.arange(width, dtype=np.uint8) & 1
    return np.packbits(bits.reshape(len(values), values.shape[1] * width), axis=1, bitorder="little")


def _write_rounds(out: Array, runs: _Runs, tensor: _Blocks, bits: int, nonzeros: int) -> None:
    """Payload of the runs of one class; everything else of `out` stays."""
    chosen = np.flatnonzero((runs.bits == bits) & (runs.nonzeros == nonzeros) & ~runs.filler)
    run, number = runs.every_round(chosen)
    place = runs.round_at(run, number)
    size = round_blocks(nonzeros)
    present = _PRESENT[runs.mask[run][:, None], number[:, None] * size + np.arange(size)]
    for part in np.array_split(np.arange(len(run)), max(1, len(run) * size >> 16)):
        block, code, inputs = _gather(runs, tensor, run[part], present[part], bits, nonzeros, out.shape[0])
        unit, payload = runs.unit[run[part]], runs.payload[run[part]]
        at, plane = payload + runs.start[place[part]], payload + runs.plane[place[part]]
        _write_indices(out, unit, at, inputs, block, nonzeros)
        at += spec.index_beats(nonzeros)
        _write_codes(out, unit, at, code, plane, runs.odd[place[part]], bits, nonzeros)


def _gather(
    runs: _Runs, tensor: _Blocks, run: Array, present: Array, bits: int, nonzeros: int, units: int
) -> tuple[Array, Array, Array]:
    """(which blocks there are bool[n, B], codes uint8[n, 16 rows, B, N], inputs likewise) of n rounds of B blocks."""
    there = present >= 0
    n, size = there.shape
    ob = np.repeat(runs.step[run] * units + runs.unit[run], size).reshape(n, size)
    kb = runs.window[run][:, None] * WINDOW + present
    code, inputs = tensor.codes(ob[there], kb[there], bits, nonzeros)
    if nonzeros == BLOCK:
        return there, code[:, :, None], inputs
    full = np.zeros((2, n, size, BLOCK, nonzeros), np.uint8)
    full[0][there], full[1][there] = code, inputs
    codes, places = full.transpose(0, 1, 3, 2, 4)
    return there, codes, places


def _write_indices(out: Array, unit: Array, at: Array, inputs: Array, there: Array, nonzeros: int) -> None:
    """Index beats: masks for N = 8, nibbles below."""
    n = len(at)
    if nonzeros == BLOCK:
        return
    if nonzeros == 8:
        masks = np.bitwise_or.reduce(np.uint16(1) << inputs.astype(np.uint16), axis=3)  # [n, rows, 2]
        masks = np.where(there[:, None, :], masks, 0).transpose(0, 2, 1)
        out[unit, at] = np.ascontiguousarray(masks, "<u2").view(np.uint8).reshape(n, BEAT_BYTES)
        return
    halves = _in_slots(inputs, nonzeros).reshape(n, BLOCK, 2, BLOCK // 2).transpose(2, 0, 1, 3)
    if nonzeros == 1:
        halves = halves[:1] | halves[1:]
    for i, half in enumerate(halves):
        out[unit, at + i] = _packed(half.reshape(n, -1), 4)


def _write_codes(
    out: Array, unit: Array, at: Array, code: Array, plane: Array, odd: Array, bits: int, nonzeros: int
) -> None:
    """Code beats from `at` on; code: uint8[n, 16 rows, blocks, N]; plane, odd: where 3-bit codes' high bits lie."""
    quarters = _in_slots(code, nonzeros).reshape(len(at), spec.QUARTERS, BEAT_BYTES).transpose(1, 0, 2)
    beats: dict[int, Array] = {}
    for quarter, codes in enumerate(quarters):
        beat = spec.code_beat(bits, nonzeros, quarter)
        bytes_ = _code_bytes(bits, quarter)[codes]
        beats[beat] = beats[beat] | bytes_ if beat in beats else bytes_
    if bits == 3:
        shifts = np.array(spec.HIGH_BITS, np.uint8)[:, None, None]
        high = np.bitwise_or.reduce(quarters >> 2 << shifts, axis=0)
        if nonzeros == 1:
            beats[0] |= high
        else:
            out[unit[~odd], plane[~odd]] |= high[~odd]
            out[unit[odd], plane[odd]] |= high[odd] << 4
    for beat, bytes_ in beats.items():
        out[unit, at + beat] = bytes_


def _in_slots(values: Array, nonzeros: int) -> Array:
    """[n, 16 rows, blocks, N] -> [n, 16 rows, 16 slots], zero where a slot is empty."""
    if nonzeros > 1:
        return values.reshape(len(values), BLOCK, BLOCK)
    out = np.zeros((len(values), BLOCK, BLOCK), np.uint8)
    out[:, np.arange(BLOCK)[:, None], _SINGLE_SLOTS] = values[..., 0]
    return out


_SINGLE_SLOTS = np.array([[spec.single_slot(row, block) for block in range(WINDOW)] for row in range(BLOCK)])


@cache
def _code_bytes(bits: int, quarter: int) -> Array:
    """What every code adds to its byte of a code beat: uint8[codes]."""
    return np.array([spec.code_byte(code, bits, quarter) for code in range(1 << bits)], np.uint8)


__all__ = ["LEAST_GROUP", "Headers", "beats", "dense_beats", "dense_format", "encode", "group_of", "headers"]
