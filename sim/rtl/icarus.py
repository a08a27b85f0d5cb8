"""Runs under Icarus Verilog: the memories are plain Verilog (plain/axi_memory.v), their files are text.

Same bits and same cycles as under Verilator, from a second and independent simulator, at a hundredth of its speed.
"""

import re
import subprocess
from collections import defaultdict, deque
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from hw.spec.config import BEAT_BYTES
from hw.spec.errors import InternalError, UserError
from sim.cache import entry
from sim.rtl.build import Design
from sim.rtl.job import Answer, AxiEvent, Job, PortStatistics, RunResult, TraceEvent
from sim.rtl.plain_files import memory_files, read_beats
from sim.rtl.testbench import UNITS, memory_text, plain_testbench
from sim.rtl.toolchain import system_tool

BINARY = "simulation.vvp"
MOST_BEATS = 1 << 22
"""Beats that the memory of a port stores (256 MiB): beyond them reads are zero, and a write ends the run."""
MOST_FAULTS = 16
"""Planted faults of a port, as plain/axi_memory.v has room for."""
LAST_OPERATIONS: Sequence[list[str]] = (["finish"],)
"""The memories write their files when they are asked to."""
_FLAGS = ("-g2005", "-s", "testbench")


def command(design: Design, job: Job) -> list[str]:
    """The program that simulates `design`, compiled if need be, and its arguments. It runs in the folder of the run.

    UserError for what the Verilog memories do not model, and where Icarus Verilog is not installed.
    """
    from cocotb_tools import config

    _refuse(design, job)
    binary = _compiled(design, stored_beats(job)) / BINARY
    library = config.lib_name_path("vpi", "icarus")
    return [system_tool("vvp"), "-m", str(library), str(binary), f"+max_cycles={job.max_cycles}"]


def _refuse(design: Design, job: Job) -> None:
    """UserError for a run that only Verilator can do."""
    asked = {
        "HBM timing": job.memory.hbm,
        "random stalls": job.stall_percent != 0,
        "waves": job.waves is not None or design.waves,
        f"more than {MOST_FAULTS} planted faults": len(job.faults) > MOST_FAULTS,
    }
    for what, wanted in asked.items():
        if wanted:
            raise UserError(f"SIM=icarus has no {what}: run it with SIM=verilator")


def stored_beats(job: Job) -> list[int]:
    """How many beats of each port's memory are stored."""
    return [min(size // BEAT_BYTES, MOST_BEATS) for size in job.sizes_bytes]


def _compiled(design: Design, beats: Sequence[int]) -> Path:
    """The folder of the cache that holds `BINARY`, for memories of so many beats."""
    compiler = system_tool("iverilog")
    sources = {
        "design.v": one_process(design.verilog),
        "axi_memory.v": memory_text(),
        "testbench.v": plain_testbench(design.top, beats, design.kernel),
    }
    version = subprocess.run([compiler, "-V"], capture_output=True, text=True, check=False).stdout.splitlines()[0]
    state = sha256(f"{version}\n{_FLAGS}\n".encode())
    for name, text in sources.items():
        state.update(f"{name}\0{len(text)}\0{text}".encode())

    def make(folder: Path) -> None:
        for name, text in sources.items():
            (folder / name).write_text(text)
        made = subprocess.run(
            [compiler, *_FLAGS, "-o", BINARY, *sources], cwd=folder, capture_output=True, text=True, check=False
        )
        if made.returncode:
            raise InternalError(f"iverilog could not compile {design.top}:\n{made.stderr}")

    return entry("icarus", state.hexdigest()[:32], make)


_REGISTER = r"  always @\(posedge clk\)\n    ([^;]*;)\n"
_REGISTERS = re.compile(f"(?:{_REGISTER}){{2,}}")


def one_process(verilog: str) -> str:
    """The same design with neighbouring registers in one `always` block, as Yosys writes a block for each.

    Waking a block costs Icarus more than what it does: `tiny` then runs 1.8 times as many cycles a second.
    """

    def together(blocks: re.Match) -> str:
        lines = "".join(f"    {assignment}\n" for assignment in re.findall(_REGISTER, blocks[0]))
        return f"  always @(posedge clk) begin\n{lines}  end\n"

    return _REGISTERS.sub(together, verilog)


def write_files(folder: Path, job: Job) -> None:
    """Writes what plain/axi_memory.v reads."""
    for name, text in memory_files(job, stored_beats(job)).items():
        (folder / name).write_text(text)


def problem(folder: Path) -> str | None:
    """Why the simulation stopped, if a memory refused a request."""
    log = folder / "simulation.log"
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith("alula: "):
            return line.removeprefix("alula: ")
    return None


def collect(folder: Path, job: Job, answer: Answer) -> RunResult:
    """What cocotb and the memories wrote."""
    dumps = []
    for number, wanted in enumerate(job.dump_ranges):
        raw = read_beats((folder / f"dump_{number}.hex").read_text())
        offset = wanted.address % BEAT_BYTES
        dumps.append(raw[offset : offset + wanted.length_bytes])
    ports, axi = [], []
    for port in range(len(job.sizes_bytes)):
        *bursts, moved = [line.split() for line in (folder / f"port_{port}.txt").read_text().splitlines()]
        ports.append(PortStatistics(*map(int, moved[1:])))
        for _, is_write, *values in bursts:
            axi.append(AxiEvent(port, "write" if int(is_write) else "read", *map(int, values)))
    axi.sort(key=lambda event: (event.last_cycle, event.port, event.kind))
    events = _trace_events(folder / "trace.txt")
    return RunResult(answer["stop_cycle"], answer["reads"], dumps, events, ports, axi)


def _trace_events(path: Path) -> list[TraceEvent]:
    """Starts and ends of a unit match in order. What is open when another run begins, or at the end, has no end."""
    events: list[TraceEvent] = []
    started: dict[int, deque[tuple[int, int]]] = defaultdict(deque)
    began = None
    for line in path.read_text().splitlines():
        kind, *numbers = line.split()
        unit, cycle, run_cycle, tag = map(int, numbers)
        if cycle - run_cycle != began:
            events += _open(started)
            began = cycle - run_cycle
        if kind == "start":
            started[unit].append((tag, run_cycle))
        else:
            start_tag, start_cycle = started[unit].popleft()
            events.append(TraceEvent(UNITS[unit], start_tag, start_cycle, run_cycle))
    return events + _open(started)


def _open(started: dict[int, deque[tuple[int, int]]]) -> list[TraceEvent]:
    """The events that have not ended; forgets them."""
    events = [TraceEvent(UNITS[unit], tag, start, None) for unit in sorted(started) for tag, start in started[unit]]
    started.clear()
    return events
