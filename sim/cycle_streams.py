"""Readers, FIFOs, weight buffers and the matrix units' front in time: docs/machine.md as a max-plus recurrence.

Everything of a channel up to the next unknown is computed at once: a pop needs the take that makes room for the round
it belongs to, a take needs a round in every channel, an address needs pops that free its space. Readers and matrix
units are therefore advanced together, whenever one of them starts an instruction. With HBM, reads also wait for the
writes among them (`hw.spec.hbm`): beats are told up to the first write epoch that is not over yet, and all goes on when
it is: here, as long as no instruction can start or end before.

Faults of RD and MX are found on the way and told with their cycles; behind one, everything goes on as if nothing had
happened, and means nothing. What is counted up to a fault's cycle is told by a second run with `Limits`.
"""

from dataclasses import dataclass

import numpy as np

from hw.spec import hbm
from hw.spec.config import BLOCK_BEATS, Config
from hw.spec.isa import WORD_MASK, Error, MxMode, Unit
from hw.spec.legal import result_beyond
from hw.spec.memory import MemoryModel
from hw.spec.timing import (
    ACT_ERROR,
    BURST_BEATS,
    BUS_ERROR,
    LOAD_INTERVAL,
    MAX_PLACES,
    MX_ACC_LATENCY,
    MX_DRAIN_LATENCY,
    MX_ERROR,
    RD_ADDRESS,
    RD_BEAT,
    RD_DONE,
    ROUND_ARRIVAL,
    ROUND_FREE,
    STOP_DELAY,
    STREAM_ERROR,
    TABLE_LATENCY,
    UNIT_REPORT,
    WEIGHT_BUFFER_ROUNDS,
    accumulator_places,
)
from hw.spec.weights import WINDOW
from sim.compiled import njit
from sim.hbm import alike, new_channel, serve, slot_of
from sim.weight_stream import LAST, MORE, SPARSE, STEP_MASK, STEP_SHIFT, WINDOW_SHIFT, Plan, Plans

# Columns of a channel's state. Times are cycles, positions are beats since the start of the run.
(AR_LAST, ASKED, ARRIVED_LAST, POPPED, POP_LAST, ROUNDS, REQUEST, ROW, COLUMN, READING, BEAT, PLAN_AT, PLAN_END,
 RAW_FILL, STALL, TOLD, RAW_ASKED, MISSING, ABSENT_AT, ABSENT_TIME, WRONG_AT, WRONG_TIME, WRONG_DONE,
 COLUMNS) = range(24)  # fmt: skip
# Words of the shared state: the reader's descriptor, the matrix instruction and where it is, stalls.
(RD_START, RD_ADDR, RD_OUTER, RD_INNER, RD_STRIDE, RD_STREAM, RD_MOST, MX_ACTIVE, MX_START, MX_FAILED, MX_STEP,
 MX_STEPS, MX_K, MX_KB, MX_GROUP, MX_ROWS, MX_LAST_ROWS, MX_PASSES, MX_A_ROW, MX_PLACES, MX_OB, MX_SPLIT_K, MX_UNITS,
 MX_ACT, MX_ACT_STRIDE, MX_ACT_OUT, MX_ACT_SIZE, MX_READY, TAKEN, FREED, FORMAT, STEPS_AHEAD, STEPS_BATCH, BATCH,
 BATCH_KIND, LOADED, ENDED, ENDED_BEFORE, DENSE_ENDED, MX_BAD_STEP, MX_BAD_CYCLE, WEIGHT_STALL, DRAIN_STALL, FIFO,
 LATENCY, JITTER, SEED, RANGE_TIME, HEADER_TIME, LAST_STALL, LAST_MX_CYCLE, LAST_ADDRESS, HBM, KNOWN, NEED, UNIT_0,
 DEND) = range(57)  # fmt: skip
WORDS = DEND + MAX_PLACES
"""From DEND on: ends of the latest steps' drains, step j's at DEND + j mod MAX_PLACES. UNIT_0: the row of unit 0's
channel, whose kind of a round is believed where units differ: the round is refused when one of that kind is taken."""
_NONE, _RAW = -1, 1 << 16
"""Kinds of beats: completes no round, completes a RAW round, or the info of the STREAM round that it completes."""
_ADDRESS_AFTER_POP = 2
"""From a pop that makes room for a burst to its address on the bus."""
NEVER = 1 << 62
"""A cycle after all others."""
_FIRST_WRITES = 64


