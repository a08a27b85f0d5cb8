"""Readers, FIFOs, block assemblers and the matrix units' front in time: docs/machine.md as a max-plus recurrence.

Everything of a channel up to the next unknown is computed at once: a pop needs the take of the block before it, a
take needs a full block in every channel, an address needs pops that free its space. Readers and matrix units are
therefore advanced together, whenever one of them starts an instruction.
"""

from dataclasses import dataclass

import numba
import numpy as np

from hw.spec.config import BLOCK_BEATS, Config
from hw.spec.isa import MxMode, StreamFormat
from hw.spec.memory import MemoryModel
from hw.spec.timing import BURST_BEATS, MX_ACC_LATENCY, MX_DRAIN_LATENCY

# Columns of a channel's state. Times are cycles, positions are beats since the start of the run.
(AR_LAST, ASKED, ARRIVED_LAST, POPPED, POP_LAST, FULL_BLOCKS, FULL_FROM, FILL, REQUEST, ROW, COLUMN,
 READING) = range(12)  # fmt: skip
# Words of the shared state: the reader's descriptor, the matrix instruction, takes and stalls.
(RD_START, RD_ADDR, RD_OUTER, RD_INNER, RD_STRIDE, RD_HEADER, TAKEN, TAKE_LAST, MX_ACTIVE, MX_NEXT, MX_BLOCKS,
 MX_KB, MX_COST, MX_READY, MX_DRAIN, DEND_1, DEND_2, WEIGHT_STALL, DRAIN_STALL, FIFO,
 LATENCY, JITTER, SEED) = range(23)  # fmt: skip
_M32 = 0xFFFFFFFF


@numba.njit(cache=True)
def _latency(g, port, request):
    """`MemoryModel.latency`."""
    if g[JITTER] == 0:
        return g[LATENCY]
    x = (g[SEED] * 0x9E3779B1 + port * 0x85EBCA77 + request * 0xC2B2AE3D) & _M32
    x ^= x >> 16
    x = (x * 0x85EBCA6B) & _M32
    x ^= x >> 13
    x = (x * 0xC2B2AE35) & _M32
    x ^= x >> 16
    return g[LATENCY] + x % (g[JITTER] + 1)


@numba.njit(cache=True)
def _ask(g, ch, port, arrivals, headers, pops):
    """Sends the reader's next address if its space is known to be free; whether it did."""
    if ch[READING] == 0:
        return False
    size = len(arrivals)
    address = (g[RD_ADDR] + ch[ROW] * g[RD_STRIDE] + ch[COLUMN]) & _M32
    n = min(BURST_BEATS, g[RD_INNER] - ch[COLUMN], 64 - address % 64)
    freeing = ch[ASKED] + n - g[FIFO] - 1
    if freeing >= ch[POPPED]:
        return False
    t = max(g[RD_START] + 1, ch[AR_LAST] + 1)
    if freeing >= 0:
        t = max(t, pops[freeing % size] + 1)
    first = t + _latency(g, port, ch[REQUEST])
    for i in range(n):
        ch[ARRIVED_LAST] = max(first + i, ch[ARRIVED_LAST] + 1)
        at = (ch[ASKED] + i) % size
        arrivals[at] = ch[ARRIVED_LAST]
        headers[at] = g[RD_HEADER] == 1 and i == 0 and ch[ROW] == 0 and ch[COLUMN] == 0
    ch[AR_LAST] = t
    ch[ASKED] += n
    ch[REQUEST] += 1
    ch[COLUMN] += n
    if ch[COLUMN] == g[RD_INNER]:
        ch[COLUMN] = 0
        ch[ROW] += 1
        if ch[ROW] == g[RD_OUTER]:
            ch[READING] = 0
    return True


@numba.njit(cache=True)
def _pop(g, ch, arrivals, headers, pops):
    """Pops beats into the assembler as far as takes are known; whether any."""
    moved = False
    size = len(arrivals)
    while ch[POPPED] < ch[ASKED] and ch[FULL_BLOCKS] <= g[TAKEN]:
        at = ch[POPPED] % size
        t = max(arrivals[at] + 1, ch[POP_LAST] + 1)
        if ch[FILL] == 0 and g[TAKEN] > 0:
            t = max(t, g[TAKE_LAST])
        pops[at] = t
        ch[POP_LAST] = t
        ch[POPPED] += 1
        moved = True
        if not headers[at]:
            ch[FILL] += 1
            if ch[FILL] == BLOCK_BEATS:
                ch[FILL] = 0
                ch[FULL_BLOCKS] += 1
                ch[FULL_FROM] = t + 1
    return moved


