"""Weight streams read back (`hw.spec.weights`): when their rounds are complete, and the weights they hold.

Timing needs headers only, so `walk` touches no payload; weights are decoded by `add_weights`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from hw.spec.config import BEAT_BYTES, BLOCK
from hw.spec.errors import InternalError
from hw.spec.weights import (
    BITS,
    HEADER_RUNS,
    HIGH_BITS,
    MAX_BUNDLE,
    NONZEROS,
    QUARTERS,
    ROWS_A_QUARTER,
    RUN_BYTES,
    RUN_FIELDS,
    RUN_MAGIC,
    SCALE_BASE,
    SCALE_BITS,
    SHARED_FIELDS,
    WINDOW,
    code_beat,
    code_byte,
    index_beats,
    level,
    mask_inputs,
    next_odd,
    round_beats,
    round_blocks,
    single_slot,
)
from sim.compiled import njit
from sim.memory_image import MemoryImage

SPARSE, LAST, MORE, STEP_SHIFT, WINDOW_SHIFT = 1, 2, 4, 3, 7
"""A round's info: window << WINDOW_SHIFT | step of its group << STEP_SHIFT | MORE if the next one is of its batch |
LAST if its batch ends a group | SPARSE if N < 16."""
STEP_MASK = MAX_BUNDLE - 1
# Columns of a table of runs. PAYLOAD: the bundle's; BUNDLE: its runs from this one on; GROUP: the group's first step.
PAYLOAD, ROUND, GROUP, STEP, RUN_BITS, RUN_N, RUN_WINDOW, RUN_BLOCKS, HEADER, SLOT, BUNDLE, COLUMNS = range(12)
_OK, _NO_RUN, _CUT, _ABSENT = range(4)
_AT = {name: sum(w for _, w in RUN_FIELDS[:i]) for i, (name, _) in enumerate(RUN_FIELDS)}
_MASK = {name: (1 << width) - 1 for name, width in RUN_FIELDS}
_MAGIC_AT, _BITS_AT, _N_AT, _LAST_AT, _WINDOW_AT, _BLOCKS_AT, _STEP_AT, _MORE_AT = _AT.values()
_MAGIC_MASK, _BITS_MASK, _N_MASK, _LAST_MASK, _WINDOW_MASK, _BLOCKS_MASK, _STEP_MASK, _MORE_MASK = _MASK.values()
_SHARED = sum(_MASK[name] << _AT[name] for name in SHARED_FIELDS)
_ROUND_BEATS = np.array([[[round_beats(b, n, i) for i in (0, 1)] for n in NONZEROS] for b in BITS])
"""[precision, N, odd]"""
_NEXT_ODD = np.array([[next_odd(b, i) for i in (0, 1)] for b in BITS])
_ROUND_BLOCKS = np.array([round_blocks(n) for n in NONZEROS])
_INDEX_BEATS = np.array([index_beats(n) for n in NONZEROS])
_BIT_COUNTS = np.array(BITS)
_NONZERO_COUNTS = np.array(NONZEROS)
_CODE_BEAT = np.array([[[code_beat(b, n, q) for q in range(QUARTERS)] for n in NONZEROS] for b in BITS])
_HIGH_BITS = np.array(HIGH_BITS)
_SINGLE_SLOTS = np.array([[single_slot(row, block) for block in range(WINDOW)] for row in range(BLOCK)])
_INSIDE = SCALE_BASE // 8
_HALF_SCALE = 1 << SCALE_BITS - 1


@dataclass(frozen=True)
class Plan:
    """One unit's rounds. ends: int32[rounds], the beat that completes each; info: uint16[rounds].

    bad: the header beat of which a slot is no run, or -1; nothing behind it is told. missing: beats that the round
    lacks in which the stream ends, or 0.
    """

    ends: np.ndarray
    info: np.ndarray
    bad: int = -1
    missing: int = 0


@dataclass(frozen=True)
class Plans:
    """All units' rounds of one RD, unit after unit; a single plan when all are equal (`same`)."""

    units: Sequence[Plan]
    same: bool
    agree: int
    """Leading rounds of equal info in all units."""
    ends: np.ndarray
    info: np.ndarray
    bounds: np.ndarray
    """Where each held unit's rounds start in `ends` and `info`, and the end: int64[len(units) + 1]."""
    group_ends: np.ndarray
    """The rounds that end a group (unit 0): int64[groups]."""

    @property
    def n_rounds(self) -> int:
        """Rounds of the unit that has most."""
        return max(len(plan.ends) for plan in self.units)

    def of(self, unit: int) -> Plan:
        return self.units[0 if self.same else unit]

    def all(self, units: int) -> list[Plan]:
        """Every unit's."""
        return [self.of(unit) for unit in range(units)]

    def last_beat(self, unit: int, number: int, n_beats: int) -> int:
        """The beat that completes a unit's round; n_beats - 1 where it has no such round."""
        ends = self.of(unit).ends
        return int(ends[number]) if number < len(ends) else n_beats - 1


