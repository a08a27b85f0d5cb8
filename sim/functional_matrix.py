"""The weight streams and the matrix units' meaning, through BLAS where float32 is exact."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from hw.spec.config import BEAT_BYTES, BLOCK, BLOCK_BEATS, Config
from hw.spec.csr import RD_BEATS
from hw.spec.isa import WORD_MASK, Error, MxMode, StreamFormat, Unit
from hw.spec.legal import WORD, max_beats, read_beyond, result_beyond, signed, size_beats, work
from hw.spec.run import MachineError
from hw.spec.timing import WEIGHT_BUFFER_ROUNDS, burst_length
from hw.spec.weights import WINDOW
from sim import weight_stream
from sim.functional_checks import spread
from sim.functional_sequencer import Issued
from sim.functional_state import State, rows_of_beats
from sim.memory_image import MemoryImage
from sim.weight_stream import LAST, MORE, STEP_MASK, STEP_SHIFT, WINDOW_SHIFT

EXACT_TERMS = 1024
"""float32 holds every partial sum of this many int8 products exactly: 1024 * 128 * 128 = 2**24."""
LARGEST = 128
"""Largest magnitude of a weight for which EXACT_TERMS holds; only repeated indices or blocks give larger ones."""
CACHE_BYTES = 2 << 30
"""Largest total of float32 matrices kept for weights that nobody writes."""


@dataclass
class Run:
    """The beats of one RD: uint8[units, beats, 64], and where they came from when they cannot change."""

    data: np.ndarray | None
    n_beats: int
    fields: dict[str, int]
    clean: bool
    """Whether the matrix made of it may be cached under `fields`."""
    plans: weight_stream.Plans | None
    """None for RAW."""
    n_rounds: int = 0
    """Rounds that beats of it complete."""
    start: int = 0
    """Beats of a channel to be asked for before."""
    offset: int = 0
    """RAW: beats of it that still belong to the round before."""
    at: int = 0
    """Rounds of it already taken."""
    raw_at: int = 0
    """RAW: beats of it already taken."""

    def rounds_of(self, unit: int) -> int:
        """Rounds that beats of it complete in a unit's channel."""
        return len(self.plans.of(unit).ends) if self.plans and self.n_rounds else self.n_rounds

    def behind(self, unit: int, number: int) -> int:
        """Beats of the unit's channel up to the end of this round of the run."""
        if self.plans:
            return self.start + self.plans.last_beat(unit, number, self.n_beats) + 1
        return self.start + self.offset + (number + (self.offset == 0)) * BLOCK_BEATS


@dataclass
class Piece:
    """What an MX took of a run: STREAM: rounds, RAW: beats; and the steps that end in it."""

    run: Run
    first: int
    n: int
    steps: int

    @property
    def key(self) -> tuple[int, ...]:
        return (*self.run.fields.values(), self.first, self.n)


