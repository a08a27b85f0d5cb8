"""The RTL as a backend: memories in, registers written, one simulation (`sim.rtl.run`), memories and counters out."""

from collections.abc import Callable, Iterable

from hw.spec.config import Config
from hw.spec.csr import CTRL, CTRL_START, GIER, IER
from hw.spec.isa import Unit
from hw.spec.memory import MemoryModel
from hw.spec.run import Event, Invocation, Result
from sim.functional import FunctionalBackend
from sim.memory_image import MemoryImage
from sim.registers import argument_writes, read_result, result_offsets
from sim.rtl import run as rtl
from sim.rtl.accelerator import design
from sim.rtl.build import Design


class RtlBackend:
    """design_of: makes the `Design` of a configuration (by default the accelerator, its Verilog from the cache). dump:
    what is read back, as ranges (port, byte address, bytes); by default every page that a functional run of the same
    program writes."""

    name = "rtl"

    def __init__(
        self,
        design_of: Callable[[Config], Design] | None = None,
        model: MemoryModel | None = None,
        max_cycles: int = 10_000_000,
        dump: Iterable[tuple[int, int, int]] | None = None,
        **options,
    ):
        self.design_of = design_of or design
        self.model, self.max_cycles, self.dump, self.options = model, max_cycles, dump, options
        self.last: rtl.RunResult | None = None
        """Everything the latest run left: AXI events, port statistics."""

    def run(self, config: Config, memory: MemoryImage, invocation: Invocation) -> Result:
        model = self.model or MemoryModel.of(config)
        wanted = list(self.dump) if self.dump is not None else written_ranges(config, memory, invocation)
        self.last = rtl.run(
            self.design_of(config),
            sizes_bytes=memory.sizes_bytes,
            memory=model,
            image=[rtl.MemoryImage(port, address, data) for port, address, data in memory.contents()],
            csr_writes=csr_writes(invocation),
            csr_reads=result_offsets(),
            dump_ranges=[rtl.DumpRange(*place) for place in wanted],
            max_cycles=self.max_cycles,
            **self.options,
        )
        for (port, address, _), data in zip(wanted, self.last.dumps, strict=True):
            memory.write(port, address, data)
        return result_of(self.last)


def written_ranges(config: Config, memory: MemoryImage, invocation: Invocation) -> list[tuple[int, int, int]]:
    """(port, byte address, bytes) of the pages a functional run writes."""
    trial = memory.fork()
    FunctionalBackend().run(config, trial, invocation)
    return list(trial.touched())


def csr_writes(invocation: Invocation) -> list[tuple[int, int]]:
    """(offset, value) that start this invocation."""
    return [*argument_writes(invocation), (GIER, 1), (IER, 1), (CTRL, CTRL_START)]


def result_of(run: rtl.RunResult) -> Result:
    """The registers and events of a run in the terms of every backend."""
    values = dict(zip(result_offsets(), run.csr, strict=True))
    result = read_result(values.__getitem__)
    trace = [
        Event(e.start_cycle, Unit[e.unit.upper()], e.tag, e.done_cycle) for e in run.events if e.done_cycle is not None
    ]
    result.trace = sorted(trace)
    return result