@njit
def _descriptor(beats, header, slot):
    """The first four bytes of a slot, or -1 for an all-zero slot."""
    word = np.int64(0)
    for i in range(4):
        word |= np.int64(beats[header, slot * RUN_BYTES + i]) << 8 * i
    for i in range(RUN_BYTES):
        if beats[header, slot * RUN_BYTES + i]:
            return word
    return -1


@njit
def _valid(word, before):
    """Whether a slot is a run that may stand behind the run `before` of the same bundle, or begin one (-1)."""
    n = word >> _N_AT & _N_MASK
    more = word >> _MORE_AT & _MORE_MASK
    if word < 0 or word >> _MAGIC_AT & _MAGIC_MASK != RUN_MAGIC or word >> _BLOCKS_AT & _BLOCKS_MASK == 0:
        return False
    if n >= len(_NONZERO_COUNTS) or (more and n == 0):
        return False
    return before < 0 or (
        word & _SHARED == before & _SHARED and word >> _STEP_AT & _STEP_MASK > before >> _STEP_AT & _STEP_MASK
    )


@njit
def _bundle(words, n_runs, at, rounds, ends, info, n_beats):
    """Notes the rounds of a bundle, from beat `at` on: (beat behind them, rounds so far)."""
    word = words[0]
    n, window = word >> _N_AT & _N_MASK, word >> _WINDOW_AT & _WINDOW_MASK
    present = odd = 0
    for i in range(WINDOW):
        present += word >> _BLOCKS_AT + i & 1
    parts = (present + _ROUND_BLOCKS[n] - 1) // _ROUND_BLOCKS[n]
    for part in range(parts):
        for run in range(n_runs):
            bits = words[run] >> _BITS_AT & _BITS_MASK
            at += _ROUND_BEATS[bits, n, odd]
            if at > n_beats:
                return at, rounds
            odd = _NEXT_ODD[bits, odd]
            ends[rounds] = at - 1
            info[rounds] = (
                window << WINDOW_SHIFT
                | (words[run] >> _STEP_AT & _STEP_MASK) << STEP_SHIFT
                | (SPARSE if n else 0)
                | (MORE if run < n_runs - 1 else 0)
                | (LAST if part == parts - 1 and word >> _LAST_AT & _LAST_MASK else 0)
            )
            rounds += 1
    return at, rounds


