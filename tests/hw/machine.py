"""Helps the tests of the whole machine: a tiny assembler, and one run on the RTL."""

from dataclasses import dataclass, field

import numpy as np

from hw.spec import config as configurations
from hw.spec import csr
from hw.spec.isa import FIELDS, Instruction, Op, Unit
from hw.spec.memory import MemoryModel
from sim.rtl.accelerator import design
from sim.rtl.run import DumpRange, MemoryImage, RunResult, run

PROGRAM_BEAT = 4096
START = [(csr.GIER, 1), (csr.IER, 1), (csr.CTRL, csr.CTRL_START)]
READS = ["status", "status_detail", "status_pc"]


def offsets(names):
    """Register offsets of names and (low words of) counters."""
    return [csr.REGISTERS[n] if n in csr.REGISTERS else csr.counter_offset(n) for n in names]


def mask(units) -> int:
    return sum(1 << unit for unit in units)


@dataclass
class Program:
    """Instructions in order; helpers return the address of what they append."""

    words: list[int] = field(default_factory=list)

    def add(self, op: Op, a=0, b=0, c=0, imm=0) -> int:
        self.words.append(Instruction(op, a, b, c, imm).encode())
        return len(self.words) - 1

    def set(self, unit: Unit, register=0, **fields):
        for name, value in fields.items():
            self.add(Op.SET, unit << 5 | FIELDS[unit].index(name), register, imm=value)

    def issue(self, unit: Unit, wait=(), signal=(), **fields) -> int:
        self.set(unit, **fields)
        return self.add(Op.ISSUE, unit, mask(wait), mask(signal))

    def halt(self, code=0) -> int:
        return self.add(Op.HALT, imm=code)

    def image(self) -> np.ndarray:
        return np.array(self.words, "<u8").view(np.uint8)


@dataclass
class Outcome:
    """`raw`: the bench's result; `values`: registers and counters by name."""

    raw: RunResult
    values: dict[str, int]

    def __getattr__(self, name):
        return self.values[name]

    def event(self, tag: int):
        (found,) = [e for e in self.raw.events if e.tag == tag]
        return found


def execute(
    program: Program,
    *,
    name="tiny",
    image=(),
    dumps=(),
    counters=csr.COUNTERS,
    before=(),
    start=START,
    jitter=0,
    max_cycles=200_000,
    faults=(),
    log_axi=True,
    length=None,
    **arguments,
) -> Outcome:
    """Runs the program; arguments are argument registers by name; dumps: (port, byte address, bytes)."""
    config = configurations.get(name)
    words = program.image()
    length = len(program.words) if length is None else length
    values = {"program_addr": PROGRAM_BEAT, "program_length": length} | arguments
    names = [*READS, *counters]
    result = run(
        design(name),
        sizes_bytes=[config.channel_bytes] * config.units + [config.aux_bytes],
        memory=MemoryModel(config.read_latency, config.write_latency, jitter=jitter, seed=1),
        image=[MemoryImage(config.aux_port, PROGRAM_BEAT * 64, words), *image],
        csr_writes=[*before, *((csr.REGISTERS[key], value & 0xFFFFFFFF) for key, value in values.items()), *start],
        csr_reads=offsets(names),
        dump_ranges=[DumpRange(*d) for d in dumps],
        max_cycles=max_cycles,
        faults=faults,
        log_axi=log_axi,
    )
    return Outcome(result, dict(zip(names, result.csr, strict=True)))
