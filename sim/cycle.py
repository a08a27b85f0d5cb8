"""The cycle simulator: when each instruction starts and ends, by events and recurrences, exact to docs/machine.md.

It executes instructions, not clock ticks. Data is moved only `with_data`; without it LDS reads what the memory
image holds, so a program must not load scalars that it stored itself.

Much is told ahead of time: scalar instructions, ends, what streams do. What fails is told as a `Fault` of a later
cycle; the run stops at the first, and what was told of cycles behind it is taken back.
"""

import heapq
import math
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import itemgetter

from hw.spec.config import BEAT_BYTES, Config
from hw.spec.csr import COUNTERS, LD_BEATS, RD_BEATS, store_counter
from hw.spec.errors import InternalError
from hw.spec.isa import SEMAPHORE_MAX, WORD_MASK, Error, LdKind, Op, StMode, StreamFormat, Unit
from hw.spec.legal import (
    COUNTS,
    MAX_WORK,
    followed,
    illegal,
    max_beats,
    read_beyond,
    size_beats,
    store_beyond,
    vector_beyond,
    work,
)
from hw.spec.memory import MemoryModel
from hw.spec.run import KEEP_PROGRAM, SEQUENCER, Event, Invocation, MachineError, Result
from hw.spec.timing import (
    ADDRESS_PIPE,
    AUX_BEAT,
    BUS_IDLE,
    BUS_WRITE_ERROR,
    DESCRIPTOR_ERROR,
    END_LATENCY,
    LDS_RETURN,
    SEQ_AFTER_FETCH,
    SEQ_FIRST,
    SEQ_INTERVAL,
    SETTLE_CYCLES,
    ST_END,
    ST_PIPE,
    UNIT_START,
    VU_ERROR,
    VU_LATENCY,
)
from sim.cycle_streams import NEVER, NO_LIMITS, Limits, Streams
from sim.functional import Executor, fetch_beats
from sim.functional_checks import beyond_simulators, shortened
from sim.functional_matrix import bursts, plans_of
from sim.functional_sequencer import Issued, Program, Sequencer, load_program
from sim.functional_state import beats_an_item, cache_writes, load_fault, store, store_fault
from sim.memory_image import MemoryImage, OutOfRange
from sim.weight_stream import Plans

FETCH_FIRST_AR = 1
"""The program fetch sends its burst j at cycle FETCH_FIRST_AR + j."""
UNITS = tuple(Unit)
STREAM_UNITS = (Unit.RD, Unit.MX)
"""An error of one of them stops both at once."""
_WORK = {
    Unit.LD: ("n_outer", "n_inner"),
    Unit.ST: ("n_tok", "n_head", "n_gran"),
    Unit.RD: ("n_outer", "n_inner"),
    Unit.MX: ("n_outer", "n_rows", "kb", "ob"),
    Unit.VU: ("n_outer", "n_mid", "n_words"),
}
"""Fields whose product is `Event.work`."""
_WORK_OF = [itemgetter(*_WORK[unit]) for unit in UNITS]


def _work(unit: int, f: dict[str, int]) -> int:
    """`Event.work`. The last turn of an MX may have fewer rows than the others."""
    missing = (f["n_rows"] - f["n_last"]) * f["kb"] * f["ob"] if unit == Unit.MX and f["n_last"] else 0
    return math.prod(_WORK_OF[unit](f)) - missing


_BUSY, _WAIT = ([f"{what}_{unit.name.lower()}" for unit in UNITS] for what in ("busy", "wait"))
_MEMBERS = [tuple(u for u in range(len(UNITS)) if mask >> u & 1) for mask in range(1 << len(UNITS))]
"""Numbers of the units in a mask."""
_ALL = (1 << len(UNITS)) - 1
_BEAT_BYTES = {StMode.LIN: BEAT_BYTES, StMode.K: 16, StMode.V: 4, StMode.SC: 4}
"""Bytes that a beat of ST writes."""


@dataclass(order=True, frozen=True)
class Fault:
    """An error in a cycle; of one cycle's errors the least counts. detail: the unit or SEQUENCER, or a HALT code."""

    cycle: int
    place: int
    """Units come before the sequencer."""
    status: Error = field(compare=False)
    pc: int | None = field(default=None, compare=False)
    """None: of the RD that started last."""
    detail: int | None = field(default=None, compare=False)
    """None: the place."""

    @property
    def last(self) -> int:
        """The last cycle of a run that ends with it."""
        return self.cycle + END_LATENCY


