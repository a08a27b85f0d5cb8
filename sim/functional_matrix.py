"""The weight streams and the matrix units' meaning, through BLAS where float32 is exact."""

from collections import deque
from dataclasses import dataclass

import numpy as np

from hw.spec.config import BEAT_BYTES, BLOCK, BLOCK_BEATS, Config
from hw.spec.isa import Error, MxMode, StreamFormat, Unit
from hw.spec.timing import burst_length
from hw.spec.weights import HEADER_MAGIC
from sim.backend import MachineError
from sim.functional_checks import limit, spread
from sim.functional_sequencer import Issued
from sim.functional_state import State, rows_of_beats
from sim.memory_image import OutOfRange

EXACT_TERMS = 1024
"""float32 holds every partial sum of this many int8 products exactly: 1024 * 128 * 128 = 2**24."""
CACHE_BYTES = 2 << 30
"""Largest total of float32 matrices kept for weights that nobody writes."""


@dataclass
class Run:
    """The data beats of one RD: uint8[units, beats, 64], and where they came from when they cannot change."""

    data: np.ndarray | None
    n_beats: int
    fields: dict[str, int]
    clean: bool
    """Whether the matrix made of it may be cached under `fields`."""
    at: int = 0
    """Beats of it already given to blocks."""


class Stream:
    """What the readers have asked for and the matrix units have not taken yet; space as in the FIFOs.

    Positions count beats of one channel since the start of the program, headers included.
    """

    def __init__(self, config: Config):
        self.fifo_beats = config.fifo_beats
        self.runs: deque[Run] = deque()
        self.available = 0
        """Data beats (no headers) not yet taken."""
        self.asked = 0
        self.taken_at = 0
        """Position behind the last beat of the last block taken."""
        self._headers: deque[int] = deque()

    def start(self, run: Run, header: bool) -> None:
        if header:
            self._headers.append(self.asked)
        self.runs.append(run)
        self.asked += run.n_beats + header
        self.available += run.n_beats

    def reader_done(self) -> bool:
        """Whether every address is out, given that the assembler holds one more block than was taken."""
        return self.asked - self._after_block(self.taken_at) <= self.fifo_beats

    def _after_block(self, position: int) -> int:
        """Position behind the next whole block, or everything when there is none."""
        beats = 0
        headers = iter(self._headers)
        header = next(headers, None)
        while beats < BLOCK_BEATS and position < self.asked:
            if position == header:
                header = next(headers, None)
            else:
                beats += 1
            position += 1
        return position

    def take(self, blocks: int) -> list[tuple[Run, int, int]]:
        """(run, first beat, beats) of this many whole blocks, which must be available."""
        pieces, need = [], blocks * BLOCK_BEATS
        self.available -= need
        self._move(need)
        while need:
            run = self.runs[0]
            n = min(need, run.n_beats - run.at)
            pieces.append((run, run.at, n))
            run.at += n
            need -= n
            if run.at == run.n_beats:
                self.runs.popleft()
        return pieces

    def _move(self, beats: int) -> None:
        end = self.taken_at + beats
        while self._headers and self._headers[0] < end:
            self._headers.popleft()
            end += 1
        self.taken_at = end


def read(state: State, entry: Issued) -> tuple[Run, bool]:
    """RD: (the run of data beats, whether a header stands before it). Headers are checked here."""
    f, config = entry.fields, state.config
    n_beats = f["n_outer"] * f["n_inner"]
    header = f["fmt"] == StreamFormat.STREAM
    try:
        clean = all(
            state.memory.ports[u].clean_region(a * BEAT_BYTES, f["n_inner"] * BEAT_BYTES)
            for u in range(config.units)
            for a in rows_of_beats(f)
        )
        # What may be written later is read now; what nobody writes when it is needed.
        data = None if clean else _read(state, f)
        if header:
            _check_headers(state, f, entry)
    except OutOfRange:
        raise MachineError(Error.BUS_READ, Unit.RD, entry.pc) from None
    state.counters["read_beats_channels"] += n_beats * config.units
    return Run(data, n_beats - header, f, clean), header


