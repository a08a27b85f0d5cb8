"""A run in terms of control registers: what starts an invocation, what a finished one is read from."""

from collections.abc import Callable

from hw.spec.csr import COUNTERS, REGISTERS, counter_offset
from hw.spec.isa import WORD_MASK, Error
from hw.spec.run import Invocation, Result

STATUS = ("status", "status_detail", "status_pc")


def argument_writes(invocation: Invocation) -> list[tuple[int, int]]:
    """(offset, value) of the arguments; START is not among them."""
    values = {
        "program_addr": invocation.program_addr,
        "program_length": invocation.program_length,
        "entry": invocation.entry,
        "flags": invocation.flags,
        "watchdog": invocation.watchdog,
        "instruction_limit": invocation.instruction_limit,
    }
    values |= {f"arg{i}": value & WORD_MASK for i, value in enumerate(invocation.args, 1)}
    return [(REGISTERS[name], value) for name, value in values.items()]


def result_offsets() -> list[int]:
    """Every register that a result is made of."""
    return [REGISTERS[name] for name in STATUS] + [counter_offset(name) + half for name in COUNTERS for half in (0, 4)]


def read_result(read: Callable[[int], int]) -> Result:
    """The result of a run that is done; read: the value of the register at an offset."""
    status, detail, pc = (read(REGISTERS[name]) for name in STATUS)
    counters = {name: read(counter_offset(name)) | read(counter_offset(name) + 4) << 32 for name in COUNTERS}
    return Result(Error(status), detail, pc, counters["cycles"], counters)
