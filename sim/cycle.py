"""The cycle simulator: when each instruction starts and ends, by events and recurrences, exact to docs/machine.md.

It executes instructions, not clock ticks. Data is moved only `with_data`; without it LDS reads what the memory
image holds, so a program must not load scalars that it stored itself.
"""

import heapq
import math
from collections import Counter, deque
from operator import itemgetter

from hw.spec.config import BEAT_BYTES, Config
from hw.spec.csr import COUNTERS, LD_BEATS, RD_BEATS, store_counter
from hw.spec.isa import SEMAPHORE_MAX, Error, LdKind, Op, StMode, StreamFormat, Unit
from hw.spec.memory import MemoryModel
from hw.spec.run import KEEP_PROGRAM, Event, Invocation, MachineError, Result
from hw.spec.timing import (
    LDS_RETURN,
    SEQ_AFTER_FETCH,
    SEQ_FIRST,
    SEQ_INTERVAL,
    ST_PIPE,
    VU_LATENCY,
)
from sim.cycle_streams import NEVER, Streams
from sim.functional import Executor, fetch_beats
from sim.functional_checks import check
from sim.functional_matrix import bursts, plans_of
from sim.functional_sequencer import Issued, Sequencer
from sim.functional_state import cache_writes
from sim.memory_image import MemoryImage

FETCH_FIRST_AR = 1
"""The program fetch presents its burst j at cycle FETCH_FIRST_AR + j, like an LD that starts at cycle 0."""
UNITS = tuple(Unit)
_WORK = {
    Unit.LD: ("n_outer", "n_inner"), Unit.ST: ("n_tok", "n_head", "n_gran"), Unit.RD: ("n_outer", "n_inner"),
    Unit.MX: ("n_outer", "n_rows", "kb", "ob"), Unit.VU: ("n_outer", "n_mid", "n_words"),
}  # fmt: skip
"""Fields whose product is `Event.work`."""
_WORK_OF = [itemgetter(*_WORK[unit]) for unit in UNITS]
_BUSY, _WAIT = ([f"{what}_{unit.name.lower()}" for unit in UNITS] for what in ("busy", "wait"))
_MEMBERS = [tuple(u for u in range(len(UNITS)) if mask >> u & 1) for mask in range(1 << len(UNITS))]
"""Numbers of the units in a mask."""
_ALL = (1 << len(UNITS)) - 1
_ITEM_BYTES = {StMode.LIN: BEAT_BYTES, StMode.K: 16, StMode.V: 16, StMode.SC: 4}


class AuxReads:
    """The auxiliary port's read channel."""

    def __init__(self, config: Config, model: MemoryModel):
        self.port, self.model = config.aux_port, model
        self.requests, self.last = 0, -1
        self.beats: Counter[str] = Counter()
        """By counter."""

    def read(self, t: int, n_beats: int, counter: str) -> int:
        """Cycle of the last beat of a burst whose address is accepted at t."""
        first = max(t + self.model.latency(self.port, self.requests), self.last + 1)
        self.requests += 1
        self.beats[counter] += n_beats
        self.last = first + n_beats - 1
        return self.last