def _check_headers(state: State, f: dict[str, int], entry: Issued) -> None:
    for unit in range(state.config.units):
        magic, bits, nonzeros, zero = state.memory.read(unit, f["addr"] * BEAT_BYTES, 4).tolist()
        if (magic, bits, nonzeros, zero) != (HEADER_MAGIC, 8, BLOCK, 0):
            raise MachineError(Error.STREAM_HEADER, Unit.MX, entry.pc)


def _read(state: State, f: dict[str, int]) -> np.ndarray:
    """Data beats of every unit, the header cut off: int8[units, beats, 64]."""
    n = f["n_inner"] * BEAT_BYTES
    rows = rows_of_beats(f)
    units = []
    for unit in range(state.config.units):
        parts = [state.memory.read(unit, a * BEAT_BYTES, n) for a in rows]
        units.append(parts[0] if len(parts) == 1 else np.concatenate(parts))
    skip = int(f["fmt"] == StreamFormat.STREAM)
    return np.stack(units).view(np.int8).reshape(state.config.units, -1, BEAT_BYTES)[:, skip:]


def _data(state: State, run: Run) -> np.ndarray:
    """What `_read` gives, read once a run."""
    if run.data is None:
        run.data = _read(state, run.fields)
    return run.data


def matrix(state: State, f: dict[str, int], pieces: list[tuple[Run, int, int]]) -> np.ndarray:
    """The weights as float32[inputs, outputs] for BLAS, from the blocks in stream order."""
    key = None
    if len(pieces) == 1 and pieces[0][0].clean:
        run, first, n = pieces[0]
        key = (*run.fields.values(), first, n, f["kb"], f["ob"], f["mode"])
        if key in state.memory.cache:
            return state.memory.cache[key]
    parts = [_data(state, run)[:, first : first + n] for run, first, n in pieces]
    data = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    blocks = data.reshape(state.config.units, f["ob"], f["kb"], BLOCK, BLOCK)
    # SPLIT_N: outputs (ob, unit, row), inputs (kb, column); SPLIT_K: outputs (ob, row), inputs (kb, unit, column).
    order = (2, 4, 1, 0, 3) if f["mode"] == MxMode.SPLIT_N else (2, 0, 4, 1, 3)
    columns = f["ob"] * BLOCK * (state.config.units if f["mode"] == MxMode.SPLIT_N else 1)
    out = blocks.transpose(order).reshape(-1, columns).astype(np.float32)
    if key is not None:
        _keep(state.memory.cache, key, out)
    for run, _, _ in pieces:
        if run.at == run.n_beats and run.clean:
            run.data = None
    return out


def _keep(cache: dict, key: tuple, value: np.ndarray) -> None:
    """Keeps a matrix, dropping the oldest ones beyond the budget."""
    held = cache.get("bytes", 0) + value.nbytes
    while held > CACHE_BYTES and len(cache) > 1:
        oldest = next(k for k in cache if k != "bytes")
        held -= cache.pop(oldest).nbytes
    cache[key] = value
    cache["bytes"] = held


def multiply(state: State, entry: Issued, pieces: list[tuple[Run, int, int]]) -> None:
    """MX: products of OB rows with the streamed blocks into AB, see `MxMode`."""
    f = entry.fields
    n_rows, units = f["n_rows"], state.config.units
    wide = f["mode"] == MxMode.SPLIT_N
    act = spread(f["act"], (n_rows, f["act_stride"]), (f["kb"] * (1 if wide else units), 1))
    to = spread(f["dst"], (n_rows, f["dst_stride"]), (f["ob"] * (units if wide else 1), 1))
    limit(entry, act, len(state.ob))
    limit(entry, to, len(state.ab))
    x = state.ob[act].reshape(n_rows, -1).astype(np.float32)
    w = matrix(state, f, pieces)
    total = (x[:, :EXACT_TERMS] @ w[:EXACT_TERMS]).astype(np.int32)
    for k in range(EXACT_TERMS, len(w), EXACT_TERMS):
        total += (x[:, k : k + EXACT_TERMS] @ w[k : k + EXACT_TERMS]).astype(np.int32)
    state.ab[to] = total.reshape(n_rows, -1, BLOCK)


def bursts(f: dict[str, int]) -> list[int]:
    """Lengths in beats of an LD's or RD's bursts, in order."""
    out = []
    for address in rows_of_beats(f):
        left = f["n_inner"]
        while left:
            n = burst_length(address, left)
            out.append(n)
            address, left = address + n, left - n
    return out
