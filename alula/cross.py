"""A backend that is several: the same start of the machine on every executor, compared in bytes and cycles."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from alula.expected import Piece, digest
from hw.spec.config import BEAT_BYTES, Config
from hw.spec.errors import InternalError, UserError
from hw.spec.isa import INSTRUCTION_BYTES
from hw.spec.memory import MemoryModel
from hw.spec.run import Backend, Event, Invocation, Result
from sim.memory_image import MemoryImage
from sim.registry import backend

BACKENDS = ("functional", "cycle", "rtl")
RTL_CYCLES = 10**8
RTL_CYCLE_MARGIN = 100_000
"""RTL cycles allowed beyond twice the simulated ones before the run counts as hung."""


def executors(last: str) -> tuple[str, ...]:
    """The executors up to and including `last`."""
    if last not in BACKENDS:
        raise UserError(f"{last!r} is no executor: choose one of {', '.join(BACKENDS)}")
    return BACKENDS[: BACKENDS.index(last) + 1]


@dataclass
class Outcome:
    """How the executors agreed on one step, mostly one run. Cycles are None where an executor did not run."""

    name: str = ""
    program_bytes: int = 0
    program_sha256: str = ""
    """Of the instructions that ran, as they lay in memory, run by run."""
    compared_bytes: int = 0
    expected_sha256: str = ""
    """Of the golden model's bytes: two steps that should have left the same have the same."""
    differing: dict[str, int] = field(default_factory=dict)
    """Executor -> bytes that differ from the golden model's."""
    stray_bytes: int = 0
    """Bytes of touched pages in which RTL and functional memories differ."""
    first_difference: str | None = None
    cycles_simulated: int | None = None
    cycles_rtl: int | None = None
    cycles_differ: bool = False
    """Of a run."""
    events: int = 0
    events_differing: int = 0
    counters_differing: list[str] = field(default_factory=list)
    trace: list[Event] = field(default_factory=list)

    @property
    def bit_exact(self) -> bool:
        return self.compared_bytes > 0 and not any(self.differing.values()) and not self.stray_bytes

    @property
    def cycle_exact(self) -> bool | None:
        """None when one of the two was not run."""
        if self.cycles_simulated is None or self.cycles_rtl is None:
            return None
        return not self.cycles_differ and not self.events_differing

    def as_json(self) -> dict:
        return {
            "name": self.name,
            "program_bytes": self.program_bytes,
            "program_sha256": self.program_sha256,
            "compared_bytes": self.compared_bytes,
            "expected_sha256": self.expected_sha256,
            "bit_exact": self.bit_exact,
            "cycle_exact": self.cycle_exact,
            "cycles_simulated": self.cycles_simulated,
            "cycles_rtl": self.cycles_rtl,
            "trace_events": self.events,
            "trace_events_differing": self.events_differing,
            "differing_bytes": self.differing,
            "stray_bytes": self.stray_bytes,
            "first_difference": self.first_difference,
            "counters_differing": self.counters_differing,
        }