@njit
def _extra(g, port, request):
    """`MemoryModel.extra`."""
    if g[JITTER] == 0:
        return 0
    x = (g[SEED] * 0x9E3779B1 + port * 0x85EBCA77 + request * 0xC2B2AE3D) & WORD_MASK
    x ^= x >> 16
    x = (x * 0x85EBCA6B) & WORD_MASK
    x ^= x >> 13
    x = (x * 0xC2B2AE35) & WORD_MASK
    x ^= x >> 16
    return x % (g[JITTER] + 1)


@njit
def _mark(g, channels, c, kinds, ends, info, n):
    """Notes the kinds of the n beats of channel c that are being asked for, as its plan says."""
    wrap = kinds.shape[1] - 1
    asked = channels[c, ASKED]
    for i in range(asked, asked + n):
        kinds[c, i & wrap] = _NONE
    if g[RD_STREAM]:
        begin = asked - channels[c, BEAT]
        at, end, behind = channels[c, PLAN_AT], channels[c, PLAN_END], channels[c, BEAT] + n
        while at < end and ends[at] < behind:
            kinds[c, begin + ends[at] & wrap] = info[at]
            at += 1
        channels[c, PLAN_AT] = at
    else:
        fill = channels[c, RAW_FILL]
        for i in range(asked + BLOCK_BEATS - 1 - fill, asked + n, BLOCK_BEATS):
            kinds[c, i & wrap] = _RAW
        channels[c, RAW_FILL] = (fill + n) % BLOCK_BEATS
        channels[c, RAW_ASKED] += n
    if asked <= channels[c, WRONG_AT] < asked + n:
        kinds[c, channels[c, WRONG_AT] & wrap] = _RAW if channels[c, WRONG_DONE] else _NONE
    channels[c, BEAT] += n


@njit
def _note_absent(channels, c, arrivals, told):
    """Beats from `told` on have been told: the first beyond the memory may be among them."""
    at = channels[c, ABSENT_AT]
    if told <= at < channels[c, TOLD]:
        channels[c, ABSENT_TIME] = arrivals[c, at & arrivals.shape[1] - 1] + BUS_ERROR


@njit
def _ask(g, channels, c, arrivals, kinds, pops, ends, info, requests):
    """Sends the next address of channel c's reader if its space is known to be free; whether it did."""
    if channels[c, READING] == 0 or channels[c, BEAT] >= g[RD_MOST]:
        return False
    wrap = arrivals.shape[1] - 1
    column, asked = channels[c, COLUMN], channels[c, ASKED]
    address = (g[RD_ADDR] + channels[c, ROW] * g[RD_STRIDE] + column) & WORD_MASK
    n = min(BURST_BEATS, g[RD_INNER] - column, 64 - (address & 63))
    freeing = asked + n - g[FIFO] - 1
    if freeing >= channels[c, POPPED]:
        return False
    t = max(g[RD_START] + RD_ADDRESS, channels[c, AR_LAST] + 1)
    if freeing >= 0:
        t = max(t, pops[c, freeing & wrap] + _ADDRESS_AFTER_POP)
    if t > g[LAST_ADDRESS]:
        return False
    extra = _extra(g, c, channels[c, REQUEST])
    if g[HBM]:
        for i in range(n):
            at = asked + i & wrap
            requests[c, 0, at], requests[c, 1, at], requests[c, 2, at] = address + i, t, extra
    else:
        arrived = max(t + g[LATENCY] + extra, channels[c, ARRIVED_LAST] + 1)
        for i in range(n):
            arrivals[c, asked + i & wrap] = arrived + i
        channels[c, ARRIVED_LAST] = arrived + n - 1
        channels[c, TOLD] = asked + n
        _note_absent(channels, c, arrivals, asked)
    _mark(g, channels, c, kinds, ends, info, n)
    channels[c, AR_LAST] = t
    channels[c, ASKED] = asked + n
    channels[c, REQUEST] += 1
    channels[c, COLUMN] = column + n
    if column + n == g[RD_INNER]:
        channels[c, COLUMN] = 0
        channels[c, ROW] += 1
        if channels[c, ROW] == g[RD_OUTER]:
            channels[c, READING] = 0
    return True


@njit
def _tell(g, channels, c, arrivals, requests, banks, writes):
    """Serves channel c's beats as far as writes are known; whether any."""
    told, asked = channels[c, TOLD], channels[c, ASKED]
    if told == asked or banks[c, hbm.NEED] > g[KNOWN]:
        return False
    serve(banks[c], asked, requests[c, 0], requests[c, 1], requests[c, 2], arrivals[c], writes[c], g[KNOWN])
    channels[c, TOLD] = banks[c, hbm.SERVED]
    _note_absent(channels, c, arrivals, told)
    return channels[c, TOLD] > told