@numba.njit(cache=True)
def _take(g, channels):
    """Takes the matrix instruction's next block if it is full in every channel; whether it did."""
    full = 0
    for c in range(len(channels)):
        if channels[c, FULL_BLOCKS] <= g[TAKEN]:
            return False
        full = max(full, channels[c, FULL_FROM])
    step, k = g[MX_NEXT] // g[MX_KB], g[MX_NEXT] % g[MX_KB]
    ready = g[MX_READY]
    t = max(ready, full)
    g[WEIGHT_STALL] += max(0, full - ready)
    if k == 0 and step >= 2:
        free = g[DEND_2] + 1
        g[DRAIN_STALL] += max(0, free - t)
        t = max(t, free)
    g[TAKE_LAST] = t
    g[TAKEN] += 1
    g[MX_NEXT] += 1
    g[MX_READY] = t + g[MX_COST]
    if k == g[MX_KB] - 1:
        start = t + g[MX_COST] + MX_ACC_LATENCY
        if step >= 1:
            start = max(start, g[DEND_1] + 1)
        g[DEND_2] = g[DEND_1]
        g[DEND_1] = start + g[MX_DRAIN] - 1
    if g[MX_NEXT] == g[MX_BLOCKS]:
        g[MX_ACTIVE] = 0
    return True


@numba.njit(cache=True)
def _advance(g, channels, arrivals, headers, pops):
    """Moves everything as far as it is determined."""
    moved = True
    while moved:
        moved = False
        for c in range(len(channels)):
            going = True
            while going:
                going = _ask(g, channels[c], c, arrivals[c], headers[c], pops[c])
                going = _pop(g, channels[c], arrivals[c], headers[c], pops[c]) or going
                moved = moved or going
        if g[MX_ACTIVE] == 1 and _take(g, channels):
            moved = True


@dataclass
class Streams:
    """The state of all channels; with no jitter one channel stands for all."""

    config: Config
    model: MemoryModel

    def __post_init__(self):
        n = self.config.units if self.model.jitter else 1
        size = self.config.fifo_beats + 2 * BURST_BEATS
        self.channels = np.zeros((n, 12), np.int64)
        self.channels[:, (AR_LAST, ARRIVED_LAST, POP_LAST)] = -1
        self.arrivals, self.pops = (np.zeros((n, size), np.int64) for _ in range(2))
        self.headers = np.zeros((n, size), np.bool_)
        self.shared = np.zeros(23, np.int64)
        self.shared[[FIFO, LATENCY, JITTER, SEED]] = (
            self.config.fifo_beats, self.model.read_latency, self.model.jitter, self.model.seed & _M32,
        )  # fmt: skip

    def start_read(self, s: int, f: dict[str, int]) -> None:
        """RD starts at cycle s."""
        self.shared[RD_START : RD_HEADER + 1] = (
            s, f["addr"], f["n_outer"], f["n_inner"], f["stride"], f["fmt"] == StreamFormat.STREAM,
        )  # fmt: skip
        self.channels[:, (ROW, COLUMN)] = 0
        self.channels[:, READING] = 1
        self.advance()

    def start_multiply(self, s: int, f: dict[str, int]) -> None:
        """MX starts at cycle s."""
        c, n_rows = self.config, f["n_rows"]
        per_row = c.drain_cycles_a_row if f["mode"] == MxMode.SPLIT_N else 1
        self.shared[MX_ACTIVE : MX_DRAIN + 1] = (
            1, 0, f["kb"] * f["ob"], f["kb"], n_rows * c.passes, s + 1, n_rows * per_row,
        )  # fmt: skip
        self.advance()

    def advance(self) -> None:
        _advance(self.shared, self.channels, self.arrivals, self.headers, self.pops)

    def read_end(self) -> int | None:
        """End of the running RD; None while it depends on instructions that have not started."""
        return None if self.channels[:, READING].any() else int(self.channels[:, AR_LAST].max()) + 1

    def multiply_end(self) -> int | None:
        """End of the running MX, or None."""
        return None if self.shared[MX_ACTIVE] else int(self.shared[DEND_1]) + MX_DRAIN_LATENCY

    def counters(self) -> dict[str, int]:
        return {
            "mx_weight_stall": int(self.shared[WEIGHT_STALL]),
            "mx_drain_stall": int(self.shared[DRAIN_STALL]),
        }