class Stream:
    """What the readers have asked for and the matrix units have not taken yet; space as in the FIFOs."""

    def __init__(self, config: Config):
        self.config = config
        self.asked = 0
        """Beats of one channel that were to be read since the start of the program."""
        self._entry: Issued | None = None
        """The RD that started last: faults of any bear its pc."""
        self._absent: int | None = None
        """The beat behind the first burst beyond the memory."""
        self._wrong: list[int | None] = [None] * config.units
        """Each unit's first beat that is no header where one belongs, or one where none does."""
        self._open = [False] * config.units
        """The unit's latest stream ends inside a run."""
        self.taken = 0
        """Rounds since the start of the program."""
        self._rounds: deque[Run] = deque()
        """Runs with rounds not yet taken."""
        self._raw: deque[Run] = deque()
        """RAW runs with beats not yet taken."""
        self._raw_fill = 0
        """Beats of the RAW round that is not complete yet."""

    def start(self, run: Run, entry: Issued) -> None:
        """The readers start."""
        run.start, self._entry = self.asked, entry
        self.asked += work(Unit.RD, run.fields)
        absent = _absent_burst(self.config, run.fields)
        if absent is not None and self._absent is None:
            self._absent = run.start + absent
        if self._mark_wrong(run):
            return
        if run.plans:
            run.n_rounds = run.plans.n_rounds
        else:
            run.n_rounds, rest = divmod(self._raw_fill + run.n_beats, BLOCK_BEATS)
            run.offset = -self._raw_fill % BLOCK_BEATS
            self._raw_fill = rest
            self._raw.append(run)
        if run.n_rounds:
            self._rounds.append(run)

    def _mark_wrong(self, run: Run) -> bool:
        """Notes each unit's first wrong beat; whether one is the run's first: then no round of it is ever complete."""
        for unit in range(self.config.units):
            plan = run.plans.of(unit) if run.plans else None
            bad = plan.bad if plan else -1
            if self._open[unit] or (plan and self._raw_fill):
                bad = 0
            if bad >= 0 and self._wrong[unit] is None:
                self._wrong[unit] = run.start + bad
            self._open[unit] = bool(plan and plan.missing)
        return run.start in self._wrong

    def check(self) -> None:
        """MachineError for a beat that has come and is beyond the memory, or is wrong."""
        for unit in range(self.config.units):
            popped, wrong = self._popped(unit), self._wrong[unit]
            if self._absent is not None and self._absent - popped <= self.config.fifo_beats:
                raise self._fault(Error.BUS_READ)
            if wrong is not None and wrong < popped:
                raise self._fault(Error.STREAM_HEADER)

    def _fault(self, status: Error) -> MachineError:
        assert self._entry is not None
        return MachineError(status, Unit.RD, self._entry.pc)

    def reader_done(self) -> bool:
        """Whether every address is out: the fronts pop beats until their weight buffers are full."""
        return all(self.asked - self._popped(u) <= self.config.fifo_beats for u in range(self.config.units))

    def _popped(self, unit: int) -> int:
        ahead = WEIGHT_BUFFER_ROUNDS
        for run in self._rounds:
            left = run.rounds_of(unit) - run.at
            if ahead <= left:
                return run.behind(unit, run.at + ahead - 1)
            ahead -= left
        return self.asked

    def take(self, job: "Job") -> None:
        """Gives an MX what is there of the rounds that it still needs."""
        while job.left and self._rounds:
            run = self._rounds[0]
            first = run.at
            if run.plans:
                job.enter(StreamFormat.STREAM)
                n, steps = self._take_stream(run, run.plans, job)
                if n:
                    job.pieces.append(Piece(run, first, n, steps))
            else:
                job.enter(StreamFormat.RAW)
                n, steps = self._take_raw(run, job)
            if not n:
                return
            job.finish_steps(steps)
            self.taken += n
            run.at += n
            if run.at == run.n_rounds:
                self._rounds.popleft()

    def _take_stream(self, run: Run, plans: weight_stream.Plans, job: "Job") -> tuple[int, int]:
        before = int(np.searchsorted(plans.group_ends, run.at))
        held = len(plans.group_ends) - before
        sizes = job.groups(held + 1)
        groups = min(len(sizes), held)
        whole = groups == len(sizes)
        n = int(plans.group_ends[before + groups - 1]) + 1 - run.at if whole else run.n_rounds - run.at
        there = min(run.rounds_of(u) for u in range(self.config.units)) - run.at
        agreed = min(n, there, plans.agree - run.at)
        info = plans.units[0].info[run.at : run.at + agreed].astype(np.int64)
        fitting, ended = job.meet_groups(info, sizes)
        steps = np.concatenate([[0], np.cumsum(sizes)])
        group = np.cumsum(ended) - ended
        places = steps[group] + (info >> STEP_SHIFT & STEP_MASK)
        job.meet_windows(places[:fitting], (info[:fitting] >> WINDOW_SHIFT) * WINDOW)
        if agreed < min(n, there) or fitting < agreed:
            raise job.refused()
        if agreed:
            job.k = 0 if ended[-1] else job.k + agreed
        return agreed, int(steps[int(ended.sum())])

    def _take_raw(self, run: Run, job: "Job") -> tuple[int, int]:
        kb = job.entry.fields["kb"]
        if job.entry.fields["group"] > 1:
            raise job.refused()
        n = min(job.left * kb - job.k, run.n_rounds - run.at)
        number = job.k + np.arange(n)
        job.meet_blocks(number // kb, number % kb)
        steps, job.k = divmod(job.k + n, kb)
        need, done = n * BLOCK_BEATS, steps
        while need:
            source = self._raw[0]
            beats = min(need, source.n_beats - source.raw_at)
            job.pieces.append(Piece(source, source.raw_at, beats, done))
            source.raw_at += beats
            need, done = need - beats, 0
            if source.raw_at == source.n_beats:
                self._raw.popleft()
        return n, steps


@dataclass
class Job:
    """An MX being executed: what it took so far."""

    config: Config
    entry: Issued
    left: int
    """Steps to go."""
    k: int = 0
    """Rounds of the current group (RAW: step) so far."""
    touched: int = 0
    """Steps of the current group that have rounds, a bit each."""
    format: StreamFormat | None = None
    pieces: list[Piece] = field(default_factory=list)

    def enter(self, kind: StreamFormat) -> None:
        """Rounds of this format come next: a step has one format, SPLIT_K none but RAW."""
        mixed = self.k and kind != self.format
        self.format = kind
        if mixed or (kind == StreamFormat.STREAM and self.entry.fields["mode"] == MxMode.SPLIT_K):
            raise self.refused()

    def groups(self, most: int) -> list[int]:
        """Steps of the groups to go, of so many at most: a descriptor may ask for 2**64 steps."""
        f = self.entry.fields
        total, size = f["n_outer"] * f["ob"], max(1, f["group"])
        done, found = total - self.left, list[int]()
        while done < total and len(found) < most:
            found.append(min(size, f["ob"] - done % f["ob"]))
            done += found[-1]
        return found

    def meet_groups(self, info: np.ndarray, sizes: list[int]) -> tuple[int, np.ndarray]:
        """(how many of these rounds fit the groups to go, which of them end a group): all of its steps have rounds."""
        ended = (info & (LAST | MORE)) == LAST
        bounds = np.flatnonzero(ended) + 1
        for size, part in zip(sizes, np.split(np.arange(len(info)), bounds), strict=False):
            places = info[part] >> STEP_SHIFT & STEP_MASK
            wrong = np.flatnonzero(places >= size)
            if len(wrong):
                return int(part[wrong[0]]), ended
            for place in np.unique(places).tolist():
                self.touched |= 1 << place
            if len(part) and ended[part[-1]]:
                if self.touched != (1 << size) - 1:
                    return int(part[-1]), ended
                self.touched = 0
        return len(info), ended

    def meet_windows(self, steps: np.ndarray, blocks: np.ndarray) -> None:
        """STREAM rounds come next, `steps` counted from the step being made, with these first blocks."""
        beyond = np.flatnonzero(blocks >= self.entry.fields["kb"])
        fitting = slice(int(beyond[0]) if len(beyond) else None)
        self._meet(steps[fitting], blocks[fitting])
        if len(beyond):
            raise self.refused()

    def meet_blocks(self, steps: np.ndarray, blocks: np.ndarray) -> None:
        """RAW rounds come next, each for these blocks of the activations."""
        self._meet(steps, blocks * (self.config.units if self.entry.fields["mode"] == MxMode.SPLIT_K else 1))

    def _meet(self, steps: np.ndarray, blocks: np.ndarray) -> None:
        """BUFFER_RANGE for rounds of which a row's first block is beyond OB."""
        f, size = self.entry.fields, self.config.ob_blocks
        most = f["act"] + (f["n_outer"] - 1) * f["act_out"] + (f["n_rows"] - 1) * f["act_stride"]
        if not len(blocks) or most + int(blocks.max()) < size:
            return  # nearly always
        outer = (steps + (f["n_outer"] * f["ob"] - self.left)) // f["ob"]
        first = f["act"] + outer * signed(f["act_out"]) + blocks
        rows = np.arange(f["n_rows"])
        there = rows < np.where(outer == f["n_outer"] - 1, f["n_last"] or f["n_rows"], f["n_rows"])[:, None]
        if (there & ((first[:, None] + rows * signed(f["act_stride"]) & WORD_MASK) >= size)).any():
            raise MachineError(Error.BUFFER_RANGE, Unit.MX, self.entry.pc)

    def finish_steps(self, steps: int) -> None:
        """So many steps are complete; BUFFER_RANGE if results of one are beyond AB."""
        f = self.entry.fields
        self.left -= steps
        beyond = result_beyond(self.config, f)
        if beyond and beyond[0] < f["n_outer"] * f["ob"] - self.left:
            raise MachineError(Error.BUFFER_RANGE, Unit.MX, self.entry.pc)

    def refused(self) -> MachineError:
        return MachineError(Error.STREAM_HEADER, Unit.MX, self.entry.pc)


def _absent_burst(config: Config, f: dict[str, int]) -> int | None:
    """The beat of an RD behind its first burst that is beyond the memory."""
    beat = read_beyond(f, size_beats(config.channel_bytes))
    if beat is None:
        return None
    row, column = divmod(beat, f["n_inner"])
    return beat + burst_length((f["addr"] + row * f["stride"] + column) % WORD, f["n_inner"] - column)


def segments(config: Config, f: dict[str, int]) -> list[weight_stream.Segment]:
    """The beats of an RD that are in memory, up to the first that is not, as far as simulators follow it."""
    absent = read_beyond(f, size_beats(config.channel_bytes))
    return rows_of_beats(f, max_beats(config) if absent is None else min(absent, max_beats(config)))


def plans_of(memory: MemoryImage, f: dict[str, int]) -> weight_stream.Plans | None:
    """The rounds of an RD's streams, None for RAW."""
    if f["fmt"] != StreamFormat.STREAM:
        return None
    return weight_stream.plans(memory, segments(memory.config, f))


def read(state: State, entry: Issued) -> Run:
    """RD: its beats."""
    f, config = entry.fields, state.config
    places = segments(config, f)
    n_beats = sum(n for _, n in places)
    clean = all(
        state.memory.ports[u].clean_region(a * BEAT_BYTES, n * BEAT_BYTES)
        for u in range(config.units)
        for a, n in places
    )
    # What may be written later is read now; what nobody writes when it is needed.
    data = None if clean else _read(state, f)
    state.count(n_beats * config.units, "read_beats_channels", RD_BEATS[StreamFormat(f["fmt"])])
    return Run(data, n_beats, f, clean, plans_of(state.memory, f))


def _read(state: State, f: dict[str, int]) -> np.ndarray:
    """Beats of every unit: uint8[units, beats, 64]."""
    units = range(state.config.units)
    return np.stack([_unit_beats(state, f, unit) for unit in units])


def _unit_beats(state: State, f: dict[str, int], unit: int) -> np.ndarray:
    """Beats of one unit: uint8[beats, 64], a view where one attached array holds them all."""
    parts = [state.memory.read(unit, a * BEAT_BYTES, n * BEAT_BYTES) for a, n in segments(state.config, f)]
    if not parts:
        return np.zeros((0, BEAT_BYTES), np.uint8)
    return (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(-1, BEAT_BYTES)


def _data(state: State, run: Run) -> np.ndarray:
    """What `_read` gives, read once a run."""
    if run.data is None:
        run.data = _read(state, run.fields)
    return run.data


def matrix(state: State, f: dict[str, int], pieces: list[Piece]) -> np.ndarray:
    """The weights as float32[inputs, outputs] for BLAS, from the rounds in stream order.

    SPLIT_N: inputs (kb, column), in whole windows where weights lie behind kb; outputs (ob, unit, row). SPLIT_K:
    inputs (kb, unit, column), outputs (ob, row). float64 where weights of one input add up to more than an int8.
    """
    key = None
    if all(piece.run.clean for piece in pieces):
        key = (tuple(piece.key for piece in pieces), f["kb"], f["ob"], f["mode"])
        if key in state.memory.cache:
            return state.memory.cache[key]
    groups = [list(g) for _, g in groupby(pieces, key=lambda piece: piece.run.plans is None)]
    parts = [_raw(state, f, g) if g[0].run.plans is None else _streamed(state, f, g) for g in groups]
    inputs = max(len(part) for part in parts)
    parts = [np.pad(part, ((0, inputs - len(part)), (0, 0))) for part in parts] if len(parts) > 1 else parts
    out = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    if key is not None:
        _keep(state.memory.cache, key, out)
    return out


def _raw(state: State, f: dict[str, int], pieces: list[Piece]) -> np.ndarray:
    parts = [_data(state, p.run)[:, p.first : p.first + p.n] for p in pieces]
    data = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    blocks = data.view(np.int8).reshape(state.config.units, -1, f["kb"], BLOCK, BLOCK)
    order = (2, 4, 1, 0, 3) if f["mode"] == MxMode.SPLIT_N else (2, 0, 4, 1, 3)
    columns = blocks.shape[1] * BLOCK * (state.config.units if f["mode"] == MxMode.SPLIT_N else 1)
    out = blocks.transpose(order).reshape(-1, columns).astype(np.float32)
    for p in pieces:
        if p.run.raw_at == p.run.n_beats and p.run.clean:
            p.run.data = None
    return out


def _streamed(state: State, f: dict[str, int], pieces: list[Piece]) -> np.ndarray:
    units, inputs = state.config.units, f["kb"] * BLOCK
    steps = sum(p.steps for p in pieces)
    stride = units * BLOCK
    windows = 1 + max(_last_window(p) for p in pieces)  # not kb, which no stream bounds
    out = np.zeros((windows * WINDOW * BLOCK, steps * stride), np.float32)
    step, largest = 0, 0
    for p in pieces:
        for unit in range(units):
            beats = p.run.data[unit] if p.run.data is not None else _unit_beats(state, p.run.fields, unit)
            runs = weight_stream.follow(beats)[1]
            first, last = np.searchsorted(runs[:, weight_stream.ROUND], (p.first, p.first + p.n)).tolist()
            chosen = runs[first:last]
            column = step * stride + unit * BLOCK
            start = int(chosen[0, weight_stream.GROUP])
            largest = max(largest, weight_stream.add_weights(beats, chosen, start, out, column, stride))
        step += p.steps
    if not out[inputs:].any():
        out = out[:inputs]
    return out if largest <= LARGEST else out.astype(np.float64)


def _last_window(piece: Piece) -> int:
    assert piece.run.plans is not None
    return int(piece.run.plans.units[0].info[piece.first : piece.first + piece.n].max()) >> WINDOW_SHIFT


def _keep(cache: dict, key: tuple, value: np.ndarray) -> None:
    """Keeps a matrix, dropping the oldest ones beyond the budget."""
    held = cache.get("bytes", 0) + value.nbytes
    while held > CACHE_BYTES and len(cache) > 1:
        oldest = next(k for k in cache if k != "bytes")
        held -= cache.pop(oldest).nbytes
    cache[key] = value
    cache["bytes"] = held


def multiply(state: State, job: Job) -> None:
    """MX: products of OB rows with the streamed weights into AB, see `MxMode`."""
    f = job.entry.fields
    n_rows, units = f["n_rows"], state.config.units
    outer, each = f["n_outer"], units if f["mode"] == MxMode.SPLIT_N else 1
    # Results are written step after step, in a step row after row: the last one stays.
    to = spread(f["dst"], (outer, f["dst_out"]), (f["ob"], each), (n_rows, f["dst_stride"]), (each, 1))
    w, turns = _turns(state, f, job.pieces)
    act = spread(f["act"], (outer, f["act_out"]), (n_rows, f["act_stride"]), (len(w) // BLOCK, 1)) % len(state.ob)
    x = state.ob[act].reshape(turns, outer // turns * n_rows, -1).astype(w.dtype)
    for o, columns in enumerate(np.split(w, turns, axis=1)):
        total = np.zeros((x.shape[1], columns.shape[1]), np.int32)
        for k in range(0, len(w), EXACT_TERMS):
            total += (x[o, :, k : k + EXACT_TERMS] @ columns[k : k + EXACT_TERMS]).astype(np.int32)
        for i, part in enumerate(total.reshape(outer // turns, n_rows, f["ob"], each, BLOCK)):
            turn = o + i
            rows = f["n_last"] or n_rows if turn == outer - 1 else n_rows
            state.ab[to[turn][:, :rows]] = part[:rows].transpose(1, 0, 2, 3)


def _turns(state: State, f: dict[str, int], pieces: list[Piece]) -> tuple[np.ndarray, int]:
    """(weights, how many outer turns' they are): those of one turn, if the channels bring the same again and again."""
    run, outer = pieces[0].run, f["n_outer"]
    again = len(pieces) == 1 and outer > 1 and (run.fields["n_outer"], run.fields["stride"]) == (outer, 0)
    if again and run.plans and pieces[0].n == run.n_rounds:
        first = Piece(run, 0, run.n_rounds // outer, f["ob"])
        return matrix(state, f, [first]), 1
    return matrix(state, f, pieces), outer


def bursts(f: dict[str, int]) -> Iterator[int]:
    """Lengths in beats of an LD's or RD's bursts, in order."""
    for row in range(f["n_outer"]):
        address, left = (f["addr"] + row * f["stride"]) % WORD, f["n_inner"]
        while left:
            n = burst_length(address, left)
            yield n
            address, left = address + n, left - n
