"""Runs under Verilator: the memories are C++ (native/memory.cpp), which reads and writes these files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hw.spec import hbm
from sim.rtl.build import BINARY, Design, build
from sim.rtl.job import Answer, AxiEvent, Job, PortStatistics, RunResult, TraceEvent
from sim.rtl.testbench import UNITS

_NEVER = 2**64 - 1
_TRACE_DTYPE = np.dtype([("unit", "<u4"), ("tag", "<u4"), ("start", "<u8"), ("done", "<u8")])
_AXI_DTYPE = np.dtype(
    [(name, "<u4") for name in ("port", "kind", "index", "beats")]
    + [(name, "<u8") for name in ("address", "accepted", "first", "last")]
)


LAST_OPERATIONS: Sequence[list[str]] = ()
"""The memories write their files when the simulation ends, without being asked."""


def command(design: Design, job: Job) -> list[str]:
    """The program that simulates `design`, built if need be, and its arguments. It runs in the folder of the run."""
    if job.waves is not None and not design.waves:
        raise ValueError("waves are wanted of a design that is built without them: set Design.waves")
    arguments = ["--trace", "--trace-file", str(job.waves.resolve())] if job.waves else []
    if job.stall_percent:
        arguments += [f"+alula_stall={job.stall_percent}", f"+alula_stall_seed={job.memory.seed & 0x7FFFFFFF}"]
    return [str(build(design) / BINARY), *arguments]


def write_files(folder: Path, job: Job) -> None:
    """Writes what `load_setup` and `load_image` in native/memory.cpp read."""
    lines = job.setup()
    if job.memory.hbm:
        values = hbm.parameters(job.memory.slots_a_cycle)
        lines.append(f"hbm {len(values)} {' '.join(map(str, values))}")
    (folder / "native.txt").write_text("\n".join(lines) + "\n")
    with (folder / "image.bin").open("wb") as output:
        for item in job.image:
            data = item.flat()
            output.write(np.array([item.port, item.address, data.nbytes], "<u8").tobytes())
            output.write(data.data)


def problem(folder: Path) -> str | None:
    """Why the simulation stopped, if the memories or the guards found a fault."""
    summary = folder / "summary.txt"
    for line in summary.read_text().splitlines() if summary.exists() else ():
        if line.startswith("error "):
            return line.removeprefix("error ")
    return None


def collect(folder: Path, job: Job, answer: Answer) -> RunResult:
    """What cocotb and the memories wrote."""
    ports = []
    for line in (folder / "summary.txt").read_text().splitlines():
        key, *values = line.split()
        if key == "port":
            ports.append(PortStatistics(*map(int, values)))
    raw = (folder / "dump.bin").read_bytes()
    dumps, position = [], 0
    for wanted in job.dump_ranges:
        dumps.append(raw[position : position + wanted.length_bytes])
        position += wanted.length_bytes
    events, axi = _trace_events(folder / "trace.bin"), _axi_events(folder / "axi.bin")
    return RunResult(answer["stop_cycle"], answer["reads"], dumps, events, ports, axi)


def _trace_events(path: Path) -> list[TraceEvent]:
    return [
        TraceEvent(UNITS[unit], tag, start, None if done == _NEVER else done)
        for unit, tag, start, done in np.fromfile(path, _TRACE_DTYPE).tolist()
    ]


def _axi_events(path: Path) -> list[AxiEvent]:
    if not path.exists():
        return []
    return [
        AxiEvent(port, "write" if kind else "read", *rest)
        for port, kind, *rest in np.fromfile(path, _AXI_DTYPE).tolist()
    ]
