"""One program on every executor of `tiny`, and what must be equal: the rule is `hw.spec.legal`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hw.spec.config import BEAT_BYTES, CONFIGS
from hw.spec.isa import Error, Unit
from hw.spec.memory import MemoryModel
from hw.spec.run import SEQUENCER, Invocation, Result
from sim.cycle import CycleBackend
from sim.functional import FunctionalBackend
from sim.memory_image import MemoryImage
from sim.rtl import accelerator
from sim.rtl.backend import RtlBackend
from sim.trace import differences

TINY = CONFIGS["tiny"]
PROGRAM = TINY.aux_bytes // 2 // BEAT_BYTES
"""Beat address of the programs of these tests."""
MOST_CYCLES = 2_000_000
SHOWN = 4


@dataclass
class Runs:
    """Results, and the memories that the executors left."""

    functional: Result
    cycle: Result
    rtl: Result
    memories: dict[str, MemoryImage]


def load(memory: MemoryImage, words: list[int]) -> None:
    """Puts a program where `call` starts it."""
    memory.write(TINY.aux_port, PROGRAM * BEAT_BYTES, np.array(words, "<u8"))


def call(words: list[int], **options) -> Invocation:
    return Invocation(PROGRAM, len(words), **options)


def whole_memory() -> list[tuple[int, int, int]]:
    """Every byte of every port, as `RtlBackend` dumps it."""
    return [(port, 0, size) for port, size in enumerate(MemoryImage(TINY).sizes_bytes)]


def run_simulators(
    memory: MemoryImage, invocation: Invocation, model: MemoryModel, backend: CycleBackend | None = None
) -> Runs:
    """The RTL's place is empty. backend: the cycle simulator with data, if not the usual one."""
    memories = {name: memory.fork() for name in ("functional", "cycle")}
    functional = FunctionalBackend().run(TINY, memories["functional"], invocation)
    cycle = (backend or CycleBackend(model, with_data=True)).run(TINY, memories["cycle"], invocation)
    return Runs(functional, cycle, Result(Error.NONE, 0, 0, None), memories)


def run_all(memory: MemoryImage, invocation: Invocation, model: MemoryModel, stall_percent: int = 0) -> Runs:
    runs = run_simulators(memory, invocation, model)
    runs.memories["rtl"] = memory.fork()
    rtl = RtlBackend(
        lambda config: accelerator.design(config.name), model, MOST_CYCLES, whole_memory(), stall_percent=stall_percent
    )
    runs.rtl = rtl.run(TINY, runs.memories["rtl"], invocation)
    return runs


Change = tuple[MemoryImage, MemoryImage]
"""A memory before and after something."""


def memory_differences(a: MemoryImage, b: MemoryImage, but: Sequence[Change] = ()) -> list[str]:
    """The first bytes that differ, a line a port, but for those that one of these changes made."""
    lines = []
    for port, address, n_bytes in whole_memory():
        differing = a.read(port, address, n_bytes) != b.read(port, address, n_bytes)
        for before, after in but:
            differing &= before.read(port, address, n_bytes) == after.read(port, address, n_bytes)
        where = np.flatnonzero(differing)
        if len(where):
            places = [f"beat {at // BEAT_BYTES} byte {at % BEAT_BYTES}" for at in where[:SHOWN].tolist()]
            lines.append(f"port {port}: {len(where)} bytes differ, {', '.join(places)}")
    return lines


def status(result: Result) -> tuple[str, int, int]:
    return result.status.name, result.detail, result.pc


def against_the_rtl(runs: Runs, compare_memory: bool = True) -> list[str]:
    """What the cycle simulator has otherwise than the RTL."""
    cycle, rtl = runs.cycle, runs.rtl
    found = []
    if (*status(cycle), cycle.cycles) != (*status(rtl), rtl.cycles):
        found.append(f"cycle {status(cycle)} in {cycle.cycles}, RTL {status(rtl)} in {rtl.cycles}")
    found += differences(cycle.trace, rtl.trace, SHOWN)
    found += [
        f"{name}: cycle {cycle.counters[name]}, RTL {value}"
        for name, value in rtl.counters.items()
        if cycle.counters[name] != value
    ]
    return found + (memory_differences(runs.memories["cycle"], runs.memories["rtl"]) if compare_memory else [])


def against_the_functional(runs: Runs, compare_memory: bool = True) -> list[str]:
    """What the functional simulator has otherwise than the cycle simulator, as far as it has no time to differ in.

    With one error possible both name it. With several, each names the first in its own order: then their units differ,
    or (the sequencer) one of them is the watchdog, or one instruction has several faults.
    """
    functional, cycle = runs.functional, runs.cycle
    if functional.status == cycle.status == Error.NONE:
        found = [] if status(functional) == status(cycle) else [f"{status(functional)}, cycle {status(cycle)}"]
        found += [
            f"{name}: functional {value}, cycle {cycle.counters[name]}"
            for name, value in functional.counters.items()
            if cycle.counters[name] != value
        ]
        if compare_memory:
            found += memory_differences(runs.memories["functional"], runs.memories["cycle"])
        return found
    if status(functional) == status(cycle) or _another_error(functional, cycle):
        return []
    return [f"functional {status(functional)}, cycle {status(cycle)}"]


def _another_error(functional: Result, cycle: Result) -> bool:
    """Whether the rule lets the functional simulator name another error than the cycle simulator."""
    if cycle.status == Error.WATCHDOG:
        return True  # of time, which only the cycle simulator knows
    if Error.NONE in (functional.status, cycle.status):
        return False
    if functional.detail != cycle.detail:
        return True
    late = functional.detail == Unit.RD and {functional.status, cycle.status} <= {Error.BUS_READ, Error.STREAM_HEADER}
    one_instruction = functional.pc == cycle.pc and functional.detail != SEQUENCER
    return late or one_instruction