class AuxReads:
    """The auxiliary port's read channel."""

    def __init__(self, config: Config, model: MemoryModel):
        self.port, self.model = config.aux_port, model
        self.requests, self.last = 0, -1
        self.beats: Counter[str] = Counter()
        """By counter."""
        self._first, self._lengths, self._counter = 0, [0], ""
        """The latest read's first address, one a cycle from then on, and the lengths of its bursts."""

    def read(self, t: int, lengths: Iterable[int], counter: str, beat: int | None = None) -> tuple[int, int]:
        """(cycle of the last beat, cycle in which a beat is taken) of bursts whose addresses are sent from t on, one a
        cycle.

        That beat fails: no address is told that is not sent before the run ends.
        """
        self._first, self._lengths, self._counter = t, [], counter
        fails, done = NEVER, 0
        for n in lengths:
            sent = t + len(self._lengths)
            if sent > fails + END_LATENCY:
                break
            first = max(sent + ADDRESS_PIPE + self.model.latency(self.port, self.requests), self.last + 1)
            self.requests += 1
            self._lengths.append(n)
            self.last = first + n - 1
            if beat is not None and done <= beat < done + n:
                fails = first + beat - done + AUX_BEAT
            done += n
        self.beats[counter] += done
        return self.last, fails

    def take_back(self, cycle: int) -> None:
        """Addresses behind this cycle were never sent."""
        self.beats[self._counter] -= sum(self._lengths[max(0, cycle + 1 - self._first) :])


@dataclass
class Replay:
    """What a run read from memory, for a second run of the same times; and how far that goes."""

    program: Program
    scalars: deque[int] = field(default_factory=deque)
    plans: deque[Plans | None] = field(default_factory=deque)
    limits: Limits = NO_LIMITS


