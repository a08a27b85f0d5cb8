"""Runs under Icarus Verilog: the memories are plain Verilog (plain/axi_memory.v), their files are text.

Same bits and same cycles as under Verilator, from a second and independent simulator, at a hundredth of its speed.
"""

import re
import subprocess
from collections import defaultdict, deque
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from hw.spec.config import BEAT_BYTES
from hw.spec.errors import InternalError, UserError
from sim.cache import entry
from sim.rtl.build import Design
from sim.rtl.job import Answer, AxiEvent, Job, MemoryImage, PortStatistics, RunResult, TraceEvent
from sim.rtl.testbench import UNITS, memory_text, plain_testbench
from sim.rtl.toolchain import system_tool

BINARY = "simulation.vvp"
SETUP = "setup.txt"
MOST_BEATS = 1 << 22
"""Beats that the memory of a port stores (256 MiB); a request beyond them ends the run."""
MOST_FAULTS = 16
"""Planted faults of a port, as plain/axi_memory.v has room for."""
LAST_OPERATIONS = (["finish"],)
"""The memories write their files when they are asked to."""
_FLAGS = ("-g2005", "-s", "testbench")


def command(design: Design, job: Job) -> list[str]:
    """The program that simulates `design`, compiled if need be, and its arguments. It runs in the folder of the run.

    UserError for what the Verilog memories do not model, and where Icarus Verilog is not installed.
    """
    from cocotb_tools import config

    _refuse(design, job)
    binary = _compiled(design, job.sizes_bytes) / BINARY
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
            raise UserError(f"SIM=icarus has no {what}: run it with SIM=verilator (memories of a fixed latency run)")


def _compiled(design: Design, sizes_bytes: Sequence[int]) -> Path:
    """The folder of the cache that holds `BINARY`."""
    compiler = system_tool("iverilog")
    beats = [min(size // BEAT_BYTES, MOST_BEATS) for size in sizes_bytes]
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
    (folder / SETUP).write_text("\n".join(job.setup()) + "\n")
    for port, size in enumerate(job.sizes_bytes):
        text = hex_image([item for item in job.image if item.port == port], size)
        (folder / f"memory_{port}.hex").write_text(text)


def hex_image(image: Sequence[MemoryImage], size_bytes: int) -> str:
    """The text for $readmemh that puts these bytes, later ones over earlier, into a memory of 64-byte beats."""
    pages: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(_PAGE_BYTES, np.uint8))
    for item in image:
        data = item.flat()
        if item.address + len(data) > min(size_bytes, MOST_BEATS * BEAT_BYTES):
            raise InternalError(f"image: port {item.port} address 0x{item.address:x} is outside of the memory")
        done = 0
        while done < len(data):
            page, offset = divmod(item.address + done, _PAGE_BYTES)
            part = data[done : done + _PAGE_BYTES - offset]
            pages[page][offset : offset + len(part)] = part
            done += len(part)
    lines = [] if pages else ["@0", "0"]
    for page in sorted(pages):
        lines.append(f"@{page * _PAGE_BYTES // BEAT_BYTES:x}")
        lines += beats_hex(pages[page])
    return "\n".join(lines) + "\n"


_PAGE_BYTES = 4096


def beats_hex(data: np.ndarray) -> list[str]:
    """Each beat of uint8[64 * n] as Verilog writes 512 bits: the highest byte first."""
    return [beat.tobytes().hex() for beat in data.reshape(-1, BEAT_BYTES)[:, ::-1]]


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
        raw = _beats(folder / f"dump_{number}.hex")
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


def _beats(path: Path) -> bytes:
    """The bytes of a file that $writememh wrote. What was never written is x there, and zero."""
    words = [line for line in path.read_text().splitlines() if line and not line.startswith(("//", "@"))]
    return b"".join(bytes.fromhex(word.replace("x", "0"))[::-1] for word in words)


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
