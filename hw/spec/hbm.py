"""One HBM2 pseudo-channel in time, in integers: docs/memory.md says what is modelled and what is not.

This is the only definition. The cycle simulator compiles these very functions (sim/hbm.py); the test bench has a C++
twin (sim/rtl/native/hbm.h), which gets every constant from `parameters`, and tests/sim/test_hbm.py holds the two
together.

Time is in slots of the memory's own clock, whatever the kernel's is: 2.222 ns, two DRAM clocks (900 MHz), one burst of
32 bytes on the data bus, one command clock of a 450 MHz controller. Slot 0 is the beginning of the run's cycle 0. A
channel's state holds how many slots go on how many kernel cycles (2 on 1 at 225 MHz, 3 on 2 at 300 MHz).

A channel's state is one array, int64[STATE]; beats lie in rings that the caller owns, at beat mod length.
"""

from fractions import Fraction

SLOT_HZ = 450_000_000
"""The memory's own clock."""
BANKS, WORDS = 16, 2
"""Banks (four groups: bank mod 4), and 32-byte words of a beat."""
ROW_TO_COLUMN = 7
"""tRCD, 15.6 ns."""
PRECHARGE = 7
"""tRP, 15.6 ns."""
ROW_CYCLE = 22
"""tRC, 48.9 ns; tRAS = tRC - tRP."""
READ_TO_PRECHARGE = 2
"""tRTP, 4.4 ns."""
WRITE_TO_PRECHARGE = 11
"""Column command to precharge of a write: write latency, burst and tWR, 24.4 ns."""
SAME_GROUP = 2
"""tCCD_L; tCCD_S is one slot."""
ACTIVATE = 3
"""Between two activates: the row commands that two busy pseudo-channels share (6 DRAM clocks). tRRD (4) and tFAW (14)
are shorter and never bind."""
READ_DONE = 8
"""Column command to the end of the word's data, 17.8 ns."""
READ_TO_WRITE = 6
"""Last read to first write, column commands: 12 DRAM clocks."""
WRITE_TO_READ = 8
"""Last write to first read: 15 DRAM clocks, rounded up."""
REFRESH_INTERVAL = 1755
"""tREFI, 3.9 us: all banks are refreshed from slot k * REFRESH_INTERVAL on, k = 1, 2, ..."""
REFRESH_BLOCK = 136
"""From there to the first activate: tRFC (117 slots, 260 ns), precharge of all banks and 12 slots in which the
controller lets its pipeline run empty. With tRCD behind it the bus stands still for tRFC + 58 ns."""
QUEUE_BEATS = 32
"""Beats the controller looks at, 64 words: a beat enters the queue when the one QUEUE_BEATS before it has left."""
WRITE_EPOCH = 128
"""Slots whose writes are gathered and then drained together."""
REQUEST, RETURN = 16, 24
"""AXI, controller and PHY on the way to the queue and back: 90 ns together, an estimate."""

_LONG_AGO = -(1 << 40)
_RING = 1024
"""Slots that are remembered behind the newest."""
_BARRED = 7
"""Kind of a slot that no read may use; other kinds are bank groups."""

(WORD, SERVED, EPOCH, LAST_READ, LAST_WRITE, LAST_GROUP, NEWEST, DONE, ARRIVED, HEAD, TAIL, NEED, SLOTS, CYCLES) = (
    range(14)
)
"""SLOTS, CYCLES: so many slots take as long as so many kernel cycles, in lowest terms."""
_OPEN = 16
"""Open row of each bank, or -1."""
_OPENED, _CLOSABLE, _USED, _CLOSED = (_OPEN + i * BANKS for i in range(1, 5))
"""Of each bank: its latest activate, earliest precharge, latest column command, and the refresh that closes the row."""
_LEFT = _OPEN + 5 * BANKS
"""When beat i left the queue, at i mod QUEUE_BEATS."""
_ACTIVATES = _LEFT + QUEUE_BEATS
"""Slots that hold an activate."""
_COLUMNS = _ACTIVATES + _RING
"""Slots in use: slot * 8 + kind."""
STATE = _COLUMNS + _RING