@njit
def _pop(g, channels, c, arrivals, kinds, pops, frees, ready, rounds):
    """Pops beats of channel c as far as the rounds whose places they need are known to be free; whether any.

    frees: cycle of the take that frees round i, at i mod WEIGHT_BUFFER_ROUNDS; ready, rounds: when the channel's round
    i has come to the schedule, and its kind, at the same place.
    """
    wrap, buffer = arrivals.shape[1] - 1, WEIGHT_BUFFER_ROUNDS - 1
    began, told = channels[c, POPPED], channels[c, TOLD]
    last, i, stall = channels[c, POP_LAST], channels[c, ROUNDS], channels[c, STALL]
    popped, most = began, g[FREED] + WEIGHT_BUFFER_ROUNDS
    while popped < told and i < most:
        room = frees[i & buffer] + ROUND_FREE if i >= WEIGHT_BUFFER_ROUNDS else 0
        kind = np.int64(_NONE)
        while popped < told and kind == _NONE:
            at = popped & wrap
            t = max(arrivals[c, at] + RD_BEAT, last + 1)
            if popped <= channels[c, WRONG_AT]:  # behind it the front counts none
                stall += max(0, min(room, g[LAST_STALL] + 1) - t)
            last = max(t, room)
            pops[c, at] = last
            kind = kinds[c, at]
            if popped == channels[c, WRONG_AT]:
                channels[c, WRONG_TIME] = last + STREAM_ERROR
            popped += 1
        if kind != _NONE:
            ready[c, i & buffer] = last + ROUND_ARRIVAL
            rounds[c, i & buffer] = kind
            i += 1
    channels[c, POPPED], channels[c, POP_LAST] = popped, last
    channels[c, ROUNDS], channels[c, STALL] = i, stall
    return popped > began


@njit
def _group_size(g):
    """Steps of the group that is being made."""
    return min(g[MX_GROUP], g[MX_OB] - g[MX_STEP] % g[MX_OB])


@njit
def _rows(g):
    """Rows of the step that is being made: fewer in the last turn."""
    return g[MX_LAST_ROWS] if g[MX_STEP] >= g[MX_STEPS] - g[MX_OB] else g[MX_ROWS]


@njit
def _alike_in_all(kind, kinds):
    return (kinds == kind).all()


@njit
def _of_instruction(g, kind):
    """Whether a round's format is the matrix instruction's and its group's, and its window one of its inputs."""
    if g[MX_K] == 0:
        g[FORMAT] = kind & _RAW
    if g[FORMAT] != kind & _RAW:
        return False
    if kind == _RAW:
        return g[MX_GROUP] == 1
    return g[MX_SPLIT_K] == 0 and (kind >> WINDOW_SHIFT) * WINDOW < g[MX_KB]


@njit
def _first_act(g, kind):
    """The act block that a round's first row begins with, not wrapped."""
    block = g[MX_K] * g[MX_UNITS] if kind == _RAW else (kind >> WINDOW_SHIFT) * WINDOW
    return g[MX_ACT] + g[MX_STEP] // g[MX_OB] * g[MX_ACT_OUT] + block


@njit
def _check_acts(g, t, kind):
    """Notes when a row of the dense round taken at t needs act blocks beyond OB."""
    if g[MX_ACT_SIZE] == 0:
        return
    first = _first_act(g, kind)
    for row in range(_rows(g)):
        if (first + row * g[MX_ACT_STRIDE]) & WORD_MASK >= g[MX_ACT_SIZE]:
            g[RANGE_TIME] = min(g[RANGE_TIME], t + 1 + row * g[MX_PASSES] + ACT_ERROR)
            return


@njit
def _earliest_load(g, earliest):
    """The first cycle from this one on in which a pair of rows can be read for the tables."""
    return max(earliest, g[LOADED] + LOAD_INTERVAL, g[ENDED_BEFORE], g[DENSE_ENDED] + 1, g[MX_START] + 1)


@njit
def _load(g, kind, pair, earliest):
    """Reads a pair of rows for the tables, no earlier than told: the cycle of the first row."""
    t = _earliest_load(g, earliest)
    if g[MX_ACT_SIZE]:
        first = _first_act(g, kind)
        for row in range(2 * pair, min(2 * pair + 2, _rows(g))):
            if (first + row * g[MX_ACT_STRIDE]) & WORD_MASK >= g[MX_ACT_SIZE]:
                g[RANGE_TIME] = min(g[RANGE_TIME], t + (row & 1) + ACT_ERROR)
    g[LOADED] = t
    return t