class CycleMachine:
    """One run: the sequencer, five queues, and the times at which something may happen."""

    def __init__(self, config: Config, memory: MemoryImage, call: Invocation, model: MemoryModel, with_data: bool):
        self.config, self.memory, self.call, self.model = config, memory, call, model
        self.sequencer = Sequencer(config, memory, call)
        self.executor = Executor(config, memory) if with_data else None
        self.aux, self.streams = AuxReads(config, model), Streams(config, model)
        self.queues: list[deque[Issued]] = [deque() for _ in Unit]
        self.running: list[tuple[Issued, int] | None] = [None for _ in Unit]
        self.idle_from = [0] * len(Unit)
        self.semaphores = [[0] * len(Unit) for _ in Unit]
        """[consumer][producer]"""
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.trace: list[Event] = []
        self.wakes: list[int] = []
        self.ends: list[tuple[int, int]] = []
        self.undetermined: set[Unit] = set()
        """Running RD and MX whose ends depend on instructions that have not started."""
        self.ready = 0
        """Earliest cycle of the sequencer's next instruction."""
        self.lds_done: int | None = None
        self.retired = 0
        """Cycle of the latest instruction, for the watchdog."""
        self.now = 0
        self.halted: int | None = None

    def run(self) -> None:
        self.ready = self._fetch()
        self._scalars()
        while self.halted is None:
            self._follow_streams()
            if not self.wakes:
                self.now = self.retired + self.call.watchdog
                raise self.sequencer.fail(Error.WATCHDOG)
            self.now = heapq.heappop(self.wakes)
            while self.wakes and self.wakes[0] == self.now:
                heapq.heappop(self.wakes)
            self._cycle(self.now)

    def _fetch(self) -> int:
        beats = fetch_beats(self.call)
        if self.call.flags & KEEP_PROGRAM or not beats:
            return SEQ_FIRST
        lengths = bursts({"addr": self.call.program_addr, "n_outer": 1, "n_inner": beats, "stride": 0})
        last = max(self.aux.read(FETCH_FIRST_AR + j, n, "read_beats_fetch") for j, n in enumerate(lengths))
        return last + SEQ_AFTER_FETCH

    def _follow_streams(self) -> None:
        """Lets the streams go on up to the next cycle in which anything else may happen."""
        patience = self.retired + self.call.watchdog if self.call.watchdog else NEVER
        while self.streams.next_known:
            until = min(self.wakes[0] if self.wakes else NEVER, patience)
            if self.streams.next_known > until:
                return
            fine = self.streams.advance(self.streams.next_known, until)
            self.now = self.streams.known
            self._streams_moved(None, fine)

    def _cycle(self, t: int) -> None:
        """Everything that happens at t; the sequencer sees the state before the starts of t."""
        while self.ends and self.ends[0][0] < t:
            e, unit = heapq.heappop(self.ends)
            self._end(unit, e)
        if self.ready <= t:
            self._sequence(t)
        for unit, queue in enumerate(self.queues):
            if queue and self.running[unit] is None:
                self._start(unit, t)

    # --- sequencer ---------------------------------------------------------------------------------------

    def _scalars(self) -> None:
        """Executes scalar instructions up to the next ISSUE, FENCE, LDS or HALT, due at `ready`."""
        n = self.sequencer.run_scalars()
        if n:
            self.retired = self.ready + (n - 1) * SEQ_INTERVAL
            self.ready += n * SEQ_INTERVAL
        heapq.heappush(self.wakes, self.ready)

    def _sequence(self, t: int) -> None:
        s = self.sequencer
        op, a, b, c, imm = s.current()
        watchdog = self.call.watchdog
        if watchdog and t - self.retired > watchdog:
            self.now = self.retired + watchdog
            raise s.fail(Error.WATCHDOG)
        if op == Op.ISSUE:
            if len(self.queues[a]) >= self.config.queue_depth:
                return
            entry = s.issue(a, b, c)
            entry.visible = t + 1
            self.queues[a].append(entry)
            heapq.heappush(self.wakes, t + 1)
            self._retire(t, "stall_queue")
        elif op == Op.LDS:
            self._load_scalar(t, a, b, imm)
        elif self._idle(imm if op == Op.FENCE else ~0):
            self._fence(t, op, imm)

    def _load_scalar(self, t: int, a: int, b: int, imm: int) -> None:
        if self.lds_done is None:
            if self._idle(1 << Unit.LD):
                self.lds_done = self.aux.read(t, 1, "read_beats_scalars") + LDS_RETURN
                heapq.heappush(self.wakes, self.lds_done)
        elif t >= self.lds_done:
            self.lds_done = None
            self.sequencer.load(self.memory, self.config.aux_port, a, b, imm)
            self._retire(t, "stall_lds")

    def _fence(self, t: int, op: int, imm: int) -> None:
        if op == Op.FENCE:
            self.sequencer.retire()
            self._retire(t, "stall_fence")
            return
        self.counters["stall_fence"] += t - self.ready
        self.sequencer.executed += 1
        self.halted = t
        if imm:
            raise MachineError(Error.HALT_CODE, imm, self.sequencer.pc)

    def _retire(self, t: int, stall: str) -> None:
        self.counters[stall] += t - self.ready
        self.retired = t
        self.ready = t + SEQ_INTERVAL
        self._scalars()

    def _idle(self, mask: int) -> bool:
        return not any(self.running[unit] or self.queues[unit] for unit in _MEMBERS[mask & _ALL])

    # --- units -------------------------------------------------------------------------------------------

    def _start(self, unit: int, t: int) -> None:
        entry = self.queues[unit][0]
        if entry.visible > t:
            return
        producers, semaphores = _MEMBERS[entry.wait], self.semaphores[unit]
        for p in producers:
            if not semaphores[p]:
                return
        for p in producers:
            semaphores[p] -= 1
        self.queues[unit].popleft()
        self.counters[_WAIT[unit]] += t - max(entry.visible, self.idle_from[unit])
        check(self.config, entry)
        if self.executor:
            self.executor.begin(entry)
        self.running[unit] = entry, t
        heapq.heappush(self.wakes, t + 1)
        _TIMES[unit](self, t, entry)

    def _ends_at(self, unit: int, e: int) -> None:
        """The unit's running instruction ends at e."""
        running = self.running[unit]
        assert running is not None
        entry, s = running
        self.trace.append(Event(s, UNITS[unit], entry.pc, e, math.prod(_WORK_OF[unit](entry.fields))))
        self.counters[_BUSY[unit]] += e - s
        heapq.heappush(self.ends, (e, unit))
        heapq.heappush(self.wakes, e + 1)

    def _end(self, unit: int, e: int) -> None:
        running = self.running[unit]
        assert running is not None
        entry, _ = running
        if self.executor and unit != Unit.RD:
            self.executor.finish(entry)
        self.running[unit] = None
        self.idle_from[unit] = e + 1
        for consumer in _MEMBERS[entry.signal]:
            self.semaphores[consumer][unit] += 1
            if self.semaphores[consumer][unit] > SEMAPHORE_MAX:
                raise MachineError(Error.SEMAPHORE, unit, entry.pc)

    def _load(self, t: int, entry: Issued) -> None:
        f = entry.fields
        counter = LD_BEATS[LdKind(f["kind"])]
        last = max(self.aux.read(t + 1 + j, n, counter) for j, n in enumerate(bursts(f)))
        self._ends_at(Unit.LD, last + 1)

    def _store(self, t: int, entry: Issued) -> None:
        f = entry.fields
        items = f["n_tok"] * f["n_head"] * f["n_gran"]
        beats = items * (4 if f["mode"] == StMode.V else 1)
        to = "write_bytes_channels" if f["mode"] in (StMode.K, StMode.V) else "write_bytes_aux"
        for name in (to, store_counter(f["mode"], f["kind"])):
            self.counters[name] += items * _ITEM_BYTES[StMode(f["mode"])]
        if self.model.hbm and f["mode"] in (StMode.K, StMode.V):
            self.streams.write(t + 1 + ST_PIPE, *cache_writes(self.config, f))
        last = t + 1 + (beats - 1) + ST_PIPE
        self._ends_at(Unit.ST, last + self.model.write_latency + 1)

    def _read(self, t: int, entry: Issued) -> None:
        f = entry.fields
        for name in ("read_beats_channels", RD_BEATS[StreamFormat(f["fmt"])]):
            self.counters[name] += f["n_outer"] * f["n_inner"] * self.config.units
        fine = self.streams.start_read(t, f, plans_of(self.memory, entry))
        self._streams_moved(Unit.RD, fine)

    def _multiply(self, t: int, entry: Issued) -> None:
        self._streams_moved(Unit.MX, self.streams.start_multiply(t, entry.fields))

    def _vector(self, t: int, entry: Issued) -> None:
        f = entry.fields
        self._ends_at(Unit.VU, t + f["n_outer"] * f["n_mid"] * f["n_words"] + VU_LATENCY)

    def _streams_moved(self, started: Unit | None, fine: bool) -> None:
        """Readers and matrix units have advanced: either's end may be known now. Not fine: a round is refused."""
        if not fine:
            running = self.running[Unit.MX] or (None if started is None else self.running[started])
            assert running is not None
            raise MachineError(Error.STREAM_HEADER, Unit.MX, running[0].pc)
        if started is not None:
            self.undetermined |= {started}
        for unit, end in ((Unit.RD, self.streams.read_end), (Unit.MX, self.streams.multiply_end)):
            if unit in self.undetermined and (e := end()) is not None:
                self.undetermined -= {unit}
                self._ends_at(unit, e)


