"""The functional simulator: executes an encoded program, units in an order their tokens allow, without time.

Any order that tokens allow gives the same memories, unless the program has a race. A program that cannot go on
ends with WATCHDOG, as the machine would.
"""

from collections import deque
from collections.abc import Callable

from hw.spec.config import BEAT_BYTES, Config
from hw.spec.isa import SEMAPHORE_MAX, Error, Op, Unit
from hw.spec.legal import followed, vector_beyond
from hw.spec.run import SEQUENCER, Invocation, MachineError, Result
from sim import functional_matrix as mx
from sim.functional_checks import beyond_simulators, check
from sim.functional_sequencer import Issued, Sequencer
from sim.functional_state import State, load, load_fault, store, store_fault
from sim.functional_vector import vector_pass
from sim.memory_image import MemoryImage

_AT_ONCE: dict[int, Callable[[State, Issued], None]] = {Unit.LD: load, Unit.ST: store, Unit.VU: vector_pass}


def fault_of(config: Config, entry: Issued) -> Error | None:
    """What LD, ST or VU fail with behind their start."""
    if entry.unit == Unit.VU:
        return None if vector_beyond(config, entry.fields) is None else Error.BUFFER_RANGE
    fault = (load_fault if entry.unit == Unit.LD else store_fault)(config, entry.fields)
    return None if fault is None else fault[1]


class Executor:
    """What each unit's instruction does to the state. MX waits for rounds of readers that have started."""

    def __init__(self, config: Config, memory: MemoryImage):
        self.config = config
        self.state = State(config, memory)
        self.stream = mx.Stream(config)
        self._job: mx.Job | None = None

    def begin(self, entry: Issued) -> None:
        """What happens at a legal instruction's start: readers see memory as it is now."""
        if entry.unit == Unit.RD:
            self.stream.start(mx.read(self.state, entry), entry)
        elif entry.unit == Unit.MX:
            self._job = mx.Job(self.config, entry, entry.fields["n_outer"] * entry.fields["ob"])

    def finish(self, entry: Issued) -> bool:
        """Does the instruction; False when it has to wait (for weights, or for space in the FIFOs)."""
        if entry.unit == Unit.RD:
            return followed(self.config, entry.unit, entry.fields) and self.stream.reader_done()
        if entry.unit == Unit.MX:
            return self._multiply()
        if not followed(self.config, entry.unit, entry.fields):
            fault = fault_of(self.config, entry)
            raise MachineError(fault, entry.unit, entry.pc) if fault else beyond_simulators(self.config, entry)
        _AT_ONCE[entry.unit](self.state, entry)
        return True

    def _multiply(self) -> bool:
        assert self._job is not None
        self.stream.take(self._job)
        if self._job.left:
            return False
        mx.multiply(self.state, self._job)
        self._job = None
        return True


class Machine:
    """Sequencer, queues, semaphores and units of one run."""

    def __init__(self, config: Config, memory: MemoryImage, invocation: Invocation):
        self.config, self.memory, self.watched = config, memory, invocation.watchdog > 0
        self.sequencer = Sequencer(config, memory, invocation)
        self.executor = Executor(config, memory)
        self.queues: list[deque[Issued]] = [deque() for _ in Unit]
        self.running: list[Issued | None] = [None for _ in Unit]
        self.semaphores = [[0] * len(Unit) for _ in Unit]
        """[producer][consumer]"""

    def run(self) -> None:
        """Until HALT has executed; MachineError otherwise."""
        while not self._sequence():
            if not self._advance_units():
                raise self.sequencer.fail(Error.WATCHDOG)

    def _sequence(self) -> bool:
        """Runs the sequencer until it stalls (False) or halts (True)."""
        s = self.sequencer
        while True:
            s.run_scalars()
            op, a, b, c, imm = s.current()
            if op == Op.ISSUE:
                if len(self.queues[a]) >= self.config.queue_depth:
                    return False
                self.queues[a].append(s.issue(a, b, c))
            elif op == Op.LDS:
                if not self._idle(1 << Unit.LD):
                    return False
                s.load(self.memory, self.config.aux_port, a, b, imm)
                self.executor.state.count(1, "read_beats_aux", "read_beats_scalars")
            elif not self._idle(imm if op == Op.FENCE else ~0):
                return False
            elif op == Op.FENCE:
                s.retire()
            else:
                return self._halt(imm)

    def _halt(self, code: int) -> bool:
        pc = self.sequencer.pc
        self.sequencer.executed += 1
        if code:
            raise MachineError(Error.HALT_CODE, code, pc)
        return True

    def _idle(self, mask: int) -> bool:
        return not any(mask >> u & 1 and (self.running[u] or self.queues[u]) for u in Unit)

    def _advance_units(self) -> bool:
        """One round over the units; whether anything moved."""
        moved = False
        for unit in Unit:
            while self._advance(unit):
                moved = True
        return moved

    def _advance(self, unit: Unit) -> bool:
        entry = self.running[unit]
        started = entry is None and self._start(unit)
        entry = self.running[unit]
        if entry is None:
            return False
        taken = self.executor.stream.taken
        if self.watched and self._endless(entry):
            return started
        finished = self.executor.finish(entry)
        self.executor.stream.check()
        if not finished:
            return started or taken != self.executor.stream.taken
        self.running[unit] = None
        for consumer in Unit:
            if entry.signal >> consumer & 1:
                self.semaphores[unit][consumer] += 1
                if self.semaphores[unit][consumer] > SEMAPHORE_MAX:
                    raise MachineError(Error.SEMAPHORE, unit, entry.pc)
        return True

    def _endless(self, entry: Issued) -> bool:
        """Whether the instruction is so long that the watchdog comes before its end."""
        fits = entry.unit == Unit.RD or followed(self.config, entry.unit, entry.fields)
        return not fits and fault_of(self.config, entry) is None

    def _start(self, unit: Unit) -> bool:
        queue = self.queues[unit]
        if not queue:
            return False
        producers = [p for p in Unit if queue[0].wait >> p & 1]
        if any(not self.semaphores[p][unit] for p in producers):
            return False
        for p in producers:
            self.semaphores[p][unit] -= 1
        entry = queue.popleft()
        check(self.config, entry)
        self.executor.begin(entry)
        self.running[unit] = entry
        return True


class FunctionalBackend:
    """Bits without cycles."""

    name = "functional"

    def run(self, config: Config, memory: MemoryImage, invocation: Invocation) -> Result:
        status, detail, pc = Error.NONE, 0, 0
        try:
            machine = Machine(config, memory, invocation)
        except MachineError as error:
            return Result(error.status, error.detail, error.pc, None)
        try:
            machine.run()
            pc = machine.sequencer.pc
        except MachineError as error:
            status, detail, pc = error.status, error.detail, error.pc
        state = machine.executor.state
        state.count(fetch_beats(invocation), "read_beats_aux", "read_beats_fetch")
        counters = state.counters | {"instructions": machine.sequencer.executed}
        return Result(status, detail, pc, None, counters)


def fetch_beats(invocation: Invocation) -> int:
    """Aux beats that loading the program takes."""
    return 0 if invocation.flags & 1 else -(-invocation.program_length * 8 // BEAT_BYTES)


__all__ = ["SEQUENCER", "Executor", "FunctionalBackend", "Machine", "fetch_beats"]