@njit
def _walk(beats, positions, n_beats, ends, info, runs):
    """Follows the headers: (rounds, runs, result, beat, missing beats). beats[i] is beat positions[i], or i without
    positions."""
    at = rounds = n_runs = step = steps = known = 0
    words = np.zeros(MAX_BUNDLE, np.int64)
    header, slots = np.zeros(MAX_BUNDLE, np.int64), np.zeros(MAX_BUNDLE, np.int64)
    while at < n_beats:
        # The header: its slots, up to the end.
        n, going = 0, True
        began = at
        while going:
            if at == n_beats:
                return rounds, n_runs, _CUT, began, 2
            row = at
            if len(positions):
                while known < len(positions) and positions[known] < at:
                    known += 1
                if known == len(positions) or positions[known] != at:
                    return rounds, n_runs, _ABSENT, at, 0
                row = known
            for slot in range(HEADER_RUNS):
                word = _descriptor(beats, row, slot)
                open_ = n > 0 and words[n - 1] >> _MORE_AT & _MORE_MASK
                if word < 0 and not open_:
                    going = False
                    break
                if not _valid(word, words[n - 1] if open_ else -1) or (
                    n == MAX_BUNDLE - 1 and word >> _MORE_AT & _MORE_MASK
                ):
                    return rounds, n_runs, _NO_RUN, at, 0
                words[n], header[n], slots[n] = word, row, slot
                n += 1
            going = going and n > 0 and words[n - 1] >> _MORE_AT & _MORE_MASK > 0
            at += 1
        first = 0
        for last in range(n):
            if words[last] >> _MORE_AT & _MORE_MASK:
                continue
            size = last - first + 1
            for i in range(first, last + 1):
                word = words[i]
                place = word >> _STEP_AT & _STEP_MASK
                runs[n_runs, PAYLOAD], runs[n_runs, ROUND] = at, rounds + i - first
                runs[n_runs, GROUP], runs[n_runs, STEP] = step, step + place
                runs[n_runs, RUN_BITS] = word >> _BITS_AT & _BITS_MASK
                runs[n_runs, RUN_N] = word >> _N_AT & _N_MASK
                runs[n_runs, RUN_WINDOW] = word >> _WINDOW_AT & _WINDOW_MASK
                runs[n_runs, RUN_BLOCKS] = word >> _BLOCKS_AT & _BLOCKS_MASK
                runs[n_runs, HEADER], runs[n_runs, SLOT] = header[i], slots[i]
                runs[n_runs, BUNDLE] = last - i + 1
                steps = max(steps, place + 1)
                n_runs += 1
            at, rounds = _bundle(words[first : last + 1], size, at, rounds, ends, info, n_beats)
            if at > n_beats:
                return rounds, n_runs, _CUT, began, at - n_beats
            if words[last] >> _LAST_AT & _LAST_MASK:
                step += steps
                steps = 0
            first = last + 1
    return rounds, n_runs, _OK, at, 0


def walk(beats: np.ndarray, positions: np.ndarray | None = None, n_beats: int | None = None) -> tuple[Plan, np.ndarray]:
    """The rounds and the table of runs (int32[runs, COLUMNS]) of a stream: uint8[beats, 64].

    With positions (int64[headers]) beats holds the header beats only, found at those positions of n_beats.
    ValueError for a slot that is no run and for a stream that ends inside a run.
    """
    plan, runs = follow(beats, positions, n_beats)
    if plan.bad >= 0:
        raise ValueError(f"beat {plan.bad} of a stream is no header: a slot of it is no run")
    if plan.missing:
        raise ValueError(f"a stream of {n_beats or len(beats)} beats ends inside a run")
    return plan, runs


def follow(
    beats: np.ndarray, positions: np.ndarray | None = None, n_beats: int | None = None
) -> tuple[Plan, np.ndarray]:
    """As `walk`, for any beats: what is wrong with them stands in the plan."""
    n_beats = len(beats) if n_beats is None else n_beats
    if positions is not None and not len(positions):
        raise InternalError(f"the headers of a stream of {n_beats} beats are absent: timing needs every header")
    where = np.zeros(0, np.int64) if positions is None else positions
    ends, info = np.empty(n_beats, np.int32), np.empty(n_beats, np.uint16)
    slots = HEADER_RUNS * min(len(beats), n_beats)
    runs = np.empty((min(slots, n_beats + HEADER_RUNS), COLUMNS), np.int32)
    rounds, n_runs, result, at, missing = _walk(beats, where, n_beats, ends, info, runs)
    if result == _ABSENT:
        raise InternalError(f"the header at beat {at} of a stream is absent: timing needs every header")
    bad = at if result == _NO_RUN else -1
    return Plan(ends[:rounds].copy(), info[:rounds].copy(), bad, missing), runs[:n_runs].copy()


