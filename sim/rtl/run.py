"""Runs a program on the RTL: memories in, registers written, interrupt awaited, memories and events out."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from hw.spec import hbm
from hw.spec.errors import InternalError
from hw.spec.memory import MemoryModel
from sim.rtl.build import BINARY, Design, build
from sim.rtl.testbench import UNITS
from sim.rtl.toolchain import cocotb_libs

SLVERR = 2
_KEPT_LOG_LINES = 25
_NEVER = 2**64 - 1


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
    """What a run leaves. `cycles` counts from reset to the end, register accesses included."""

    cycles: int
    csr: list[int]
    dumps: list[bytes]
    events: list[TraceEvent]
    ports: list[PortStatistics]
    axi: list[AxiEvent] = field(default_factory=list)


_TRACE_DTYPE = np.dtype([("unit", "<u4"), ("tag", "<u4"), ("start", "<u8"), ("done", "<u8")])
_AXI_DTYPE = np.dtype(
    [(name, "<u4") for name in ("port", "kind", "index", "beats")]
    + [(name, "<u8") for name in ("address", "accepted", "first", "last")]
)


def run(
    design: Design,
    *,
    sizes_bytes: Sequence[int],
    memory: MemoryModel,
    image: Iterable[MemoryImage] = (),
    csr_writes: Sequence[tuple[int, int]] = (),
    csr_reads: Sequence[int] = (),
    dump_ranges: Sequence[DumpRange] = (),
    max_cycles: int = 10_000_000,
    faults: Sequence[Fault] = (),
    log_axi: bool = False,
    waves: Path | None = None,
    stall_percent: int = 0,
) -> RunResult:
    """Builds `design` if need be, writes the registers in order, waits for `irq`, reads registers and memories.

    sizes_bytes: the size of each port's memory; beyond it requests answer DECERR. csr_writes: (offset, value).
    log_axi: keep every burst in `RunResult.axi`. waves: the VCD file to write (`design.waves` must be set).
    stall_percent: share of the cycles in which a handshake of a memory port waits, at random (cycle counts then mean
    nothing).
    Raises InternalError when the run does not end within `max_cycles`, or when a port breaks the AXI4 protocol.
    """
    if len(sizes_bytes) != design.n_ports:
        raise ValueError(f"sizes_bytes has {len(sizes_bytes)} entries, the design has {design.n_ports} memory ports")
    if min(memory.read_latency, memory.write_latency) < 1:
        raise ValueError(f"{memory}: the least latency that the test bench can serve is 1 cycle")
    if waves is not None and not design.waves:
        raise ValueError("waves are wanted of a design that is built without them: set Design.waves")
    operations = [["write", *write] for write in csr_writes] + [["wait"]] + [["read", offset] for offset in csr_reads]
    binary = build(design) / BINARY
    with tempfile.TemporaryDirectory(prefix="alula-rtl-") as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps({"operations": operations}))
        _write_setup(folder, sizes_bytes, dump_ranges, memory, max_cycles, faults, log_axi)
        _write_image(folder / "image.bin", image)
        _simulate(binary, folder, max_cycles, waves, stall_percent, memory.seed)
        return _collect(folder, dump_ranges)


def _write_setup(
    folder: Path,
    sizes_bytes: Sequence[int],
    dump_ranges: Sequence[DumpRange],
    memory: MemoryModel,
    max_cycles: int,
    faults: Sequence[Fault],
    log_axi: bool,
) -> None:
    """Writes what `load_setup` in native/memory.cpp reads."""
    lines = [f"size {port} {size}" for port, size in enumerate(sizes_bytes)]
    lines += [
        f"read_latency {memory.read_latency}",
        f"write_latency {memory.write_latency}",
        f"jitter {memory.jitter}",
        f"seed {memory.seed & 0xFFFFFFFF}",
        f"max_cycles {max_cycles}",
        f"log_axi {int(log_axi)}",
    ]
    if memory.hbm:
        values = hbm.parameters(memory.slots_a_cycle)
        lines.append(f"hbm {len(values)} {' '.join(map(str, values))}")
    lines += [f"fault {f.port} {int(f.kind == 'write')} {f.request} {f.response}" for f in faults]
    lines += [f"dump {r.port} {r.address} {r.length_bytes}" for r in dump_ranges]
    (folder / "native.txt").write_text("\n".join(lines) + "\n")


def _write_image(path: Path, image: Iterable[MemoryImage]) -> None:
    with path.open("wb") as output:
        for item in image:
            data = (
                np.frombuffer(item.data, np.uint8) if isinstance(item.data, bytes) else np.ascontiguousarray(item.data)
            )
            output.write(np.array([item.port, item.address, data.nbytes], "<u8").tobytes())
            output.write(np.ascontiguousarray(data).data)


def _cocotb_environment(folder: Path) -> dict[str, str]:
    """What cocotb's library reads when the simulation loads it."""
    import find_libpython
    from cocotb_tools import config

    libpython = find_libpython.find_libpython()
    if libpython is None:
        raise InternalError("cocotb needs Python's shared library, and this Python was built without one")
    project = str(Path(__file__).resolve().parents[2])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COCOTB_", "GPI_"))}
    return environment | {
        "ALULA_RUN_DIR": str(folder),
        "COCOTB_RESULTS_FILE": str(folder / "results.xml"),
        "COCOTB_TEST_MODULES": "sim.rtl.cocotb_driver",
        "COCOTB_TOPLEVEL": "testbench",
        "COCOTB_TRUST_INERTIAL_WRITES": "1",
        "GPI_USERS": f"{libpython};{config.pygpi_entry_point()}",
        "PATH": f"{environment.get('PATH', os.defpath)}{os.pathsep}{cocotb_libs()}",
        "PYGPI_PYTHON_BIN": sys.executable,
        "PYTHONPATH": os.pathsep.join([project, *filter(None, sys.path)]),
        "TOPLEVEL_LANG": "verilog",
    }