def parameters(slots_a_cycle: Fraction) -> tuple[int, ...]:
    """What the C++ twin is told, in its order (struct Hbm in native/hbm.h)."""
    return (
        ROW_TO_COLUMN, PRECHARGE, ROW_CYCLE, READ_TO_PRECHARGE, WRITE_TO_PRECHARGE, SAME_GROUP, ACTIVATE, READ_DONE,
        READ_TO_WRITE, WRITE_TO_READ, REFRESH_INTERVAL, REFRESH_BLOCK, QUEUE_BEATS, WRITE_EPOCH, REQUEST, RETURN, _RING,
        slots_a_cycle.numerator, slots_a_cycle.denominator,
    )  # fmt: skip


def new_channel(slots_a_cycle: Fraction) -> list[int]:
    """A channel at the start of a run, int64[STATE]: every bank closed, nothing under way."""
    h = [0] * STATE
    h[SLOTS], h[CYCLES] = slots_a_cycle.numerator, slots_a_cycle.denominator
    h[_OPEN:_OPENED] = [-1] * BANKS
    h[_OPENED:_LEFT] = [_LONG_AGO] * (_LEFT - _OPENED)
    h[_ACTIVATES:] = [_LONG_AGO] * (STATE - _ACTIVATES)
    h[EPOCH] = 1
    h[LAST_READ] = h[LAST_WRITE] = _LONG_AGO
    h[LAST_GROUP] = h[ARRIVED] = -1
    return h


def slot_of(h, cycle):
    """The first slot that does not begin before a kernel cycle does."""
    return (cycle * h[SLOTS] + h[CYCLES] - 1) // h[CYCLES]


def cycle_of(h, slot):
    """The first kernel cycle that does not begin before a slot does."""
    return (slot * h[CYCLES] + h[SLOTS] - 1) // h[SLOTS]


def bank_of(address: int, word: int) -> int:
    """Bank of a beat's word: byte address bit 5 is the group's low bit, 12..11 the bank, 13 the group's high bit."""
    return (address >> 5 & 3) << 2 | (address >> 7 & 1) << 1 | word


def row_of(address: int) -> int:
    """Row of a beat: byte address bits 14 and up. Bits 10..6 are the column: 32 words, 1 KiB a row."""
    return address >> 8


def _free_column(h, group, slot):
    """The first slot from this one on in which a read of this bank group may have its column command."""
    mask = _RING - 1
    while True:
        if h[_COLUMNS + (slot & mask)] >> 3 == slot or h[_COLUMNS + (slot - 1 & mask)] == (slot - 1 << 3 | group):
            slot += 1
        elif h[_COLUMNS + (slot + 1 & mask)] == (slot + 1 << 3 | group):
            slot += 3
        else:
            return slot


def _free_activate(h, slot):
    """The first slot from this one on that is outside of refreshes, and ACTIVATE slots from every activate."""
    near = 1 - ACTIVATE
    while True:
        phase = slot % REFRESH_INTERVAL
        if slot >= REFRESH_INTERVAL and phase < REFRESH_BLOCK:
            slot, near = slot - phase + REFRESH_BLOCK, 1 - ACTIVATE
        elif near == ACTIVATE:
            return slot
        elif h[_ACTIVATES + (slot + near & _RING - 1)] == slot + near:
            slot, near = slot + near + ACTIVATE, 1 - ACTIVATE
        else:
            near += 1


def place(h, bank, row, ready, floor, write):
    """(slot of the column command, slot of the activate or -1) of a word that may begin at `ready`; changes nothing.

    Columns come no earlier than `floor`. Reads take the first slot that is free, behind earlier words of their own bank
    but before those of others if there is room; a write takes `floor` or the first slot after it.
    """
    group = bank & 3
    oldest = h[NEWEST] - _RING + 2
    ready = max(ready, oldest)
    floor = max(floor, ready, h[_USED + bank] + SAME_GROUP)
    opened = h[_OPENED + bank]
    if h[_OPEN + bank] == row:
        column = max(floor, opened + ROW_TO_COLUMN)
        if not write:
            column = _free_column(h, group, column)
        if column < h[_CLOSED + bank]:
            return column, -1
    activate = max(ready, opened + ROW_CYCLE)
    if h[_OPEN + bank] >= 0:
        closed = max(ready, h[_CLOSABLE + bank]) + PRECHARGE
        refreshed = h[_CLOSED + bank]
        if h[_OPEN + bank] == row or closed >= refreshed:
            closed = refreshed + REFRESH_BLOCK  # a refresh has closed the row
        activate = max(activate, closed)
    while True:
        activate = _free_activate(h, activate)
        column = max(floor, activate + ROW_TO_COLUMN)
        if not write:
            column = _free_column(h, group, column)
        interval = column // REFRESH_INTERVAL
        if interval == activate // REFRESH_INTERVAL:
            return column, activate
        activate = interval * REFRESH_INTERVAL + REFRESH_BLOCK


