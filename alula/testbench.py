"""`alula emit`: a configuration's Verilog; on request with a test bench that any Verilog simulator runs.

The bench plays one run: a program in the memory, the registers that start it, what registers and memories hold when it
is over. The bytes are the functional simulator's, cycles and counters the cycle simulator's.
"""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from jinja2 import Template

from alula.runtime.session import Session
from alula.session import open_flow
from alula.verification import synthetic_ids
from hw.emit import DSP_MODEL, TOP, emit
from hw.spec.config import BEAT_BYTES, Config
from hw.spec.csr import COUNTERS, REGISTERS, counter_offset
from hw.spec.errors import UserError
from hw.spec.isa import INSTRUCTION_BYTES
from hw.spec.memory import MemoryModel
from hw.spec.run import Invocation, Result
from sim.cycle import CycleBackend
from sim.functional import FunctionalBackend
from sim.memory_image import PAGE_BYTES, MemoryImage
from sim.registers import STATUS
from sim.rtl.backend import csr_writes
from sim.rtl.job import Job
from sim.rtl.job import MemoryImage as Part
from sim.rtl.plain_files import expected_file, memory_files
from sim.rtl.testbench import bench_waivers, memory_text, plain_testbench, self_check

LAYER_TOKENS = 16
"""Length of the prefill that the bench plays where no program is given."""
MOST_INSTRUCTIONS = 10_000_000
"""Instructions after which a program that was given counts as endless."""
README = "README.md"