@njit
def _pair_done(g):
    """The last step of a pair's rounds is in cycle MX_READY."""
    g[ENDED_BEFORE], g[ENDED] = g[ENDED], g[MX_READY]


@njit
def _wait(g, full, fresh):
    """The cycle of the next take, for which a round or an order is there from cycle `full` on."""
    now, end = g[MX_READY], g[LAST_MX_CYCLE] + 1
    t = max(now, full)
    g[WEIGHT_STALL] += max(0, min(full, end) - now)
    behind = g[MX_STEP] + _group_size(g) - 1 - g[MX_PLACES]
    if fresh and behind >= 0:
        free = g[DEND + behind % MAX_PLACES] + 1
        g[DRAIN_STALL] += max(0, min(free, end) - t)
        t = max(t, free)
    return t


@njit
def _free(g, frees, t):
    """The next round's place is free, as it is taken at t for the last time."""
    frees[g[FREED] & WEIGHT_BUFFER_ROUNDS - 1] = t
    g[FREED] += 1


@njit
def _fail(g, t):
    """The round taken at t does not fit."""
    g[HEADER_TIME] = min(g[HEADER_TIME], t + MX_ERROR)
    g[MX_FAILED] = 1


@njit
def _round_done(g, kind):
    """A dense round or a batch has been taken: where the group is, and when its steps are drained if that ends it."""
    g[MX_K] += 1
    if not (g[MX_K] == g[MX_KB] if kind == _RAW else kind & LAST):
        return
    size, rows = _group_size(g), _rows(g)
    for _ in range(size):
        step = g[MX_STEP]
        start = g[MX_READY] + MX_ACC_LATENCY
        if step >= 1:
            start = max(start, g[DEND + (step - 1) % MAX_PLACES] + 1)
        if step == g[MX_BAD_STEP]:
            g[RANGE_TIME] = min(g[RANGE_TIME], start + g[MX_BAD_CYCLE] + MX_ERROR)
        g[DEND + step % MAX_PLACES] = start + rows * g[MX_A_ROW] - 1
        g[MX_STEP] += 1
    g[MX_K] = g[STEPS_AHEAD] = 0
    if g[MX_STEP] == g[MX_STEPS]:
        g[MX_ACTIVE] = 0


@njit
def _take_dense(g, frees, full, kind, agree):
    fresh = g[MX_K] == 0
    fits = agree and _of_instruction(g, kind)
    size, place = _group_size(g), kind >> STEP_SHIFT & STEP_MASK if kind != _RAW else 0
    t = _wait(g, max(full, g[MX_START] + 1) + 1, fresh)
    steps = g[STEPS_AHEAD] | 1 << place
    ends = g[MX_K] + 1 == g[MX_KB] if kind == _RAW else kind & LAST
    if not fits or place >= size or (ends and steps != (1 << size) - 1):
        _fail(g, t)
        return
    g[STEPS_AHEAD] = steps
    g[TAKEN] += 1
    _free(g, frees, t)
    _check_acts(g, t, kind)
    g[MX_READY] = g[DENSE_ENDED] = t + _rows(g) * g[MX_PASSES]
    _round_done(g, kind)


@njit
def _take_sparse(g, frees, full, kind, agree):
    """Takes the next round of a batch, for its first pair of rows; behind the last, those of all other pairs."""
    pairs, cost = (_rows(g) + 1) // 2, 2 * g[MX_PASSES]
    if g[BATCH] == 0:
        fits = agree and _of_instruction(g, kind)
        read = _load(g, kind, 0, full) if fits else _earliest_load(g, full)
        t = _wait(g, read + TABLE_LATENCY, g[MX_K] == 0)
        g[STEPS_BATCH], g[BATCH_KIND] = g[STEPS_AHEAD], kind
    else:
        fits = agree
        t = _wait(g, full, False)
    place, size = kind >> STEP_SHIFT & STEP_MASK, _group_size(g)
    g[STEPS_BATCH] |= 1 << place
    whole = g[STEPS_BATCH] == (1 << size) - 1
    ends = kind & (LAST | MORE) == LAST
    if not fits or place >= size or (pairs == 1 and ends and not whole):
        if pairs > 1 and (fits or g[BATCH] > 0):
            _load_behind(g, t)
        _fail(g, t)
        return
    g[TAKEN] += 1
    g[BATCH] += 1
    if pairs == 1:
        _free(g, frees, t)
    g[MX_READY] = t + cost
    if kind & MORE:
        return
    _pair_done(g)
    for pair in range(1, pairs):
        t = _wait(g, _load(g, g[BATCH_KIND], pair, 0) + TABLE_LATENCY, False)
        if pair == pairs - 1:
            if ends and not whole:
                _fail(g, t + (g[BATCH] - 1) * cost)
                return
            for i in range(g[BATCH]):
                _free(g, frees, t + i * cost)
        g[MX_READY] = t + g[BATCH] * cost
        _pair_done(g)
    g[STEPS_AHEAD], g[BATCH] = g[STEPS_BATCH], 0
    _round_done(g, kind)


