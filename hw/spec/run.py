"""One run of the machine, the same for every executor: an invocation in; status, counters and events out.

The executors themselves are found by name in `sim.registry`.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

from hw.spec.config import Config
from hw.spec.isa import Error, Unit

SEQUENCER = 5
"""`Result.detail` when the sequencer failed, where a unit's number stands otherwise."""
KEEP_PROGRAM = 1
"""Flag: the program is in instruction memory already, the fetch is skipped."""


@dataclass(frozen=True)
class Invocation:
    """One start of the machine: the contents of its argument registers."""

    program_addr: int
    """Aux beat (64 bytes) address of the program."""
    program_length: int
    """Instructions."""
    entry: int = 0
    args: tuple[int, ...] = ()
    """Initial r1, r2, ..., at most 15."""
    watchdog: int = 0
    """Cycles without a retired instruction before WATCHDOG; 0: never."""
    instruction_limit: int = 0
    """0: none."""
    flags: int = 0
    own_scalars: bool = False
    """The program loads scalars that it stores itself: cycles depend on data."""


@dataclass(frozen=True, order=True)
class Event:
    """One unit instruction: tag is the pc of its ISSUE; start and end are cycles of the run counter."""

    start: int
    unit: Unit
    tag: int
    end: int
    work: int = field(default=0, compare=False)
    """What it moved, where the executor says so (cycle simulator): beats (LD; RD: of every channel), items (ST), block
    products of a row and a unit (MX), words (VU)."""


@dataclass
class Result:
    """What a run leaves besides memory."""

    status: Error
    detail: int
    pc: int
    cycles: int | None
    """None from the functional backend."""
    counters: dict[str, int] = field(default_factory=dict)
    trace: list[Event] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.status == Error.NONE


class Backend(Protocol):
    """An executor. `run` changes `memory`, a `sim.memory_image.MemoryImage`, in place (a run for timing only does
    not)."""

    name: str

    def run(self, config: Config, memory: Any, invocation: Invocation) -> Result: ...


class MachineError(Exception):
    """The machine stops with this status; detail is the unit (or HALT code), pc the instruction at fault."""

    def __init__(self, status: Error, detail: int = SEQUENCER, pc: int = 0):
        super().__init__(f"{status.name} in unit {detail} at pc {pc}")
        self.status, self.detail, self.pc = status, detail, pc