@dataclass
class Recording:
    """One run of a machine and what it must leave. Memories have a fixed latency."""

    what: str
    config: Config
    before: MemoryImage
    invocation: Invocation
    after: MemoryImage
    result: Result
    model: MemoryModel

    @property
    def written(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """(port, byte address, bytes) of every page that the run writes."""
        return ((port, address, self.after.read(port, address, n)) for port, address, n in self.after.touched())

    def stored_beats(self) -> list[int]:
        """How many beats of each port's memory the run needs."""
        ends = [PAGE_BYTES] * (self.config.units + 1)
        for port, address, data in (*self.before.contents(), *self.written):
            ends[port] = max(ends[port], address + data.nbytes)
        return [-(-end // PAGE_BYTES) * PAGE_BYTES // BEAT_BYTES for end in ends]

    def registers(self) -> list[tuple[str, int, int]]:
        """(name, offset, value) of status and counters; a counter is two registers."""
        status = zip(STATUS, (self.result.status.value, self.result.detail, self.result.pc), strict=True)
        found = [(name, REGISTERS[name], value) for name, value in status]
        for name in COUNTERS:
            value = self.result.counters[name]
            found += [(name, counter_offset(name), value & 0xFFFFFFFF), (name, counter_offset(name) + 4, value >> 32)]
        return found


class Recorder:
    """A backend that runs the functional and the cycle simulator and keeps the latest run."""

    name = "recorder"

    def __init__(self, what: str):
        self.what = what
        self.latest: Recording | None = None

    def run(self, config: Config, memory: MemoryImage, invocation: Invocation) -> Result:
        before, after = memory.fork(), memory.fork()
        model = MemoryModel.of(config, "fixed")
        result = FunctionalBackend().run(config, after, invocation)
        if result.ok:
            result = CycleBackend(model, with_data=True).run(config, memory, invocation)
        self.latest = Recording(self.what, config, before, invocation, after, result, model)
        return result


def record_layer(config: Config) -> Recording:
    """A prefill of `LAYER_TOKENS` tokens through the first decoder layer of llava-tiny; UserError for a configuration
    that llava-tiny cannot be compiled for."""
    try:
        flow = open_flow("llava-tiny", config, layers=1, vision=False)
    except UserError as error:
        raise UserError(f"the bench's own run does not fit {config}: give one with --program FILE ({error})") from None
    recorder = Recorder(f"a prefill of {LAYER_TOKENS} tokens through the first decoder layer of llava-tiny")
    session: Session = flow.machine(recorder)
    session.prefill(session.prompt_rows(synthetic_ids(flow, LAYER_TOKENS)))
    assert recorder.latest is not None
    return recorder.latest


def record_program(config: Config, path: Path, program: bytes) -> Recording:
    """The instructions of a file that `alula asm` wrote, on memories of zeros (the program itself lies at address 0 of
    the auxiliary memory). UserError where it is no program, or does not end in success."""
    if not program or len(program) % INSTRUCTION_BYTES:
        raise UserError(
            f"{path} has {len(program)} bytes, a program is a multiple of {INSTRUCTION_BYTES}: give a file made by "
            "`alula asm`"
        )
    n_instructions = len(program) // INSTRUCTION_BYTES
    if n_instructions > config.imem_instructions:
        raise UserError(
            f"{path} has {n_instructions:,} instructions, {config} holds {config.imem_instructions:,}: shorten it, or "
            "--set imem_instructions"
        )
    memory = MemoryImage(config)
    memory.write(config.aux_port, 0, program)
    recorder = Recorder(f"the program of {path.name}, on memories of zeros")
    result = recorder.run(config, memory, Invocation(0, n_instructions, instruction_limit=MOST_INSTRUCTIONS))
    if not result.ok:
        raise UserError(
            f"{path} ends with {result.status.name} (detail {result.detail}) at pc {result.pc}: give a program that "
            "ends in HALT 0"
        )
    assert recorder.latest is not None
    return recorder.latest


def bench_files(recording: Recording, design: str) -> dict[str, str]:
    """File name -> text of the bench around the Verilog file named `design`."""
    beats = recording.stored_beats()
    image = [Part(port, address, data) for port, address, data in recording.before.contents()]
    cycles = recording.result.counters["cycles"]
    job = Job(recording.before.sizes_bytes, recording.model, image, (), 2 * cycles + 10_000, (), False, None, 0)
    pages = list(recording.written)
    expected = {
        f"expected_{port}.hex": expected_file((address, data) for at, address, data in pages if at == port)
        for port in range(len(beats))
    }
    check = self_check(
        len(beats),
        csr_writes(recording.invocation),
        recording.registers(),
        cycles,
        sum(data.nbytes for *_, data in pages) // BEAT_BYTES,
        job.max_cycles,
    )
    waivers = files("hw").joinpath("verilog", "waivers.vlt").read_text().replace("*design.v", f"*{design}")
    return {
        "waivers.vlt": waivers + bench_waivers(),
        "axi_memory.v": memory_text(),
        "testbench.v": plain_testbench(TOP, beats),
        "self_check.v": check,
        README: _readme(recording, design),
        **memory_files(job, beats),
        **expected,
    }


def emit_folder(config: Config, folder: Path, recording: Recording | None) -> list[Path]:
    """Writes a configuration's Verilog, and the bench of a recording; the paths of the files. UserError where the
    folder cannot be written, which then has no new file."""
    made: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".emit-", dir=folder) as name:
            work = Path(name)
            design, *_ = emit(config, work)
            for file_name, text in (bench_files(recording, design.name) if recording else {}).items():
                (work / file_name).write_text(text)
            for path in sorted(work.iterdir()):
                shutil.move(path, folder / path.name)
                made.append(folder / path.name)
    except OSError as error:
        raise UserError(
            f"cannot write into {folder}: {error.strerror}: make room there or choose another -o"
        ) from error
    return made


def _readme(recording: Recording, design: str) -> str:
    """The text that says how to run the bench: `testbench_readme.md.jinja` with this recording's values."""
    template = files(__package__).joinpath("testbench_readme.md.jinja").read_text()
    return Template(template, keep_trailing_newline=True).render(
        config=str(recording.config),
        run=recording.what,
        cycles=f"{recording.result.counters['cycles']:,}",
        model=recording.model,
        design=design,
        dsp_model=DSP_MODEL.name,
        sources=f"self_check.v testbench.v axi_memory.v {design} {DSP_MODEL.name}",
    )