def commit(h, bank, row, column, activate, write):
    """Books what `place` has found."""
    if activate >= 0:
        h[_OPEN + bank] = row
        h[_OPENED + bank] = activate
        h[_CLOSABLE + bank] = activate + ROW_CYCLE - PRECHARGE
        h[_CLOSED + bank] = (activate // REFRESH_INTERVAL + 1) * REFRESH_INTERVAL
        h[_ACTIVATES + (activate & _RING - 1)] = activate
    h[_USED + bank] = column
    to_precharge = WRITE_TO_PRECHARGE if write else READ_TO_PRECHARGE
    h[_CLOSABLE + bank] = max(h[_CLOSABLE + bank], column + to_precharge)
    h[NEWEST] = max(h[NEWEST], column)
    h[_COLUMNS + (column & _RING - 1)] = column << 3 | bank & 3


def _drain(h, writes):
    """Drains the writes of the epoch that ends next, in their order, behind every read that is placed already."""
    end = h[EPOCH] * WRITE_EPOCH
    cycle = cycle_of(h, end)
    h[EPOCH] += 1
    mask = len(writes) - 1
    first = -1
    begin = max(end, h[LAST_READ] + READ_TO_WRITE)
    while h[HEAD] < h[TAIL] and writes[h[HEAD] & mask, 0] < cycle:
        address, words = writes[h[HEAD] & mask, 1], writes[h[HEAD] & mask, 2]
        h[HEAD] += 1
        for word in range(WORDS):
            if words >> word & 1:
                bank, row = bank_of(address, word), row_of(address)
                floor = max(begin, h[LAST_WRITE] + (SAME_GROUP if h[LAST_GROUP] == bank & 3 else 1))
                column, activate = place(h, bank, row, end, floor, True)
                commit(h, bank, row, column, activate, True)
                h[LAST_WRITE], h[LAST_GROUP] = column, bank & 3
                if first < 0:
                    first = column
    if first >= 0:
        last = h[LAST_WRITE] + WRITE_TO_READ
        for slot in range(max(first - READ_TO_WRITE + 1, last - _RING + 1), last):
            h[_COLUMNS + (slot & _RING - 1)] = slot << 3 | _BARRED
        h[NEWEST] = max(h[NEWEST], last - 1)


def _goes_on(h, address, ready):
    """Whether a beat follows the one before in its row, and its words can have the two slots behind the newest.

    `place` would find the same slots: this is for speed alone.
    """
    newest, low = h[NEWEST], bank_of(address, 0)
    last = newest + WORDS
    return (
        h[_USED + low] == newest - 1
        and h[_USED + low + 1] == newest
        and ready < last
        and h[_OPEN + low] == row_of(address)
        and h[_OPEN + low + 1] == row_of(address)
        and last < h[_CLOSED + low]
        and last < h[_CLOSED + low + 1]
        and last < WRITE_EPOCH * h[EPOCH]
    )


def serve(h, asked, addresses, accepted, extra, arrivals, writes, known):
    """Serves beats in their order up to `asked` (beats since the start), as far as what is known determines them.

    addresses, accepted, extra: of each beat the address in beats, the cycle in which it was accepted, cycles that its
    way back takes longer; arrivals gets the cycle in which it is on the bus. writes: int64[n, 3] (cycle, address, mask
    of the words in it), n a power of two, from h[HEAD] to h[TAIL]; all that are accepted before cycle `known` are in.
    A beat that cannot be told yet leaves in h[NEED] what `known` must be at least.
    """
    mask = len(arrivals) - 1
    h[NEED] = 0
    while h[SERVED] < asked:
        beat = h[SERVED]
        at, left = beat & mask, _LEFT + beat % QUEUE_BEATS
        ready = max(slot_of(h, accepted[at]) + REQUEST, h[left])
        row = row_of(addresses[at])
        if h[WORD] == 0 and _goes_on(h, addresses[at], ready):
            for word in range(WORDS):
                commit(h, bank_of(addresses[at], word), row, h[NEWEST] + 1, -1, False)
            h[LAST_READ], h[DONE], h[WORD] = h[NEWEST], h[NEWEST] + READ_DONE, WORDS
        while h[WORD] < WORDS:
            bank = bank_of(addresses[at], h[WORD])
            column, activate = place(h, bank, row, ready, ready, False)
            if column >= WRITE_EPOCH * h[EPOCH]:
                if cycle_of(h, WRITE_EPOCH * h[EPOCH]) > known:
                    # Writes only move it back: every epoch before the one it lies in now has to be known in any case.
                    h[NEED] = cycle_of(h, column // WRITE_EPOCH * WRITE_EPOCH)
                    return
                _drain(h, writes)
                continue
            commit(h, bank, row, column, activate, False)
            h[LAST_READ] = max(h[LAST_READ], column)
            h[DONE] = max(h[DONE], column + READ_DONE)
            h[WORD] += 1
        h[WORD] = 0
        h[left] = h[DONE]
        arrival = cycle_of(h, h[DONE] + RETURN) + extra[at]
        h[ARRIVED] = arrivals[at] = max(arrival, h[ARRIVED] + 1)
        h[SERVED] += 1


def _differ(a, b, at, over):
    """Whether two channels' times differ, where all up to `over` are equally past."""
    return max(a[at], over) != max(b[at], over)


def _banks_differ(a, b, start):
    """Whether any bank is in another state, as far as commands from slot `start` on can see."""
    for bank in range(BANKS):
        if _differ(a, b, _OPENED + bank, start - ROW_CYCLE) or _differ(a, b, _USED + bank, start - SAME_GROUP):
            return True
        # A bank whose refresh is over is as good as never opened.
        open_a = a[_OPEN + bank] >= 0 and a[_CLOSED + bank] + REFRESH_BLOCK > start
        open_b = b[_OPEN + bank] >= 0 and b[_CLOSED + bank] + REFRESH_BLOCK > start
        if open_a != open_b:
            return True
        if open_a and (
            a[_OPEN + bank] != b[_OPEN + bank]
            or a[_CLOSED + bank] != b[_CLOSED + bank]
            or _differ(a, b, _CLOSABLE + bank, start)
        ):
            return True
    return False


def alike(a, b, start):
    """Whether two channels serve equal beats and writes equally from now on, if none may begin before slot `start`.

    Only what `place`, `commit` and `_drain` can still see of the past is compared; False where writes are waiting.
    """
    if a[HEAD] < a[TAIL] or b[HEAD] < b[TAIL] or a[SERVED] != b[SERVED] or a[WORD] != b[WORD]:
        return False
    if (
        _differ(a, b, NEWEST, start - WORDS)
        or _differ(a, b, DONE, start + READ_DONE)
        or _differ(a, b, ARRIVED, start * a[CYCLES] // a[SLOTS])
        or _differ(a, b, LAST_READ, start - READ_TO_WRITE)
        or _differ(a, b, LAST_WRITE, start - SAME_GROUP)
        or (a[LAST_WRITE] > start - SAME_GROUP and a[LAST_GROUP] != b[LAST_GROUP])
        or _banks_differ(a, b, start)
    ):
        return False
    for i in range(_LEFT, _LEFT + QUEUE_BEATS):
        if _differ(a, b, i, start):
            return False
    for i in range(_RING):
        if _differ(a, b, _ACTIVATES + i, start - ACTIVATE) or _differ(a, b, _COLUMNS + i, (start - 1 << 3) - 1):
            return False
    return True