class CrossBackend:
    """Runs every executor from the same memory and keeps what they left.

    The first executor's memory goes on; the result is the cycle simulator's where it ran, else the last executor's.
    `check` compares the latest run's memories with the golden model's bytes and returns the outcome of all runs since
    the last check: most steps are one run, a bucketed prefill is two.
    """

    def __init__(
        self,
        names: Sequence[str],
        note: Callable[[str], None] = lambda _: None,
        with_data: bool = True,
        model: MemoryModel | None = None,
        made: Mapping[str, Backend] | None = None,
    ):
        """with_data False: a cycle simulator that is alone only measures time. model: the memory of cycle and RTL.
        made: backends that are open already."""
        self.made = made or {}
        self.names, self.note, self.name, self.with_data = tuple(names), note, names[0], with_data
        self.model = model
        self.results: dict[str, Result] = {}
        self.memories: dict[str, MemoryImage] = {}
        self.touched: list[tuple[int, int, int]] = []
        self.invocation: Invocation | None = None
        self._unchecked: list[tuple[dict[str, Result], int, bytes]] = []
        """Of every run since the last check: results, bytes in which RTL and functional differ, the program."""
        self.wall_seconds = dict.fromkeys(names, 0.0)

    def run(self, config: Config, memory: MemoryImage, invocation: Invocation) -> Result:
        self.invocation, self.results = invocation, {}
        self.memories = {name: memory.fork() if at else memory for at, name in enumerate(self.names)}
        for port in memory.ports:
            port.touched.clear()
        for name, image in self.memories.items():
            began = time.monotonic()
            self.results[name] = self._one(name, config, image, invocation)
            self.wall_seconds[name] += time.monotonic() - began
            if name == self.name:
                self.touched = list(memory.touched())
        self._unchecked.append((self.results, self._stray_bytes(), self._program()))
        return self.results["cycle" if "cycle" in self.results else self.names[-1]]

    def _one(self, name: str, config: Config, memory: MemoryImage, invocation: Invocation) -> Result:
        self.note(name)
        options: dict = {}
        if name == "cycle":
            if invocation.own_scalars and not self.with_data:
                raise InternalError("this run depends on values, and the model was opened for timing only")
            options = {"with_data": self.with_data and (name == self.name or invocation.own_scalars)}
            options |= {"model": self.model}
        if name == "rtl":
            cycles = self.results["cycle"].cycles if "cycle" in self.results else None
            from sim.rtl.accelerator import design

            options = {"design_of": lambda c: design(c)}
            options |= {"model": self.model}
            options |= {"max_cycles": 2 * (cycles or RTL_CYCLES) + RTL_CYCLE_MARGIN}
            options |= {"dump": self.touched} if self.name == "functional" else {}
        executor = self.made[name] if name in self.made else backend(name, **options)
        result = executor.run(config, memory, invocation)
        if not result.ok:
            raise InternalError(
                f"{name} backend ended with {result.status.name} (detail {result.detail}) at pc {result.pc}"
            )
        return result

    def check(self, name: str, pieces: list[Piece]) -> Outcome:
        """The runs since the last check, against the golden model's bytes."""
        runs, self._unchecked = self._unchecked, []
        program = b"".join(program for *_, program in runs)
        outcome = Outcome(name, len(program), hashlib.sha256(program).hexdigest())
        outcome.compared_bytes = sum(piece.nbytes for piece in pieces)
        outcome.expected_sha256 = digest(pieces)
        for executor, memory in self.memories.items():
            if executor == "cycle" and executor != self.name:
                continue
            counts = [(piece.differing(memory), piece.what) for piece in pieces]
            outcome.differing[executor] = sum(n for n, _ in counts)
            wrong = next((f"{executor}: {n} bytes of {what}" for n, what in counts if n), None)
            outcome.first_difference = outcome.first_difference or wrong
        outcome.stray_bytes = sum(stray for _, stray, _ in runs)
        for results, *_ in runs:
            _compare_times(outcome, results)
        return outcome

    def _stray_bytes(self) -> int:
        """Bytes of the pages that the latest run touched in which RTL and functional memory differ."""
        if not {"rtl", "functional"} <= set(self.memories):
            return 0
        rtl, functional = self.memories["rtl"], self.memories["functional"]
        return sum(int(np.count_nonzero(rtl.read(*at) != functional.read(*at))) for at in self.touched)

    def _program(self) -> bytes:
        """The instructions of the latest run."""
        call, memory = self.invocation, self.memories[self.name]
        assert call is not None
        n_bytes = call.program_length * INSTRUCTION_BYTES
        return memory.read(memory.config.aux_port, call.program_addr * BEAT_BYTES, n_bytes).tobytes()


def _compare_times(outcome: Outcome, results: dict[str, Result]) -> None:
    """Adds a run's times and differences."""
    simulated, rtl = results.get("cycle"), results.get("rtl")
    if simulated is not None and simulated.cycles is not None:
        outcome.cycles_simulated = (outcome.cycles_simulated or 0) + simulated.cycles
        outcome.events += len(simulated.trace)
        outcome.trace = simulated.trace
    if rtl is not None and rtl.cycles is not None:
        outcome.cycles_rtl = (outcome.cycles_rtl or 0) + rtl.cycles
    if simulated is None or rtl is None:
        return
    outcome.cycles_differ |= simulated.cycles != rtl.cycles
    outcome.events_differing += len(set(simulated.trace) ^ set(rtl.trace))
    outcome.counters_differing += [
        name for name, value in rtl.counters.items() if name in simulated.counters and simulated.counters[name] != value
    ]