_BY_UNIT = {
    Unit.LD: CycleMachine._load, Unit.ST: CycleMachine._store, Unit.RD: CycleMachine._read,
    Unit.MX: CycleMachine._multiply, Unit.VU: CycleMachine._vector,
}  # fmt: skip
_TIMES = [_BY_UNIT[unit] for unit in UNITS]


class CycleBackend:
    """Cycles exact to the RTL. with_data: move data too, so that memory ends as after a functional run."""

    name = "cycle"

    def __init__(self, model: MemoryModel | None = None, with_data: bool = False):
        self.model, self.with_data = model, with_data

    def run(self, config: Config, memory: MemoryImage, invocation: Invocation) -> Result:
        model = self.model or MemoryModel.of(config)
        try:
            machine = CycleMachine(config, memory, invocation, model, self.with_data)
        except MachineError as error:
            return Result(error.status, error.detail, error.pc, 0)
        status, detail, pc = Error.NONE, 0, 0
        try:
            machine.run()
            pc = machine.sequencer.pc
        except MachineError as error:
            status, detail, pc = error.status, error.detail, error.pc
        cycles = (machine.now if machine.halted is None else machine.halted) + 1
        counters = machine.counters | machine.streams.counters(cycles - 1)
        counters |= {
            "cycles": cycles, "instructions": machine.sequencer.executed,
            "read_beats_aux": machine.aux.beats.total(), **machine.aux.beats,
        }  # fmt: skip
        return Result(status, detail, pc, cycles, counters, sorted(machine.trace))