Segment = tuple[int, int]
"""(beat address, beats) of beats that lie side by side."""


def plans(memory: MemoryImage, segments: list[Segment]) -> Plans:
    """The plans of all units for the beats of these segments, in order; kept while nobody writes there."""
    units = range(memory.config.units)
    clean = all(memory.ports[u].clean_region(a * BEAT_BYTES, n * BEAT_BYTES) for u in units for a, n in segments)
    key = tuple(segments)
    if clean and key in memory.plans:
        return memory.plans[key]
    if len(segments) > 1 and len(set(segments)) == 1:
        found = _repeated(plans(memory, segments[:1]), len(units), segments[0][1], len(segments))
        if found is not None:
            if clean:
                memory.plans[key] = found
            return found
    n_beats = sum(n for _, n in segments)
    alike = _shared_headers(memory, segments) if clean else None
    if alike is None:
        found = _together([follow(*header_beats(memory, u, segments), n_beats)[0] for u in units])
    elif ("alike", n_beats, *alike) in memory.plans:
        found = memory.plans["alike", n_beats, *alike]
    else:
        first = {which: unit for unit, which in reversed(list(enumerate(alike[:-1])))}
        walked = {which: follow(*header_beats(memory, unit, segments), n_beats)[0] for which, unit in first.items()}
        found = memory.plans["alike", n_beats, *alike] = _together([walked[which] for which in alike[:-1]])
    if clean:
        memory.plans[key] = found
    return found


def _repeated(once: Plans, units: int, n_beats: int, times: int) -> Plans | None:
    """The plans of a stream that is read several times; None where its end does not end a run of every unit."""
    if any(plan.bad >= 0 or plan.missing for plan in once.units):
        return None
    shift = (np.arange(times, dtype=np.int32) * n_beats)[:, None]
    return _together(
        [Plan((plan.ends + shift).reshape(-1), np.tile(plan.info, times), -1, 0) for plan in once.all(units)]
    )


def _shared_headers(memory: MemoryImage, segments: list[Segment]) -> list[int] | None:
    """What identifies the headers of every unit's stream, where the stream is (a part of) one absent region in each;
    behind them the part's place."""
    if len(segments) != 1:
        return None
    start, n_bytes = (beats * BEAT_BYTES for beats in segments[0])
    found, places = [], set[int]()
    for port in memory.ports[: memory.config.units]:
        region = port.region_at(start)
        if region is None or region.headers is None or start + n_bytes > region.end:
            return None
        found.append(id(region.headers))
        places.add(start - region.start)
    return [*found, *places] if len(places) == 1 else None


def header_beats(memory: MemoryImage, unit: int, segments: list[Segment]) -> tuple[np.ndarray, np.ndarray | None]:
    """(beats, positions) for `walk`: the whole stream, or its headers where an image for timing holds no more."""
    parts = [memory.ports[unit].header_beats(a * BEAT_BYTES, n * BEAT_BYTES) for a, n in segments]
    if not parts:
        return np.zeros((0, BEAT_BYTES), np.uint8), None
    beats = parts[0][0] if len(parts) == 1 else np.concatenate([data for data, _ in parts])
    if all(positions is None for _, positions in parts):
        return beats, None
    where, began = [], 0
    for (_, n), (_, positions) in zip(segments, parts, strict=True):
        where.append((np.arange(n) if positions is None else positions) + began)
        began += n
    return beats, np.concatenate(where)


