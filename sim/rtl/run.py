"""Runs a program on the RTL: memories in, registers written, interrupt awaited, memories and events out.

The environment variable SIM chooses the simulator: `verilator` (the default) or `icarus`.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from hw.spec.errors import InternalError, UserError
from hw.spec.memory import MemoryModel
from sim.rtl import icarus, verilator
from sim.rtl.build import Design
from sim.rtl.job import (
    SLVERR,
    Answer,
    AxiEvent,
    DumpRange,
    Fault,
    Job,
    MemoryImage,
    PortStatistics,
    RunResult,
    TraceEvent,
)
from sim.rtl.toolchain import cocotb_libs


class Simulator(Protocol):
    """What differs from simulator to simulator; `verilator` and `icarus` are modules of this shape."""

    LAST_OPERATIONS: Sequence[list[str]]
    """What cocotb plays behind the operations of a run."""

    def command(self, design: Design, job: Job) -> list[str]: ...

    def write_files(self, folder: Path, job: Job) -> None: ...

    def problem(self, folder: Path) -> str | None: ...

    def collect(self, folder: Path, job: Job, answer: Answer) -> RunResult: ...


SIMULATORS: dict[str, Simulator] = {"verilator": verilator, "icarus": icarus}
_KEPT_LOG_LINES = 25


def simulator() -> Simulator:
    """What the environment variable SIM chooses; UserError for another name."""
    name = os.environ.get("SIM") or "verilator"
    if name not in SIMULATORS:
        raise UserError(f"SIM is {name!r}, which is no simulator that runs the RTL: choose {' or '.join(SIMULATORS)}")
    return SIMULATORS[name]


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

    Example: `run(design("tiny"), sizes_bytes=sizes, memory=MemoryModel(20, 10), csr_writes=[(0, 1)])`.

    sizes_bytes: the size of each port's memory; beyond it requests answer DECERR. csr_writes: (offset, value).
    log_axi: keep every burst in `RunResult.axi`. waves: the VCD file to write (`design.waves` must be set).
    stall_percent: share of the cycles in which a handshake of a memory port waits, at random (cycle counts then mean
    nothing).
    Raises InternalError when the run does not end within `max_cycles`, or when a port breaks the AXI4 protocol;
    UserError for what the chosen simulator does not model.
    """
    if len(sizes_bytes) != design.n_ports:
        raise ValueError(f"sizes_bytes has {len(sizes_bytes)} entries, the design has {design.n_ports} memory ports")
    if min(memory.read_latency, memory.write_latency) < 1:
        raise ValueError(f"{memory}: the least latency that the test bench can serve is 1 cycle")
    job = Job(sizes_bytes, memory, tuple(image), dump_ranges, max_cycles, faults, log_axi, waves, stall_percent)
    accesses = [["write", *write] for write in csr_writes] + [["wait"]] + [["read", offset] for offset in csr_reads]
    return play(design, job, accesses)


def play(design: Design, job: Job, operations: Sequence[list]) -> RunResult:
    """Plays operations in order: ["write", offset, value], ["read", offset], ["wait"] for the interrupt. Of several
    waits `RunResult.cycles` tells the last one's."""
    chosen = simulator()
    command = chosen.command(design, job)
    with tempfile.TemporaryDirectory(prefix="alula-rtl-") as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps({"operations": [*operations, *chosen.LAST_OPERATIONS]}))
        chosen.write_files(folder, job)
        code = _simulate(command, folder)
        return chosen.collect(folder, job, _answer(folder, chosen, code, job.max_cycles))


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


def _simulate(command: Sequence[str], folder: Path) -> int:
    """Runs a simulation in its folder, output into `simulation.log`; its exit code."""
    with (folder / "simulation.log").open("w") as output:
        return subprocess.run(
            command,
            cwd=folder,
            env=_cocotb_environment(folder),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            check=False,
        ).returncode


def _answer(folder: Path, chosen: Simulator, code: int, max_cycles: int) -> Answer:
    """What cocotb answers; says in one error what log, answer and memories tell of a failure."""
    if found := chosen.problem(folder):
        raise InternalError(f"the RTL simulation stopped: {found}")
    path = folder / "answer.json"
    if code or not path.exists():
        log = (folder / "simulation.log").read_text(errors="replace").splitlines()
        tail = "\n".join(log[-_KEPT_LOG_LINES:])
        raise InternalError(f"the RTL simulation failed (exit code {code}):\n{tail}")
    answer: Answer = json.loads(path.read_text())
    if answer["timeout"]:
        raise InternalError(f"the RTL simulation did not end within {max_cycles} cycles")
    return answer


__all__ = [
    "SIMULATORS", "SLVERR", "AxiEvent", "DumpRange", "Fault", "MemoryImage", "PortStatistics", "RunResult",
    "TraceEvent", "play", "run", "simulator",
]  # fmt: skip