def _simulate(
    binary: Path, folder: Path, max_cycles: int, waves: Path | None, stall_percent: int = 0, seed: int = 0
) -> None:
    """Runs the simulation; says in one error what its log, its answer and its summary tell of a failure."""
    log = folder / "simulation.log"
    arguments = ["--trace", "--trace-file", str(waves.resolve())] if waves else []
    arguments += [f"+alula_stall={stall_percent}", f"+alula_stall_seed={seed & 0x7FFFFFFF}"] if stall_percent else []
    with log.open("w") as output:
        code = subprocess.run(
            [str(binary), *arguments],
            cwd=folder,
            env=_cocotb_environment(folder),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            check=False,
        ).returncode
    summary = folder / "summary.txt"
    for line in summary.read_text().splitlines() if summary.exists() else ():
        if line.startswith("error "):
            raise InternalError(f"the RTL simulation stopped: {line.removeprefix('error ')}")
    answer = folder / "answer.json"
    if code or not answer.exists():
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_KEPT_LOG_LINES:])
        raise InternalError(f"the RTL simulation failed (exit code {code}):\n{tail}")
    if json.loads(answer.read_text())["timeout"]:
        raise InternalError(f"the RTL simulation did not end within {max_cycles} cycles")


def _collect(folder: Path, dump_ranges: Sequence[DumpRange]) -> RunResult:
    answer = json.loads((folder / "answer.json").read_text())
    ports = []
    for line in (folder / "summary.txt").read_text().splitlines():
        key, *values = line.split()
        if key == "port":
            ports.append(PortStatistics(*map(int, values)))
    raw = (folder / "dump.bin").read_bytes()
    dumps, position = [], 0
    for wanted in dump_ranges:
        dumps.append(raw[position : position + wanted.length_bytes])
        position += wanted.length_bytes
    axi = _axi_events(folder / "axi.bin")
    return RunResult(answer["stop_cycle"], answer["reads"], dumps, _trace_events(folder / "trace.bin"), ports, axi)


def _trace_events(path: Path) -> list[TraceEvent]:
    """The events in the order of their starts."""
    records = np.fromfile(path, _TRACE_DTYPE)
    records = records[np.argsort(records["start"], kind="stable")]
    return [
        TraceEvent(UNITS[unit], tag, start, None if done == _NEVER else done)
        for unit, tag, start, done in records.tolist()
    ]


def _axi_events(path: Path) -> list[AxiEvent]:
    if not path.exists():
        return []
    return [
        AxiEvent(port, "write" if kind else "read", *rest)
        for port, kind, *rest in np.fromfile(path, _AXI_DTYPE).tolist()
    ]