def _equal(a: Plan, b: Plan) -> bool:
    faults = (a.bad, a.missing) == (b.bad, b.missing)
    return faults and np.array_equal(a.ends, b.ends) and np.array_equal(a.info, b.info)


def _together(units: list[Plan]) -> Plans:
    first = units[0]
    same = all(p is first or _equal(p, first) for p in units[1:])
    held = units[:1] if same else units
    agree = len(first.info)
    for plan in held[1:]:
        n = min(agree, len(plan.info))
        differing = np.flatnonzero(plan.info[:n] != first.info[:n])
        agree = int(differing[0]) if len(differing) else n
    bounds = np.cumsum([0, *(len(p.ends) for p in held)])
    ends, info = np.concatenate([p.ends for p in held]), np.concatenate([p.info for p in held])
    return Plans(held, same, agree, ends, info, bounds, np.flatnonzero(first.info & (LAST | MORE) == LAST))


# --- weights ---------------------------------------------------------------------------------------------


@njit
def _scales(beats, header, slot, scales):
    """Sixteen signed scales of a slot, row r at bit SCALE_BASE + SCALE_BITS * r."""
    base = slot * RUN_BYTES + _INSIDE
    for row in range(BLOCK):
        bit = SCALE_BITS * row
        byte, shift = base + bit // 8, bit % 8
        word = np.int64(beats[header, byte])
        if shift + SCALE_BITS > 8:
            word |= np.int64(beats[header, byte + 1]) << 8
        scales[row] = ((word >> shift & 2 * _HALF_SCALE - 1) ^ _HALF_SCALE) - _HALF_SCALE


def _level_table() -> np.ndarray:
    """int16[precision, quarter, byte]: the level that a byte of a code beat holds; 3 bits: for a high bit of zero."""
    table = np.zeros((len(BITS), QUARTERS, 256), np.int16)
    every = np.arange(256)
    for place, bits in enumerate(BITS):
        for quarter in range(QUARTERS):
            mask = code_byte((1 << bits) - 1, bits, quarter)
            for code in range(4 if bits == 3 else 1 << bits):
                table[place, quarter, every & mask == code_byte(code, bits, quarter)] = level(code, bits)
    return table


_LEVELS = _level_table()
_mask_inputs = njit(mask_inputs)


@cache
def _mask_table() -> np.ndarray:
    """uint8[masks, 8 slots]: `mask_inputs` of every mask."""
    return _mask_rows(1 << BLOCK)


@njit
def _mask_rows(n_masks):
    out = np.empty((n_masks, 8), np.uint8)
    for mask in range(n_masks):
        inputs = _mask_inputs(mask)
        for i in range(8):
            out[mask, i] = inputs[i]
    return out


@njit
def _weights(flat, at, plane, high_shift, form, n_form, scales, out):
    """out int32[slots, rows] = the round's weights, anything in empty slots.

    at: its first code byte; plane: the first byte of the beat with its high bits, which lie high_shift above HIGH_BITS;
    form, n_form: places in BITS and NONZEROS.
    """
    bits = _BIT_COUNTS[form]
    for row in range(BLOCK):
        quarter = row // ROWS_A_QUARTER
        first = row % ROWS_A_QUARTER * BLOCK
        beat = at + _CODE_BEAT[form, n_form, quarter] * BEAT_BYTES
        for s in range(BLOCK):
            value = np.int64(_LEVELS[form, quarter, flat[beat + first + s]])
            if bits == 3 and flat[plane + first + s] >> (_HIGH_BITS[quarter] + high_shift) & 1:
                value -= 8
            out[s, row] = value if bits == 8 else value * scales[row]