@njit
def _load_behind(g, t):
    """The next pair's rows may have been read before the machine stops, as the round taken at t does not fit."""
    before = g[RANGE_TIME]
    if _load(g, g[BATCH_KIND], 1, g[ENDED]) >= t + MX_ERROR:
        g[RANGE_TIME] = before


@njit
def _take(g, channels, frees, ready, rounds):
    """Takes the matrix instruction's next round if every channel has it; whether it did."""
    taken = g[TAKEN]
    at = taken & WEIGHT_BUFFER_ROUNDS - 1
    full = 0
    if g[MX_FAILED]:
        return False
    for c in range(len(channels)):
        if channels[c, ROUNDS] <= taken:
            return False
        full = max(full, ready[c, at])
    kind = rounds[g[UNIT_0], at]
    agree = _alike_in_all(kind, rounds[:, at])
    if kind != _RAW and kind & SPARSE:
        _take_sparse(g, frees, full, kind, agree)
    else:
        _take_dense(g, frees, full, kind, agree)
    return True


@njit
def _settle(g, channels, arrivals, kinds, pops, frees, ready, rounds, ends, info, requests, banks, writes):
    """Moves everything as far as it is determined."""
    moved = True
    while moved:
        moved = False
        for c in range(len(channels)):
            going = True
            while going:
                going = _pop(g, channels, c, arrivals, kinds, pops, frees, ready, rounds)
                while _ask(g, channels, c, arrivals, kinds, pops, ends, info, requests):
                    going = True
                if g[HBM]:
                    going = _tell(g, channels, c, arrivals, requests, banks, writes) or going
                moved = moved or going
        while g[MX_ACTIVE] == 1 and _take(g, channels, frees, ready, rounds):
            moved = True


@njit
def _readers(channels):
    """Channels that have addresses to send."""
    n = 0
    for c in range(len(channels)):
        n += channels[c, READING]
    return n


@njit
def _advance(g, channels, arrivals, kinds, pops, frees, ready, rounds, ends, info, requests, banks, writes, until):
    """`_settle`, and again whenever a write epoch is over, up to cycle `until` or an instruction's end."""
    reading, active = _readers(channels) > 0, g[MX_ACTIVE]
    while True:
        _settle(g, channels, arrivals, kinds, pops, frees, ready, rounds, ends, info, requests, banks, writes)
        need = 0
        for c in range(len(channels)):
            need = max(need, banks[c, hbm.NEED])
        g[NEED] = need
        ended = g[MX_ACTIVE] != active or (reading and _readers(channels) == 0)
        if need == 0 or need > until or ended:
            return
        g[KNOWN] = need


@njit
def _alike(g, channels, arrivals, kinds, pops, ready, rounds, requests, banks, now, a, b):
    """Whether channels a and b do the same from now on, if they get the same reads, and no writes before cycle `now`.

    Times are compared as far as they can still delay anything.
    """
    for column in range(COLUMNS):
        if channels[a, column] != channels[b, column] and column != STALL:
            return False
    wrap, buffer = arrivals.shape[1] - 1, WEIGHT_BUFFER_ROUNDS - 1
    asked, told, popped = channels[a, ASKED], channels[a, TOLD], channels[a, POPPED]
    for i in range(popped, asked):
        at = i & wrap
        if kinds[a, at] != kinds[b, at]:
            return False
        if i >= told:
            if requests[a, 0, at] != requests[b, 0, at] or requests[a, 1, at] != requests[b, 1, at]:
                return False
        elif max(arrivals[a, at], channels[a, POP_LAST]) != max(arrivals[b, at], channels[a, POP_LAST]):
            return False
    for i in range(max(0, asked - g[FIFO]), popped):
        if max(pops[a, i & wrap], channels[a, AR_LAST]) != max(pops[b, i & wrap], channels[a, AR_LAST]):
            return False
    for i in range(g[TAKEN], channels[a, ROUNDS]):
        if ready[a, i & buffer] != ready[b, i & buffer] or rounds[a, i & buffer] != rounds[b, i & buffer]:
            return False
    next_accepted = requests[a, 1, told & wrap] if told < asked else channels[a, AR_LAST] + 1
    return alike(banks[a], banks[b], min(slot_of(banks[a], now), slot_of(banks[a], next_accepted) + hbm.REQUEST))


