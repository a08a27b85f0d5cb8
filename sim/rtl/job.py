"""A run of the RTL in data: what the memories hold, what is wanted of them, and what the run leaves."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np

from hw.spec.memory import MemoryModel

SLVERR = 2


@dataclass(frozen=True)
class Fault:
    """Request number `request` (from 0) of a port answers `response` in place of data."""

    port: int
    kind: Literal["read", "write"]
    request: int
    response: int = SLVERR


@dataclass(frozen=True)
class MemoryImage:
    """Bytes that a port's memory holds when the run begins."""

    port: int
    address: int
    data: bytes | np.ndarray

    def flat(self) -> np.ndarray:
        """The bytes as uint8[n]."""
        data = self.data if isinstance(self.data, np.ndarray) else np.frombuffer(self.data, np.uint8)
        return np.ascontiguousarray(data).reshape(-1).view(np.uint8)


@dataclass(frozen=True)
class DumpRange:
    """Bytes of a port's memory that are wanted when the run has ended."""

    port: int
    address: int
    length_bytes: int


@dataclass(frozen=True)
class TraceEvent:
    """One instruction of one unit. Cycles are the design's own count; done is None if the run ended before it."""

    unit: str
    tag: int
    start_cycle: int
    done_cycle: int | None


@dataclass(frozen=True)
class AxiEvent:
    """One burst: the cycle of its request (for writes: when address and data were complete), and of its first and last
    beat (for writes: of B). Cycles are the test bench's: 0 is the first out of reset."""

    port: int
    kind: str
    request: int
    n_beats: int
    address: int
    accepted_cycle: int
    first_cycle: int
    last_cycle: int


@dataclass(frozen=True)
class PortStatistics:
    """What a port has moved."""

    n_reads: int
    n_read_beats: int
    n_writes: int
    n_write_beats: int
    n_write_bytes: int


@dataclass
class RunResult:
    """What a run leaves. `cycles` counts from reset to the end, register accesses included. Events stand in the order
    of their ends, run after run."""

    cycles: int
    csr: list[int]
    dumps: list[bytes]
    events: list[TraceEvent]
    ports: list[PortStatistics]
    axi: list[AxiEvent] = field(default_factory=list)


class Answer(TypedDict):
    """What cocotb's side of a run says (sim/rtl/cocotb_driver.py)."""

    reads: list[int]
    stop_cycle: int
    timeout: bool


@dataclass(frozen=True)
class Job:
    """What `sim.rtl.run.run` is asked for, in the terms of its docstring."""

    sizes_bytes: Sequence[int]
    memory: MemoryModel
    image: Sequence[MemoryImage]
    dump_ranges: Sequence[DumpRange]
    max_cycles: int
    faults: Sequence[Fault]
    log_axi: bool
    waves: Path | None
    stall_percent: int

    def setup(self) -> list[str]:
        """The lines that tell a test bench's memories what they are: a name and its numbers."""
        return [
            *(f"size {port} {size}" for port, size in enumerate(self.sizes_bytes)),
            f"read_latency {self.memory.read_latency}",
            f"write_latency {self.memory.write_latency}",
            f"jitter {self.memory.jitter}",
            f"seed {self.memory.seed & 0xFFFFFFFF}",
            f"max_cycles {self.max_cycles}",
            f"log_axi {int(self.log_axi)}",
            *(f"fault {f.port} {int(f.kind == 'write')} {f.request} {f.response}" for f in self.faults),
            *(f"dump {r.port} {r.address} {r.length_bytes}" for r in self.dump_ranges),
        ]