@njit
def _indices(flat, at, n, mask_table, out):
    """out int32[slots, rows] = the inputs of the round's slots inside their blocks; at: its first byte."""
    for row in range(BLOCK):
        for s in range(BLOCK):
            if n == 16:
                out[s, row] = s
            elif n == 8:
                byte = at + (s // 8 * BLOCK + row) * 2
                out[s, row] = mask_table[np.int64(flat[byte]) | np.int64(flat[byte + 1]) << 8, s % 8]
            else:
                beat, place = at if n == 1 else at + s // 8 * BEAT_BYTES, row * 8 + s % 8
                out[s, row] = flat[beat + place // 2] >> place % 2 * 4 & 15


@njit
def _decode(beats, runs, first_step, mask_table, out, column, stride):
    """`add_weights`."""
    flat = beats.reshape(-1)
    scales = np.zeros(BLOCK, np.int64)
    weights, indices = np.zeros((BLOCK, BLOCK), np.int32), np.zeros((BLOCK, BLOCK), np.int32)
    tile = np.zeros((BLOCK, BLOCK), np.int32)
    present = np.zeros(WINDOW, np.int64)
    largest = i = 0
    while i < len(runs):
        size, n_form = runs[i, BUNDLE], runs[i, RUN_N]
        n, per = _NONZERO_COUNTS[n_form], _ROUND_BLOCKS[n_form]
        each = BLOCK // per
        total = 0
        for b in range(WINDOW):
            if runs[i, RUN_BLOCKS] >> b & 1:
                present[total] = runs[i, RUN_WINDOW] * WINDOW + b
                total += 1
        at, plane, odd = runs[i, PAYLOAD] * BEAT_BYTES, 0, 0
        for first in range(0, total, per):
            for run in runs[i : i + size]:
                _scales(beats, run[HEADER], run[SLOT], scales)
                codes = at + _INDEX_BEATS[n_form] * BEAT_BYTES
                if n == 1:
                    plane = codes
                elif not odd:
                    plane = codes + BEAT_BYTES
                _indices(flat, at, n, mask_table, indices)
                _weights(flat, codes, plane, 4 if n > 1 and odd else 0, run[RUN_BITS], n_form, scales, weights)
                at += _ROUND_BEATS[run[RUN_BITS], n_form, odd] * BEAT_BYTES
                odd = _NEXT_ODD[run[RUN_BITS], odd]
                to = column + (run[STEP] - first_step) * stride
                for b in range(first, min(total, first + per)):
                    tile[:] = 0
                    for place in range(each if n > 1 else 1):
                        for row in range(BLOCK):
                            s = (b - first) * each + place if n > 1 else _SINGLE_SLOTS[row, b - first]
                            tile[indices[s, row], row] += weights[s, row]
                    for c in range(BLOCK):
                        for row in range(BLOCK):
                            value = out[present[b] * BLOCK + c, to + row] + np.float32(tile[c, row])
                            out[present[b] * BLOCK + c, to + row] = value
                            largest = max(largest, abs(int(value)))
        i += size
    return largest


def add_weights(
    beats: np.ndarray, runs: np.ndarray, first_step: int, out: np.ndarray, column: int = 0, stride: int = BLOCK
) -> int:
    """Adds the weights of these runs of a stream (uint8[beats, 64]) to out, float32[inputs, columns].

    Row r of step j is column + (j - first_step) * stride + r. Gives the largest magnitude that came up.
    """
    return int(_decode(beats, runs, first_step, _mask_table(), out, column, stride))


def matrix(beats: np.ndarray, inputs: int) -> np.ndarray:
    """One unit's stream, uint8[beats, 64], as int32[steps, 16 rows, inputs]; ValueError as `walk`."""
    _, runs = walk(beats)
    steps = int(runs[:, STEP].max(initial=-1)) + 1
    width = WINDOW * BLOCK
    out = np.zeros((-(-inputs // width) * width, steps * BLOCK), np.float32)
    if len(runs) and int(runs[:, RUN_WINDOW].max()) * width >= inputs:
        raise ValueError(f"window {int(runs[:, RUN_WINDOW].max())} is beyond {inputs} inputs")
    add_weights(beats, runs, 0, out)
    return out[:inputs].T.reshape(steps, BLOCK, inputs).astype(np.int32)