@njit
def _representatives(g, channels, arrivals, kinds, pops, ready, rounds, requests, banks, now, first):
    """Of every row one that is `_alike`, the same for all of those: `first` where that is one of them."""
    n = len(channels)
    found = np.full(n, -1)
    found[first] = first
    for row in range(n):
        for other in range(n):
            if (
                found[row] < 0
                and found[other] == other
                and _alike(g, channels, arrivals, kinds, pops, ready, rounds, requests, banks, now, row, other)
            ):
                found[row] = other
        if found[row] < 0:
            found[row] = row
    return found


@njit
def _append(banks, writes, row_of, first, units, addresses, words):
    """Puts writes, accepted from cycle `first` on, behind those that their units' rows have not drained."""
    wrap = writes.shape[1] - 1
    for i in range(len(units)):
        row = row_of[units[i]]
        at = banks[row, hbm.TAIL] & wrap
        writes[row, at, 0], writes[row, at, 1], writes[row, at, 2] = first + i, addresses[i], words[i]
        banks[row, hbm.TAIL] += 1


_BY_CHANNEL = ("channels", "arrivals", "kinds", "pops", "ready", "rounds", "requests", "banks", "writes")


@dataclass(frozen=True)
class Limits:
    """The last cycles of a run that ends in an error, as far as they differ."""

    cycle: int = NEVER
    """Of the run."""
    matrix: int = NEVER
    """In which MX counts its stalls and a reader sends an address: an error of RD or MX stops them at once."""


NO_LIMITS = Limits()


