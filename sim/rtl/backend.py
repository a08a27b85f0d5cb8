"""The RTL as a backend: memories in, registers written, one run under Verilator, memories and counters out."""

from collections.abc import Callable, Iterable

from hw.spec.config import Config
from hw.spec.csr import COUNTERS, CTRL, CTRL_START, REGISTERS, counter_offset
from hw.spec.isa import Error, Unit
from hw.spec.memory import MemoryModel
from sim.backend import Event, Invocation, Result
from sim.functional import FunctionalBackend
from sim.memory_image import MemoryImage
from sim.rtl import run as rtl
from sim.rtl.build import Design

_STATUS = ("status", "status_detail", "status_pc")
GIER, IER = 0x04, 0x08


class RtlBackend:
    """design_of: makes the `Design` of a configuration. What is read back: `dump` ranges (port, byte address, bytes),
    by default every page that a functional run of the same program writes."""

    name = "rtl"

    def __init__(
        self,
        design_of: Callable[[Config], Design] | None = None,
        model: MemoryModel | None = None,
        max_cycles: int = 10_000_000,
        dump: Iterable[tuple[int, int, int]] | None = None,
        **options,
    ):
        self.design_of = design_of or default_design
        self.model, self.max_cycles, self.dump, self.options = model, max_cycles, dump, options
        self.last: rtl.RunResult | None = None
        """Everything the latest run left: AXI events, port statistics."""

    def run(self, config: Config, memory: MemoryImage, invocation: Invocation) -> Result:
        model = self.model or MemoryModel(config.read_latency, config.write_latency)
        wanted = list(self.dump) if self.dump is not None else written_ranges(config, memory, invocation)
        self.last = rtl.run(
            self.design_of(config),
            sizes_bytes=memory.sizes_bytes,
            memory=model,
            image=[rtl.MemoryImage(port, address, data) for port, address, data in memory.contents()],
            csr_writes=csr_writes(invocation),
            csr_reads=csr_reads(),
            dump_ranges=[rtl.DumpRange(*place) for place in wanted],
            max_cycles=self.max_cycles,
            **self.options,
        )
        for (port, address, _), data in zip(wanted, self.last.dumps, strict=True):
            memory.write(port, address, data)
        return result_of(self.last)


def default_design(config: Config) -> Design:
    """The accelerator of a named configuration."""
    from hw.emit import TOP, simulation_verilog

    return Design(simulation_verilog(config.name), TOP, config.units + 1)


def written_ranges(config: Config, memory: MemoryImage, invocation: Invocation) -> list[tuple[int, int, int]]:
    """(port, byte address, bytes) of the pages a functional run writes."""
    trial = memory.fork()
    FunctionalBackend().run(config, trial, invocation)
    return list(trial.touched())


def csr_writes(invocation: Invocation) -> list[tuple[int, int]]:
    """(offset, value) that start this invocation."""
    values = {
        "program_addr": invocation.program_addr, "program_length": invocation.program_length,
        "entry": invocation.entry, "flags": invocation.flags, "watchdog": invocation.watchdog,
        "instruction_limit": invocation.instruction_limit,
    }  # fmt: skip
    values |= {f"arg{i}": value & 0xFFFFFFFF for i, value in enumerate(invocation.args, 1)}
    writes = [(REGISTERS[name], value) for name, value in values.items()]
    return [*writes, (GIER, 1), (IER, 1), (CTRL, CTRL_START)]


def csr_reads() -> list[int]:
    counters = [counter_offset(name) + half for name in COUNTERS for half in (0, 4)]
    return [REGISTERS[name] for name in _STATUS] + counters


def result_of(run: rtl.RunResult) -> Result:
    """The registers and events of a run in the terms of every backend."""
    status, detail, pc = run.csr[:3]
    halves = run.csr[3:]
    counters = {name: halves[2 * i] | halves[2 * i + 1] << 32 for i, name in enumerate(COUNTERS)}
    trace = [
        Event(e.start_cycle, Unit[e.unit.upper()], e.tag, e.done_cycle) for e in run.events if e.done_cycle is not None
    ]
    return Result(Error(status), detail, pc, counters["cycles"], counters, sorted(trace))