class CycleMachine:
    """One run: the sequencer, five queues, and the times at which something may happen."""

    def __init__(
        self,
        config: Config,
        memory: MemoryImage,
        call: Invocation,
        model: MemoryModel,
        with_data: bool,
        replay: Replay | None = None,
    ):
        self.config, self.memory, self.call, self.model = config, memory, call, model
        self.faults: list[Fault] = []
        self.replayed = replay is not None
        self.seen = replay or Replay(self._program())
        self.sequencer = Sequencer(config, memory, call, self.seen.program)
        self.executor = Executor(config, memory) if with_data else None
        self.aux, self.streams = AuxReads(config, model), Streams(config, model, self.seen.limits)
        self.queues: list[deque[Issued]] = [deque() for _ in Unit]
        self.running: list[tuple[Issued, int] | None] = [None for _ in Unit]
        self.idle_from = [0] * len(Unit)
        self.semaphores = [[0] * len(Unit) for _ in Unit]
        """[consumer][producer]"""
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.trace: list[Event] = []
        self.open: dict[int, int] = {}
        """Starts of running instructions whose ends are not known."""
        self.wakes: list[int] = []
        self.ends: list[tuple[int, int]] = []
        self.undetermined: set[Unit] = set()
        """Running RD and MX whose ends depend on instructions that have not started."""
        self.ready = 0
        """Earliest cycle of the sequencer's next instruction."""
        self.scalars = 0, 0
        """The scalar instructions executed ahead of time: the first one's cycle, and how many."""
        self.lds: tuple[int, int] | None = None
        """Of the LDS that is on the bus: when it executes, and what it reads."""
        self.retired = -1
        """Cycle of the latest instruction, for the watchdog."""
        self.reads: list[tuple[int, int]] = []
        """(start, pc) of the latest two RDs."""
        self.met: set[tuple[int, Unit, Error]] = set()
        """Faults that the streams have told."""
        self.unfollowed: list[tuple[int, Issued]] = []
        """Instructions that are not followed to their end, and up to which cycle they are."""
        self.halted: int | None = None

    def run(self) -> Fault | None:
        """What ended the run, None for a good end."""
        self.ready = self._fetch()
        self._scalars()
        while self.halted is None:
            self._follow_streams()
            t = self.wakes[0] if self.wakes else NEVER
            if fault := self._fault_before(t):
                return fault
            while self.wakes and self.wakes[0] == t:
                heapq.heappop(self.wakes)
            self._cycle(t)
        self._follow_streams()
        return self._fault_until(self.halted + END_LATENCY)

    def _fault_before(self, t: int) -> Fault | None:
        """The run's first error, if the run ends with it before cycle t, in which something may happen next."""
        patience = self._patience()
        if t == NEVER and patience == NEVER and not self.faults and not self.unfollowed:
            patience = self.retired + 1  # nobody watches, but nothing will ever happen
        if patience < t:
            self.faults.append(Fault(patience, SEQUENCER, Error.WATCHDOG, self.sequencer.pc))
        fault = self._fault_until(t - 1)
        if self.unfollowed:
            until, entry = min(self.unfollowed, key=itemgetter(0))
            if until < (fault.last if fault else t):
                raise beyond_simulators(self.config, entry)
        return fault

    def _fault_until(self, cycle: int) -> Fault | None:
        """The first error, if the run ends with it by this cycle."""
        while self.ends and self.ends[0][0] <= min([cycle, *(fault.last for fault in self.faults)]):
            e, unit = heapq.heappop(self.ends)
            self._end(unit, e)
        found = min(self.faults, default=None)
        return found if found and found.last <= cycle else None

    def late_fault(self) -> Fault | None:
        """After a good end: the error of a beat that RD asked for and nobody waited for."""
        assert self.halted is not None
        last = max(self.halted, self.streams.last_arrival() + BUS_IDLE) + SETTLE_CYCLES + 1
        return self._fault_until(last + END_LATENCY)

    def _fail(self, cycle: int, status: Error, detail: int = SEQUENCER) -> None:
        """The sequencer's instruction fails in this cycle."""
        self.faults.append(Fault(cycle, SEQUENCER, status, self.sequencer.pc, detail))
        self.ready = NEVER

    def _patience(self) -> int:
        """The cycle of the watchdog, if nothing retires before."""
        return self.retired + 1 + self.call.watchdog if self.call.watchdog else NEVER

    def _program(self) -> Program:
        """The program; a fault if there is none."""
        try:
            return load_program(self.config, self.memory, self.call)
        except MachineError as error:
            if error.status == Error.ILLEGAL_INSTRUCTION:
                self.faults.append(Fault(0, SEQUENCER, error.status, error.pc))
            return []

    def _fetch(self) -> int:
        """The first instruction's cycle."""
        beats = fetch_beats(self.call)
        if self.faults:
            return NEVER
        if self.call.flags & KEEP_PROGRAM or not beats:
            return SEQ_FIRST
        f = {"addr": self.call.program_addr & WORD_MASK, "n_outer": 1, "n_inner": beats, "stride": 0}
        absent = read_beyond(f, size_beats(self.config.aux_bytes))
        last, fails = self.aux.read(FETCH_FIRST_AR, bursts(f), "read_beats_fetch", absent)
        if absent is not None:
            self._fail(fails, Error.BUS_READ)
            return NEVER
        return last + SEQ_AFTER_FETCH

    def _follow_streams(self) -> None:
        """Lets the streams go on up to the next cycle in which anything else may happen."""
        while self.streams.next_known:
            until = NEVER
            if self.halted is None:
                until = min(self.wakes[0] if self.wakes else NEVER, self._patience())
            if self.streams.next_known > until:
                return
            self.streams.advance(self.streams.next_known, until)
            self._streams_moved(None)

    def _cycle(self, t: int) -> None:
        """Everything that happens at t; the sequencer sees the state before the starts of t."""
        if self.ready <= t:
            self._sequence(t)
        for unit, queue in enumerate(self.queues):
            if queue and self.running[unit] is None:
                self._start(unit, t)

    # --- sequencer ---------------------------------------------------------------------------------------

    def _scalars(self) -> None:
        """Executes scalar instructions up to the next ISSUE, FENCE, LDS or HALT, due at `ready`."""
        if self.ready == NEVER:
            return
        before, fault = self.sequencer.executed, None
        try:
            self.sequencer.run_scalars()
        except MachineError as error:
            fault = error
        n = self.sequencer.executed - before
        if n:
            self.scalars = self.ready, n
            self.retired = self.ready + (n - 1) * SEQ_INTERVAL
            self.ready += n * SEQ_INTERVAL
        if fault:
            self._fail(self.ready, fault.status)
        else:
            heapq.heappush(self.wakes, self.ready)

    def _sequence(self, t: int) -> None:
        s = self.sequencer
        op, a, b, c, imm = s.current()
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
        if self.lds is None:
            if self._idle(1 << Unit.LD):
                last, _ = self.aux.read(t, [1], "read_beats_scalars")
                self._send_scalar(last, b, imm)
        elif t >= self.lds[0]:
            value, self.lds = self.lds[1], None
            self.sequencer.loaded(a, value)
            self._retire(t, "stall_lds")

    def _send_scalar(self, arrival: int, b: int, imm: int) -> None:
        """The LDS's address is on the bus."""
        try:
            self.lds = arrival + LDS_RETURN, self._scalar(b, imm)
        except OutOfRange:
            self.faults.append(Fault(arrival + AUX_BEAT, SEQUENCER, Error.BUS_READ, self.sequencer.pc))
            self.lds = NEVER, 0
        else:
            heapq.heappush(self.wakes, arrival + LDS_RETURN)

    def _scalar(self, b: int, imm: int) -> int:
        if self.replayed and self.seen.scalars:
            return self.seen.scalars.popleft()
        value = self.sequencer.scalar_at(self.memory, self.config.aux_port, b, imm)
        if not self.replayed:
            self.seen.scalars.append(value)
        return value

    def _fence(self, t: int, op: int, imm: int) -> None:
        if op == Op.FENCE:
            self.sequencer.retire()
            self._retire(t, "stall_fence")
            return
        self.counters["stall_fence"] += t - self.ready
        self.sequencer.executed += 1
        self.scalars = t, 0
        self.halted = t
        if imm:
            self._fail(t, Error.HALT_CODE, imm)
        self.ready = NEVER

    def _retire(self, t: int, stall: str) -> None:
        self.counters[stall] += t - self.ready
        self.retired, self.scalars = t, (t, 0)
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
        self.running[unit] = entry, t
        self.open[unit] = t
        heapq.heappush(self.wakes, t + 1)
        if unit == Unit.RD:
            self.reads = [*self.reads[-1:], (t, entry.pc)]
        if illegal(self.config, unit, entry.fields):
            self._unit_fails(t + DESCRIPTOR_ERROR, entry, Error.ILLEGAL_DESCRIPTOR)
            return
        if not followed(self.config, unit, entry.fields):
            self.unfollowed.append((t + (max_beats(self.config) if unit == Unit.RD else MAX_WORK), entry))
        if self.executor:
            self.executor.begin(entry)
        _TIMES[unit](self, t, entry)

    def _unit_fails(self, cycle: int, entry: Issued, status: Error) -> None:
        self.faults.append(Fault(cycle, entry.unit, status, entry.pc))

    def _ends_at(self, unit: int, e: int) -> None:
        """The unit's running instruction ends at e."""
        running = self.running[unit]
        assert running is not None
        entry, s = running
        self.trace.append(Event(s, UNITS[unit], entry.pc, e, _work(unit, entry.fields)))
        self.counters[_BUSY[unit]] += e - s
        del self.open[unit]
        heapq.heappush(self.ends, (e, unit))
        heapq.heappush(self.wakes, e + 1)

    def _end(self, unit: int, e: int) -> None:
        running = self.running[unit]
        assert running is not None
        entry, s = running
        if unit == Unit.RD and any(f.cycle <= e for f in self.faults if f.place == Unit.RD):
            self._goes_on(unit, s, e)
            return
        if self.executor and unit != Unit.RD and not self.executor.finish(entry):
            raise InternalError(f"{UNITS[unit].name} at pc {entry.pc} has ended in time and lacks data")
        self.running[unit] = None
        self.idle_from[unit] = e + 1
        for consumer in _MEMBERS[entry.signal]:
            self.semaphores[consumer][unit] += 1
            if self.semaphores[consumer][unit] > SEMAPHORE_MAX:
                self._unit_fails(e, entry, Error.SEMAPHORE)

    def _goes_on(self, unit: int, s: int, e: int) -> None:
        """An end that was told does not come: an error has stopped the unit."""
        self.trace = [event for event in self.trace if (event.unit, event.start) != (unit, s)]
        self.counters[_BUSY[unit]] -= e - s
        self.open[unit] = s

    def _load(self, t: int, entry: Issued) -> None:
        f, fault = entry.fields, load_fault(self.config, entry.fields)
        whole = followed(self.config, Unit.LD, f)
        lengths = bursts(f if whole else shortened(f, COUNTS[Unit.LD], MAX_WORK))
        last, fails = self.aux.read(t + UNIT_START, lengths, LD_BEATS[LdKind(f["kind"])], fault and fault[0])
        if fault and fails != NEVER:
            self._unit_fails(fails, entry, fault[1])
        elif whole:
            self._ends_at(Unit.LD, last + AUX_BEAT + 1)

    def _store(self, t: int, entry: Issued) -> None:
        f = entry.fields
        beats = work(Unit.ST, f) * beats_an_item(f)
        self._count_bytes(f, beats)
        if self.model.hbm and f["mode"] in (StMode.K, StMode.V):
            writes = cache_writes(self.config, shortened(f, COUNTS[Unit.ST], MAX_WORK))
            self.streams.write(t + UNIT_START + ST_PIPE, *writes)
        if fault := store_fault(self.config, f):
            beat, status = fault
            answered = ST_PIPE + self.model.write_latency + BUS_WRITE_ERROR if status == Error.BUS_WRITE else 0
            self._unit_fails(t + UNIT_START + beat + answered, entry, status)
            self._late_source(t, entry, beat + answered)
        if not fault:
            last = t + UNIT_START + (beats - 1) + ST_PIPE
            self._ends_at(Unit.ST, last + self.model.write_latency + ST_END)

    def _late_source(self, t: int, entry: Issued, until: int) -> None:
        """A source beyond SB behind a beat that cannot be written may be met before that beat's response comes."""
        outside = store_beyond(self.config, entry.fields)
        if outside is not None and outside * beats_an_item(entry.fields) < until:
            self._unit_fails(t + UNIT_START + outside * beats_an_item(entry.fields), entry, Error.BUFFER_RANGE)

    def _count_bytes(self, f: dict[str, int], beats: int) -> None:
        """Adds the bytes of so many beats of an ST."""
        to = "write_bytes_channels" if f["mode"] in (StMode.K, StMode.V) else "write_bytes_aux"
        for name in (to, store_counter(f["mode"], f["kind"])):
            self.counters[name] += beats * _BEAT_BYTES[StMode(f["mode"])]

    def _read(self, t: int, entry: Issued) -> None:
        f, most = entry.fields, max_beats(self.config)
        absent = read_beyond(f, size_beats(self.config.channel_bytes))
        plans = self.seen.plans.popleft() if self.replayed else plans_of(self.memory, f)
        if not self.replayed:
            self.seen.plans.append(plans)
        self.streams.start_read(t, f, plans, absent if absent is not None and absent < most else None, most)
        self._streams_moved(Unit.RD)

    def _multiply(self, t: int, entry: Issued) -> None:
        self.streams.start_multiply(t + UNIT_START - 1, entry.fields)
        self._streams_moved(Unit.MX)

    def _vector(self, t: int, entry: Issued) -> None:
        beyond = vector_beyond(self.config, entry.fields)
        if beyond is not None:
            self._unit_fails(t + beyond + VU_ERROR, entry, Error.BUFFER_RANGE)
        self._ends_at(Unit.VU, t + work(Unit.VU, entry.fields) + VU_LATENCY)

    def _streams_moved(self, started: Unit | None) -> None:
        """Readers and matrix units have advanced: their faults, and either's end, may be known now."""
        for found in self.streams.faults():
            if found in self.met:
                continue
            self.met.add(found)
            cycle, unit, status = found
            running = self.running[Unit.MX]
            pc = running[0].pc if unit == Unit.MX and running else None
            self.faults.append(Fault(cycle, unit, status, pc))
        if started is not None:
            self.undetermined |= {started}
        for unit, end in ((Unit.RD, self.streams.read_end), (Unit.MX, self.streams.multiply_end)):
            if unit in self.undetermined and (e := end()) is not None:
                self.undetermined -= {unit}
                self._ends_at(unit, e)

    # --- an error's end ----------------------------------------------------------------------------------

    def stop(self, last: int) -> None:
        """Takes back what was told of cycles behind the last, and adds what was not told of those up to it."""
        self.aux.take_back(last)
        for event in self.trace:
            self.counters[_BUSY[event.unit]] -= max(0, event.end - last)
        for unit, s in self.open.items():
            self.counters[_BUSY[unit]] += last - s
        for unit, queue in enumerate(self.queues):
            if queue and self.running[unit] is None:
                since = max(queue[0].visible, self.idle_from[unit])
                self.counters[_WAIT[unit]] += max(0, last + 1 - since)
        if self.halted is None and self.ready <= last:
            self.counters[_STALLS[self.sequencer.current()[0]]] += last + 1 - self.ready
        self._stop_store(last)

    def _stop_store(self, last: int) -> None:
        """Of the ST that runs, what was on the bus by the cycle behind the last is written."""
        running = self.running[Unit.ST]
        if running is None or illegal(self.config, Unit.ST, running[0].fields):
            return
        entry, s = running
        total = work(Unit.ST, entry.fields) * beats_an_item(entry.fields)
        written = min(max(0, last + 2 - (s + UNIT_START + ST_PIPE)), total)
        self._count_bytes(entry.fields, written - total)
        if self.executor:
            store(self.executor.state, entry, written)

    def executed(self, last: int) -> int:
        """Instructions retired up to this cycle."""
        first, n = self.scalars
        return self.sequencer.executed - n + min(n, max(0, (last - first) // SEQ_INTERVAL + 1))

    def pc_of(self, fault: Fault) -> int:
        """A fault's pc: RD's beats bear that of the RD that started last before."""
        return fault.pc if fault.pc is not None else max(read for read in self.reads if read[0] < fault.cycle)[1]


_STALLS: dict[int, str] = {
    Op.ISSUE: "stall_queue",
    Op.FENCE: "stall_fence",
    Op.HALT: "stall_fence",
    Op.LDS: "stall_lds",
}
_BY_UNIT = {
    Unit.LD: CycleMachine._load,
    Unit.ST: CycleMachine._store,
    Unit.RD: CycleMachine._read,
    Unit.MX: CycleMachine._multiply,
    Unit.VU: CycleMachine._vector,
}
_TIMES = [_BY_UNIT[unit] for unit in UNITS]


class CycleBackend:
    """Cycles exact to the RTL. with_data: move data too, so that memory ends as after a functional run."""

    name = "cycle"
    machine = CycleMachine

    def __init__(self, model: MemoryModel | None = None, with_data: bool = False):
        self.model, self.with_data = model, with_data

    def run(self, config: Config, memory: MemoryImage, invocation: Invocation) -> Result:
        model = self.model or MemoryModel.of(config)
        machine = self.machine(config, memory, invocation, model, self.with_data)
        fault = machine.run()
        if fault is None:
            assert machine.halted is not None
            last, streams = machine.halted + END_LATENCY, machine.streams
            fault = machine.late_fault()
        else:
            last = fault.last
            streams = self._streams_until(machine, fault)
            machine.stop(last)
        raw, stream = streams.beats()
        counters = (
            machine.counters
            | streams.counters(last)
            | {
                "cycles": last + 1,
                "instructions": machine.executed(last),
                "read_beats_aux": machine.aux.beats.total(),
                **machine.aux.beats,
                "read_beats_channels": raw + stream,
                RD_BEATS[StreamFormat.RAW]: raw,
                RD_BEATS[StreamFormat.STREAM]: stream,
            }
        )
        trace = sorted(event for event in machine.trace if event.end <= last)
        if fault is None:
            return Result(Error.NONE, 0, machine.sequencer.pc, last + 1, counters, trace)
        detail = fault.place if fault.detail is None else fault.detail
        return Result(fault.status, detail, machine.pc_of(fault), last + 1, counters, trace)

    def _streams_until(self, machine: CycleMachine, fault: Fault) -> Streams:
        """The streams of the same run, with nothing counted behind its last cycle."""
        own = [f.cycle - 1 for f in machine.faults if f.place in STREAM_UNITS]
        machine.seen.limits = Limits(fault.last, min([fault.last, *own]))
        again = self.machine(machine.config, machine.memory, machine.call, machine.model, False, machine.seen)
        again.faults = [f for f in machine.faults if f.cycle == 0]
        again.run()
        return again.streams