@dataclass
class Streams:
    """The state of all channels. Without jitter, those whose streams are equal share a row from the start, part when
    one is written, and are put together again when the write makes no difference any more (`_alike`)."""

    config: Config
    model: MemoryModel
    limits: Limits = NO_LIMITS

    def __post_init__(self):
        n = self.config.units if self.model.jitter else 1
        self.row_of = np.arange(self.config.units) % n
        """Row of each unit's channel."""
        size = 1 << (self.config.fifo_beats + 2 * BURST_BEATS - 1).bit_length()
        self.channels = np.zeros((n, COLUMNS), np.int64)
        self.channels[:, (AR_LAST, ARRIVED_LAST, POP_LAST)] = -1
        self.channels[:, (ABSENT_AT, ABSENT_TIME, WRONG_AT, WRONG_TIME)] = NEVER
        self.arrivals, self.kinds, self.pops = (np.zeros((n, size), np.int64) for _ in range(3))
        self.requests = np.zeros((n, 3, size), np.int64)
        self.banks = np.tile(new_channel(self.model.slots_a_cycle), (n, 1))
        self.writes = np.zeros((n, _FIRST_WRITES, 3), np.int64)
        self.ready, self.rounds = (np.zeros((n, WEIGHT_BUFFER_ROUNDS), np.int64) for _ in range(2))
        self.frees = np.zeros(WEIGHT_BUFFER_ROUNDS, np.int64)
        self.ends, self.info = np.zeros(0, np.int32), np.zeros(0, np.uint16)
        self.share_from = 0
        """The cycle from which on it is worth while to look for rows that have become alike."""
        self.next_known = 0
        """The cycle from which on more is determined though nothing starts, or 0."""
        self.shared = np.zeros(WORDS, np.int64)
        self.shared[[FIFO, LATENCY, JITTER, SEED, HBM]] = (
            self.config.fifo_beats,
            self.model.read_latency,
            self.model.jitter,
            self.model.seed & WORD_MASK,
            self.model.hbm,
        )
        self.shared[[RANGE_TIME, HEADER_TIME]] = NEVER
        self.shared[[LAST_STALL, LAST_MX_CYCLE, LAST_ADDRESS]] = (
            self.limits.cycle - UNIT_REPORT,
            self.limits.matrix,
            self.limits.matrix + STOP_DELAY,
        )
        self.shared[LOADED] = -LOAD_INTERVAL

    def start_read(self, s: int, f: dict[str, int], plans: Plans | None, absent: int | None, most: int) -> None:
        """RD starts at cycle s, with these plans for STREAM.

        absent: its first beat that is beyond the memory; most: beats that are followed.
        """
        self._share_rows(s)
        self.shared[RD_START : RD_MOST + 1] = (
            s,
            f["addr"],
            f["n_outer"],
            f["n_inner"],
            f["stride"],
            plans is not None,
            most,
        )
        if plans:
            if not plans.same:
                self._own_rows(np.arange(self.config.units))
            self.ends, self.info = plans.ends, plans.info
            self.channels[self.row_of, PLAN_AT] = plans.bounds[0] if plans.same else plans.bounds[:-1]
            self.channels[self.row_of, PLAN_END] = plans.bounds[1] if plans.same else plans.bounds[1:]
        for row, unit in {int(row): unit for unit, row in enumerate(self.row_of)}.items():
            self._mark_faults(self.channels[row], plans.of(unit) if plans else None, absent)
        self.channels[:, (ROW, COLUMN, BEAT)] = 0
        self.channels[:, READING] = 1
        self.advance(s)

    @staticmethod
    def _mark_faults(channel: np.ndarray, plan: Plan | None, absent: int | None) -> None:
        """Notes the first beats of a channel that are beyond the memory, or wrong, of those that are to come."""
        asked, missing, fill = channel[ASKED], channel[MISSING], channel[RAW_FILL] if plan else 0
        if absent is not None:
            channel[ABSENT_AT] = min(channel[ABSENT_AT], asked + absent)
        if channel[WRONG_AT] == NEVER:
            if missing or fill:
                channel[WRONG_AT], channel[WRONG_DONE] = asked, missing == 1 or fill == BLOCK_BEATS - 1
            elif plan and plan.bad >= 0:
                channel[WRONG_AT] = asked + plan.bad
            channel[MISSING] = plan.missing if plan else 0

    def _own_rows(self, units: np.ndarray) -> None:
        """Every one of these units gets a row of its own, a copy of the one that it has shared."""
        n = len(self.channels)
        rows = list(range(n))
        for unit in units.tolist():
            row = self.row_of[unit]
            if np.count_nonzero(self.row_of == row) > 1:
                self.row_of[unit] = len(rows)
                rows.append(row)
        if len(rows) > n:
            self._choose(rows)

    def _choose(self, rows: list[int]) -> None:
        """Makes these the rows."""
        for name in _BY_CHANNEL:
            setattr(self, name, getattr(self, name)[rows])

    def _share_rows(self, now: int) -> None:
        """Makes one of rows that are alike; everything that started before cycle `now` has been told."""
        if len(self.channels) == 1 or not self.model.hbm or self.model.jitter or now < self.share_from:
            return
        self.share_from = now + hbm.REFRESH_INTERVAL
        found = _representatives(
            self.shared,
            self.channels,
            self.arrivals,
            self.kinds,
            self.pops,
            self.ready,
            self.rounds,
            self.requests,
            self.banks,
            now,
            self.row_of[0],
        )
        kept, place = np.unique(found, return_inverse=True)
        if len(kept) < len(found):
            self._choose(kept.tolist())
            self.row_of = place[self.row_of]

    def write(self, first: int, units: np.ndarray, addresses: np.ndarray, words: np.ndarray) -> None:
        """Writes of single beats to the channels, one a cycle from cycle `first` on."""
        beats = np.bincount(units, minlength=self.config.units)
        self._own_rows(np.flatnonzero(beats))
        self._make_room(int(beats.max()))
        _append(self.banks, self.writes, self.row_of, first, units, addresses, words)

    def _make_room(self, beats: int) -> None:
        """For as many more writes in every row's ring."""
        size, held = self.writes.shape[1], int((self.banks[:, hbm.TAIL] - self.banks[:, hbm.HEAD]).max())
        if held + beats > size:
            larger = np.zeros((len(self.writes), 1 << (held + beats - 1).bit_length(), 3), np.int64)
            for row, h in enumerate(self.banks):
                at = np.arange(h[hbm.HEAD], h[hbm.TAIL])
                larger[row, at % larger.shape[1]] = self.writes[row, at % size]
            self.writes = larger

    def start_multiply(self, s: int, f: dict[str, int]) -> None:
        """MX starts at cycle s."""
        self._share_rows(s)
        c, n_rows = self.config, f["n_rows"]
        split_k = f["mode"] == MxMode.SPLIT_K
        most = f["act"] + (f["n_outer"] - 1) * f["act_out"] + (n_rows - 1) * f["act_stride"] + f["kb"] * c.units
        for word, value in {
            MX_ACTIVE: 1,
            MX_START: s,
            MX_FAILED: 0,
            MX_STEP: 0,
            MX_STEPS: min(f["n_outer"] * f["ob"], NEVER),
            MX_K: 0,
            MX_KB: f["kb"],
            MX_GROUP: max(1, f["group"]),
            MX_ROWS: n_rows,
            MX_LAST_ROWS: f["n_last"] or n_rows,
            MX_PASSES: c.passes,
            MX_A_ROW: 1 if split_k else c.drain_cycles_a_row,
            MX_PLACES: accumulator_places(n_rows, c.acc_rows),
            MX_OB: f["ob"],
            MX_SPLIT_K: split_k,
            MX_UNITS: c.units if split_k else 1,
            MX_ACT: f["act"],
            MX_ACT_STRIDE: f["act_stride"],
            MX_ACT_OUT: f["act_out"],
            MX_ACT_SIZE: c.ob_blocks * (most >= c.ob_blocks),
            MX_READY: s + 1,
            STEPS_AHEAD: 0,
            BATCH: 0,
        }.items():
            self.shared[word] = value
        self.shared[[MX_BAD_STEP, MX_BAD_CYCLE]] = result_beyond(c, f) or (-1, 0)
        self.advance(s)

    def faults(self) -> list[tuple[int, Unit, Error]]:
        """(cycle, unit, status) of what RD and MX meet."""
        found = [
            (int(self.channels[:, ABSENT_TIME].min()), Unit.RD, Error.BUS_READ),
            (int(self.channels[:, WRONG_TIME].min()), Unit.RD, Error.STREAM_HEADER),
            (int(self.shared[RANGE_TIME]), Unit.MX, Error.BUFFER_RANGE),
            (int(self.shared[HEADER_TIME]), Unit.MX, Error.STREAM_HEADER),
        ]
        return [fault for fault in found if fault[0] != NEVER]

    def last_arrival(self) -> int:
        """Cycle of the last beat asked for; everything must have been told."""
        asked = self.channels[:, ASKED]
        last = self.arrivals[np.arange(len(asked)), (asked - 1) % self.arrivals.shape[1]]
        return int(np.where(asked > 0, last, -1).max())

    def beats(self) -> tuple[int, int]:
        """Beats of all channels asked for: of RAW reads, of STREAM reads."""
        raw, asked = (int(self.channels[self.row_of, column].sum()) for column in (RAW_ASKED, ASKED))
        return raw, asked - raw

    def advance(self, now: int, until: int = 0) -> None:
        """Every instruction that starts before cycle `now` has started. None starts before `until` unless RD or MX ends
        before: time goes on up to then, or to such an end.
        """
        self.shared[[KNOWN, UNIT_0]] = now, self.row_of[0]
        _advance(self.shared, self.channels, self.arrivals, self.kinds, self.pops, self.frees, self.ready,
                 self.rounds, self.ends, self.info, self.requests, self.banks, self.writes, until)  # fmt: skip
        self.next_known = int(self.shared[NEED])

    @property
    def known(self) -> int:
        """The cycle up to which everything has been told."""
        return int(self.shared[KNOWN])

    def read_end(self) -> int | None:
        """End of the running RD; None while it depends on instructions that have not started."""
        return None if self.channels[:, READING].any() else int(self.channels[:, AR_LAST].max()) + RD_DONE

    def multiply_end(self) -> int | None:
        """End of the running MX, or None."""
        last = DEND + (self.shared[MX_STEPS] - 1) % MAX_PLACES
        return None if self.shared[MX_ACTIVE] else int(self.shared[last]) + MX_DRAIN_LATENCY

    def counters(self, end: int) -> dict[str, int]:
        """The front's counters of a run whose last cycle is end."""
        return {
            "mx_weight_stall": int(self.shared[WEIGHT_STALL]) + self._starved(min(end, self.limits.matrix)),
            "mx_drain_stall": int(self.shared[DRAIN_STALL]),
            "unpack_stall": int(self.channels[self.row_of[0], STALL]) + self._held(end),
        }

    def _starved(self, end: int) -> int:
        """Cycles up to end in which MX waits for a round that never comes."""
        works = self.shared[MX_ACTIVE] and not self.shared[MX_FAILED]
        waits = works and (self.channels[:, ROUNDS] <= self.shared[TAKEN]).any()
        return max(0, end + 1 - int(self.shared[MX_READY])) if waits else 0

    def _held(self, end: int) -> int:
        """Cycles up to end in which unit 0 holds back its next beat, which nothing makes room for any more."""
        ch, arrivals = self.channels[self.row_of[0]], self.arrivals[self.row_of[0]]
        if ch[POPPED] == ch[TOLD] or ch[ROUNDS] < self.shared[FREED] + WEIGHT_BUFFER_ROUNDS:
            return 0
        if ch[POPPED] > ch[WRONG_AT]:
            return 0
        since = max(arrivals[ch[POPPED] % len(arrivals)] + RD_BEAT, ch[POP_LAST] + 1)
        return max(0, end + 1 - UNIT_REPORT - int(since))
