"""Many starts of the RTL in one process: starting a simulation takes longer than most programs of these tests.

Between two programs a cleaner zeroes every buffer on the chip, so that each program finds what it finds after power-up.
The memories stay: a program finds what those before it left. Only for the fixed memory model without jitter, whose
times do not depend on what came before.
"""

from collections.abc import Iterator

import numpy as np

from hw.spec import csr
from hw.spec.config import BEAT_BYTES
from hw.spec.isa import CTL0, FIELDS, Dst, Op, Reduce, Src, Unit, pack_bits
from hw.spec.memory import MemoryModel
from hw.spec.run import Event, Invocation, Result
from sim.memory_image import MemoryImage
from sim.registers import argument_writes, read_result, result_offsets
from sim.rtl import accelerator
from sim.rtl.job import DumpRange, Job, RunResult, TraceEvent
from sim.rtl.job import MemoryImage as ImagePart
from sim.rtl.run import play
from tests.cross.lockstep import TINY
from tests.hw.machine import Program

CLEANER_PC = 4096
"""The cleaner's instructions lie behind those of every other program: their tags tell its events."""
CLEANER_BEAT = TINY.aux_bytes // BEAT_BYTES - TINY.imem_instructions // 8 - 1
ZERO_BEAT = CLEANER_BEAT - 1
ZERO_CHANNEL_BEAT = TINY.channel_bytes // BEAT_BYTES - 256
"""Beats that are zero as long as no program writes there."""


def cleaner() -> Program:
    """Zeroes PB, VB, OB, SB, the row scalars and AB."""
    program = Program([0] * CLEANER_PC)
    nothing = dict.fromkeys(FIELDS[Unit.VU], 0) | {"n_outer": 1, "n_mid": 1}
    program.issue(
        Unit.LD,
        signal=[Unit.VU],
        addr=ZERO_BEAT,
        n_outer=TINY.pb_granules,
        n_inner=1,
        stride=0,
        dst=0,
        dst_stride=1,
        kind=0,
    )
    both = {"d_mid": 1, "w_mid": 1}
    for wait, fields in (
        ([Unit.LD], {"ctl0": _copy(Dst.VB), "n_words": TINY.vb_granules}),
        ([], {"ctl0": _copy(Dst.OB), "n_mid": 2, "n_words": TINY.ob_blocks // 2, "d_mid": TINY.ob_blocks // 2}),
        ([], {"ctl0": _copy(Dst.SB, reduce=Reduce.SUM), "n_mid": TINY.rs_entries, "n_words": 1} | both),
    ):
        program.issue(Unit.VU, wait=wait, **nothing | {"len0": 1 << 20} | fields)
    steps = TINY.ab_granules // (TINY.acc_rows * TINY.units)
    program.issue(Unit.RD, addr=ZERO_CHANNEL_BEAT, n_outer=1, n_inner=4 * steps, stride=0, fmt=0)
    program.issue(
        Unit.MX,
        act=0,
        act_stride=0,
        n_rows=TINY.acc_rows,
        kb=1,
        ob=steps,
        dst=0,
        dst_stride=steps * TINY.units,
        mode=0,
        n_outer=1,
        act_out=0,
        dst_out=0,
    )
    program.halt()
    return program


def put_cleaner(memory: MemoryImage) -> None:
    memory.write(TINY.aux_port, CLEANER_BEAT * BEAT_BYTES, cleaner().image())


def _copy(dst: Dst, **control: int) -> int:
    return pack_bits(CTL0, {"src": Src.P, "dst": dst} | control)


def run_many(
    memory: MemoryImage, calls: list[Invocation], model: MemoryModel, max_cycles: int, stall_percent: int = 0
) -> list[Result]:
    """Every program's result, one after the other on this memory, which ends as they left it; `put_cleaner` first."""
    assert not model.jitter and not model.hbm, "times of such a memory depend on the runs before"
    clean = cleaner()
    n_events = sum(word & 0xFF == Op.ISSUE for word in clean.words)
    cleaning = Invocation(CLEANER_BEAT, len(clean.words), CLEANER_PC)
    operations = [operation for one in calls for operation in (*start(cleaning), *start(one))]
    found = simulate(memory, operations, model, max_cycles, stall_percent)
    results, traces = results_of(found.csr), _traces(found.events, n_events, len(calls))
    assert all(result.ok for result in results[::2]), "the cleaner failed"
    for result, trace in zip(results[1::2], traces, strict=True):
        result.trace = trace
    return results[1::2]


def simulate(
    memory: MemoryImage, operations: list[list], model: MemoryModel, max_cycles: int, stall_percent: int = 0
) -> RunResult:
    """Plays register accesses. The memory ends as the RTL leaves it."""
    ranges = [DumpRange(port, 0, size) for port, size in enumerate(memory.sizes_bytes)]
    image = [ImagePart(*place) for place in memory.contents()]
    job = Job(memory.sizes_bytes, model, image, ranges, max_cycles, (), False, None, stall_percent)
    found = play(accelerator.design(TINY.name), job, operations)
    for place, data in zip(ranges, found.dumps, strict=True):
        memory.write(place.port, place.address, data)
    return found


def start(call: Invocation) -> list[list]:
    """Register accesses of one start: arguments, START, the interrupt, the result, the interrupt's acknowledgement."""
    writes = [*argument_writes(call), (csr.GIER, 1), (csr.IER, 1), (csr.CTRL, csr.CTRL_START)]
    return [
        *(["write", *write] for write in writes),
        ["wait"],
        *(["read", offset] for offset in result_offsets()),
        ["read", csr.CTRL],
        ["write", csr.ISR, 1],
    ]


def results_of(reads: list[int]) -> list[Result]:
    """The results of starts, of which nothing else was read."""
    offsets = result_offsets()
    out = []
    for values in np.array(reads).reshape(-1, len(offsets) + 1).tolist():
        out.append(read_result(dict(zip(offsets, values, strict=False)).__getitem__))
    return out


def _traces(events: list[TraceEvent], cleaner_events: int, n_runs: int) -> Iterator[list[Event]]:
    """The events of every program, in the order of their ends, with the cleaner's between them."""
    runs: list[list[Event]] = [[] for _ in range(n_runs)]
    cleaned = 0
    for event in events:
        if event.done_cycle is None:
            continue
        if event.tag >= CLEANER_PC:
            cleaned += 1
        else:
            unit = Unit[event.unit.upper()]
            runs[cleaned // cleaner_events - 1].append(Event(event.start_cycle, unit, event.tag, event.done_cycle))
    return (sorted(trace) for trace in runs)
