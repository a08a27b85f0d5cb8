"""The smallest programs at the edge of the instruction set, on every executor: what `hw.spec.legal` says, bit for bit.

Each case says what it ends with, so that executors cannot agree on something else.
"""

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest

from compiler.stream import encode
from hw.spec.config import BEAT_BYTES
from hw.spec.isa import CTL0, CTL1, FIELDS, SEMAPHORE_MAX, Dst, Error, Mul3, Op, Reduce, Src, Unit, pack_bits
from hw.spec.memory import MemoryModel
from hw.spec.run import SEQUENCER, Invocation
from hw.spec.timing import VU_LATENCY
from sim.memory_image import MemoryImage
from tests.compiler.test_stream import random_matrix, uniform
from tests.cross.lockstep import (
    TINY,
    Runs,
    against_the_functional,
    against_the_rtl,
    memory_differences,
    run_simulators,
    status,
)
from tests.cross.many_starts import put_cleaner, run_many
from tests.hw.machine import Program

LD, ST, RD, MX, VU = Unit
MODEL = MemoryModel(TINY.read_latency, TINY.write_latency)
VALUES, EXTREMES, RESULTS = 64, 3000, 9000
"""Aux beats: counting numbers, INT32_MIN and 5, where programs store."""
NO_STREAM, CUT, SPARSE = 256, 300, 320
"""Channel beats: what is no header, a stream of two rounds, one of a window of sparse rounds."""
PROGRAMS, APART = 140_000, 64
"""Aux beats of the programs."""
M32 = 0xFFFFFFFF
MOST_BYTES = 512 << 20
"""That simulators may take for a program, its memories included."""
PB, SB, VB, AB, OB = TINY.pb_granules, TINY.sb_granules, TINY.vb_granules, TINY.ab_granules, TINY.ob_blocks
AUX, CHANNEL = TINY.aux_bytes // BEAT_BYTES, TINY.channel_bytes // BEAT_BYTES


class Text(Program):
    """A program of whole descriptors: what is not named is 0."""

    def unit(self, unit: Unit, wait=(), signal=(), **fields) -> int:
        every = dict.fromkeys(FIELDS[unit], 0) | {name: value & M32 for name, value in fields.items()}
        return self.issue(unit, wait, signal, **every)

    def fence(self) -> None:
        self.add(Op.FENCE, imm=31)

    def load(self, **fields) -> int:
        return self.unit(LD, **{"addr": VALUES, "n_outer": 1, "n_inner": 16} | fields)

    def store(self, **fields) -> int:
        return self.unit(ST, **{"addr": RESULTS, "n_tok": 1, "n_head": 1, "n_gran": 1} | fields)

    def read(self, **fields) -> int:
        return self.unit(RD, **{"n_outer": 1, "n_inner": 4} | fields)

    def multiply(self, **fields) -> int:
        return self.unit(MX, **{"n_rows": 1, "kb": 1, "ob": 1, "n_outer": 1} | fields)

    def vector(self, ctl1: dict | None = None, **fields) -> int:
        control = {name: fields.pop(name) for name, _, _ in CTL0 if name in fields}
        words = {"ctl0": pack_bits(CTL0, control), "ctl1": pack_bits(CTL1, ctl1 or {})}
        return self.unit(VU, **{"n_outer": 1, "n_mid": 1, "n_words": 1, "len0": 1 << 20} | words | fields)

    def finish(self, granules: int = 8) -> None:
        """Stores SB."""
        self.fence()
        self.store(n_gran=granules)
        self.halt()


@dataclass
class Case:
    """A program, the options of its start, and how it ends."""

    program: Text
    error: Error = Error.NONE
    detail: int = 0
    options: dict = field(default_factory=dict)


CASES: dict[str, Callable[[], Case]] = {}


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    CASES[make.__name__] = make
    return make


def loaded() -> Text:
    """PB holds 16 granules of values; OB the same as bytes."""
    text = Text()
    text.load()
    text.fence()
    text.vector(src=Src.P, dst=Dst.OB, n_words=16)
    text.fence()
    return text


def gathered(text: Text, granules: int = 8) -> Case:
    """AB's first granules go to memory."""
    text.fence()
    text.vector(src=Src.A, dst=Dst.SB, n_words=granules)
    text.finish(granules)
    return Case(text)


# --- strides are signed --------------------------------------------------------------------------------------


@case
def vector_strides_are_signed() -> Case:
    text = loaded()
    text.vector(src=Src.P, dst=Dst.SB, n_mid=2, p=5, p_mid=-1, d_mid=1)
    text.finish()
    return Case(text)


@case
def load_strides_are_signed() -> Case:
    text = loaded()
    text.load(addr=VALUES + 2, n_outer=2, n_inner=1, stride=-1, dst=1, dst_stride=-1)
    text.fence()
    text.vector(src=Src.P, dst=Dst.SB, n_words=2)
    text.finish()
    return Case(text)


@case
def store_strides_are_signed() -> Case:
    text = loaded()
    text.vector(src=Src.P, dst=Dst.SB, n_words=16)
    text.fence()
    text.store(
        addr=RESULTS + 20, src=15, n_tok=3, n_head=2, n_gran=2, src_tok=-4, src_head=-2, stride_tok=-6, stride_head=2
    )
    text.halt()
    return Case(text)


@case
def read_strides_are_signed() -> Case:
    text = loaded()
    text.read(addr=4, n_outer=2, stride=-4)
    text.multiply(kb=2)
    return gathered(text)


@case
def act_strides_are_signed() -> Case:
    text = loaded()
    text.read()
    text.multiply(n_rows=2, act=1, act_stride=-1, dst_stride=2)
    return gathered(text)


@case
def result_strides_are_signed() -> Case:
    text = loaded()
    text.read()
    text.multiply(n_rows=2, act_stride=1, dst=2, dst_stride=-2)
    return gathered(text)


@case
def lengths_are_modulo_2_to_the_32() -> Case:
    text = loaded()
    text.vector(src=Src.P, dst=Dst.SB, n_outer=3, p_out=1, d_out=1, len0=9, len_step=-4)
    text.finish()
    return Case(text)


# --- results -------------------------------------------------------------------------------------------------


@case
def results_that_overlap_end_as_the_last_step_left_them() -> Case:
    text = loaded()
    text.read(n_inner=8)
    text.multiply(n_rows=2, ob=2, act_stride=1, dst_stride=1)
    return gathered(text)


@case
def shifts_of_any_amount_are_exact() -> Case:
    text = Text()
    text.load(addr=EXTREMES, n_inner=1)
    text.fence()
    text.vector(src=Src.P, dst=Dst.VB)
    for place, shift in enumerate((0, 1, 31, 61, 62, 63, 64, 65, 200, 255)):
        text.vector({"sh3": shift}, src=Src.P, mul3=Mul3.V, dst=Dst.SB, d=place)
    text.finish(10)
    return Case(text)


# --- unused fields -------------------------------------------------------------------------------------------


@case
def w_mid_is_unused_with_level_1() -> Case:
    text = loaded()
    text.vector(src=Src.P, reduce=Reduce.SUM, level=1, n_mid=2, w=3, w_mid=TINY.rs_entries)
    text.vector(src=Src.R0, dst=Dst.SB, r0=3)
    text.finish()
    return Case(text)


@case
def what_no_control_field_asks_for_is_not_looked_at() -> Case:
    text = loaded()
    junk = {f"{name}{part}": 0xDEADBEEF for name in ("a", "v", "r0", "r1", "w") for part in ("", "_out", "_mid")}
    text.vector(src=Src.P, dst=Dst.SB, n_words=4, **junk)
    text.finish()
    return Case(text)


# --- the sequencer's errors ----------------------------------------------------------------------------------


@case
def third_word_illegal() -> Case:
    text = Text()
    text.add(Op.ADDI, 1, 0, imm=1)
    text.add(Op.ADDI, 1, 0, imm=1)
    text.words.append(0x77)
    return Case(text, Error.ILLEGAL_INSTRUCTION, SEQUENCER)


@case
def behind_the_end() -> Case:
    text = Text()
    text.add(Op.ADDI, 1, 0, imm=1)
    return Case(text, Error.PC_RANGE, SEQUENCER)


@case
def endl_without_loop() -> Case:
    text = loaded()
    text.add(Op.ENDL)
    return Case(text, Error.LOOP_STACK, SEQUENCER)


@case
def loops_five_deep() -> Case:
    text = Text()
    text.add(Op.ADDI, 1, 0, imm=2)
    for _ in range(5):
        text.add(Op.LOOP, b=1, imm=20)
    return Case(text, Error.LOOP_STACK, SEQUENCER)


@case
def instruction_limit() -> Case:
    text = Text()
    text.add(Op.ADDI, 1, 0, imm=1)
    text.add(Op.BEQ, imm=0)
    return Case(text, Error.INSTRUCTION_LIMIT, SEQUENCER, {"instruction_limit": 77})


@case
def exit_code() -> Case:
    text = loaded()
    text.halt(9)
    return Case(text, Error.HALT_CODE, 9)


@case
def fence_of_a_unit_that_does_not_exist() -> Case:
    text = Text()
    text.words.append(Op.FENCE | 32 << 32)
    return Case(text, Error.ILLEGAL_INSTRUCTION, SEQUENCER)


@case
def scalar_beyond_aux() -> Case:
    text = Text()
    text.add(Op.LDS, 1, 0, imm=AUX * 16)
    return Case(text, Error.BUS_READ, SEQUENCER)


@case
def scalar_in_the_last_beat() -> Case:
    text = Text()
    text.add(Op.LDS, 1, 0, imm=AUX * 16 - 1)
    text.halt()
    return Case(text)


def waiting(watchdog: int) -> Case:
    text = Text()
    text.read(n_inner=64 * 16)
    text.halt()
    return Case(text, Error.WATCHDOG, SEQUENCER, {"watchdog": watchdog})


@case
def nobody_takes_what_is_read() -> Case:
    return waiting(3000)


def filling(watchdog: int) -> Case:
    """FENCE retires in the cycle behind the end of a pass of 100 words."""
    text = Text()
    text.vector(n_words=100)
    text.fence()
    text.halt()
    return Case(
        text,
        Error.WATCHDOG if watchdog < QUIET else Error.NONE,
        SEQUENCER if watchdog < QUIET else 0,
        {"watchdog": watchdog},
    )


QUIET = 1 + 100 + VU_LATENCY
"""Cycles between the retirement of ISSUE and that of FENCE in `filling`, without both."""


@case
def the_watchdog_is_just_patient_enough() -> Case:
    return filling(QUIET)


@case
def the_watchdog_is_one_cycle_too_impatient() -> Case:
    return filling(QUIET - 1)


@case
def the_watchdog_counts_the_fetch() -> Case:
    text = Text()
    text.halt()
    return Case(text, Error.WATCHDOG, SEQUENCER, {"watchdog": 5})


# --- who waits for whom --------------------------------------------------------------------------------------


def long_work(text: Text, unit: Unit) -> None:
    """Something that takes the unit longer than the sequencer takes to come to the next instruction."""
    {LD: text.load, ST: lambda: text.store(n_gran=40), RD: text.read, VU: lambda: text.vector(n_words=40)}.get(
        unit, lambda: text.multiply(n_rows=5)
    )()


def ended_by(unit: Unit, op: Op) -> Case:
    """HALT, or a FENCE of this unit alone and something behind it, while the unit works."""
    text = loaded()
    if unit == MX:
        text.read()
    long_work(text, unit)
    if op == Op.FENCE:
        text.add(Op.FENCE, imm=1 << unit)
        text.store(addr=RESULTS + 64)
    text.halt()
    return Case(text)


for unit in Unit:
    CASES[f"halt_waits_for_{unit.name.lower()}"] = lambda unit=unit: ended_by(unit, Op.HALT)
    CASES[f"fence_waits_for_{unit.name.lower()}"] = lambda unit=unit: ended_by(unit, Op.FENCE)


# --- the units' errors ---------------------------------------------------------------------------------------


def signalled(times: int) -> Text:
    text = Text()
    text.add(Op.ADDI, 1, 0, imm=times)
    text.set(LD, addr=VALUES, n_outer=1, n_inner=1)
    text.add(Op.LOOP, b=1, imm=len(text.words) + 2)
    text.add(Op.ISSUE, LD, 0, 1 << VU)
    text.add(Op.ENDL)
    text.halt()
    return text


@case
def semaphore_at_its_limit() -> Case:
    return Case(signalled(SEMAPHORE_MAX))


@case
def semaphore_beyond_its_limit() -> Case:
    return Case(signalled(SEMAPHORE_MAX + 1), Error.SEMAPHORE, LD)


@case
def an_early_range_error_comes_before_a_late_illegal_word() -> Case:
    text = Text()
    text.vector(src=Src.A, dst=Dst.SB, a=100_000)
    for _ in range(100):
        text.add(Op.ADDI, 1, 1, imm=1)
    text.words.append(0x77)
    return Case(text, Error.BUFFER_RANGE, VU)


@case
def an_early_illegal_word_comes_before_a_late_range_error() -> Case:
    text = Text()
    text.vector(src=Src.A, dst=Dst.SB, n_words=SB + 1)
    text.add(Op.ADDI, 1, 1, imm=1)
    text.words.append(0x77)
    return Case(text, Error.ILLEGAL_INSTRUCTION, SEQUENCER)


def at_the_end(kind: Unit, beyond: bool, error: Error, **fields) -> Case:
    """The last place of a buffer or memory, or the first behind it."""
    text = loaded()
    {LD: text.load, ST: text.store, RD: text.read, VU: text.vector}[kind](**fields)
    text.fence()
    text.halt()
    return Case(text, error if beyond else Error.NONE, kind if beyond else 0)


ENDS = {
    "load_granule": lambda n: at_the_end(LD, n, Error.BUFFER_RANGE, dst=PB - 16 + n),
    "load_beat": lambda n: at_the_end(LD, n, Error.BUS_READ, addr=AUX - 16 + n),
    "store_granule": lambda n: at_the_end(ST, n, Error.BUFFER_RANGE, src=SB - 5 + n, n_gran=5),
    "store_beat": lambda n: at_the_end(ST, n, Error.BUS_WRITE, addr=AUX - 5 + n, n_gran=5),
    "store_key": lambda n: at_the_end(ST, n, Error.BUS_WRITE, mode=1, addr=CHANNEL - 4 + n, n_tok=16),
    "store_value": lambda n: at_the_end(ST, n, Error.BUS_WRITE, mode=2, addr=CHANNEL - 4 + n, n_tok=3),
    "store_scale": lambda n: at_the_end(ST, n, Error.BUS_WRITE, mode=3, addr=AUX - 2 + n, n_tok=32),
    "read_beat": lambda n: at_the_end(RD, n, Error.BUS_READ, addr=CHANNEL - 20 + n, n_inner=20),
    "vector_a": lambda n: at_the_end(VU, n, Error.BUFFER_RANGE, src=Src.A, n_words=5, a=AB - 5 + n),
    "vector_v": lambda n: at_the_end(VU, n, Error.BUFFER_RANGE, src=Src.V, n_words=5, v=VB - 5 + n),
    "vector_d": lambda n: at_the_end(VU, n, Error.BUFFER_RANGE, dst=Dst.SB, n_words=5, d=SB - 5 + n),
    "vector_block": lambda n: at_the_end(VU, n, Error.BUFFER_RANGE, dst=Dst.OB, n_words=5, d=OB - 5 + n),
    "vector_row": lambda n: at_the_end(
        VU, n, Error.BUFFER_RANGE, src=Src.R0, n_mid=5, r0_mid=1, r0=TINY.rs_entries - 5 + n
    ),
}
"""Last good, first bad."""

for name, make in ENDS.items():
    CASES[f"{name}_last"] = lambda make=make: make(0)
    CASES[f"{name}_beyond"] = lambda make=make: make(1)


def multiplied(error: Error, detail: int = MX, **fields) -> Case:
    text = loaded()
    text.read(n_inner=16)
    text.multiply(kb=2, ob=2, n_rows=3, act_stride=2, **fields)
    case = gathered(text)
    case.error, case.detail = error, detail
    return case


@case
def act_blocks_wrap_behind_the_first() -> Case:
    return multiplied(Error.NONE, 0, act=OB - 6, dst_stride=4)


@case
def act_blocks_beyond() -> Case:
    return multiplied(Error.BUFFER_RANGE, act=OB - 5, dst_stride=4)


def multiplied_sparsely(error: Error, detail: int = MX, **fields) -> Case:
    """Sparse rounds read both rows of a pair for their tables, one behind the other."""
    text = loaded()
    text.read(addr=SPARSE, n_inner=sparse_stream().shape[1] // BEAT_BYTES, fmt=1)
    text.multiply(**{"kb": 8, "ob": 1, "group": 1, "act_stride": 2, "dst_stride": 4} | fields)
    case = gathered(text)
    case.error, case.detail = error, detail
    return case


@case
def sparse_act_blocks_wrap_behind_the_first() -> Case:
    return multiplied_sparsely(Error.NONE, 0, n_rows=3, act=OB - 5)


@case
def sparse_act_blocks_of_a_pair_beyond() -> Case:
    return multiplied_sparsely(Error.BUFFER_RANGE, n_rows=3, act=OB - 4)


@case
def sparse_act_blocks_of_a_pairs_second_row_beyond() -> Case:
    return multiplied_sparsely(Error.BUFFER_RANGE, n_rows=2, act=OB - 2)


@case
def results_at_the_end() -> Case:
    return multiplied(Error.NONE, 0, dst=AB - 12, dst_stride=4)


@case
def results_beyond() -> Case:
    return multiplied(Error.BUFFER_RANGE, dst=AB - 11, dst_stride=4)


@case
def too_many_rows() -> Case:
    text = loaded()
    text.read()
    text.multiply(n_rows=TINY.acc_rows + 1)
    text.halt()
    return Case(text, Error.ILLEGAL_DESCRIPTOR, MX)


@case
def undefined_format() -> Case:
    text = Text()
    text.read(fmt=2)
    text.halt()
    return Case(text, Error.ILLEGAL_DESCRIPTOR, RD)


@case
def undefined_control() -> Case:
    text = Text()
    text.vector()
    text.words[-1 - len(FIELDS[VU])] |= 7 << 32 + 4 + 3  # func
    text.halt()
    return Case(text, Error.ILLEGAL_DESCRIPTOR, VU)


@case
def no_words() -> Case:
    text = loaded()
    text.store(n_head=0)
    text.halt()
    return Case(text, Error.ILLEGAL_DESCRIPTOR, ST)


# --- streams -------------------------------------------------------------------------------------------------


@case
def unknown_header() -> Case:
    text = Text()
    text.read(addr=NO_STREAM, fmt=1)
    text.multiply()
    text.halt()
    return Case(text, Error.STREAM_HEADER, RD)


@case
def unknown_header_that_nobody_takes() -> Case:
    text = Text()
    text.read(addr=NO_STREAM, fmt=1)
    text.halt()
    return Case(text, Error.STREAM_HEADER, RD)


@case
def stream_inside_a_raw_block() -> Case:
    text = Text()
    text.read(n_inner=2)
    text.read(addr=CUT, fmt=1)
    text.halt()
    return Case(text, Error.STREAM_HEADER, RD)


@case
def step_of_two_formats() -> Case:
    text = loaded()
    text.read(n_inner=4)
    text.read(addr=CUT, n_inner=2, fmt=1)
    text.multiply(kb=2)
    text.halt()
    return Case(text, Error.STREAM_HEADER, MX)


@case
def stream_for_split_k() -> Case:
    text = loaded()
    text.read(addr=CUT, n_inner=2, fmt=1)
    text.multiply(mode=1, kb=8)
    text.halt()
    return Case(text, Error.STREAM_HEADER, MX)


@case
def beats_beyond_memory_that_nobody_makes_room_for() -> Case:
    text = Text()
    text.read(addr=CHANNEL - 1024, n_inner=1040)
    text.halt()
    return Case(text, Error.WATCHDOG, SEQUENCER, {"watchdog": 3000})


@case
def beats_beyond_memory_that_nobody_takes() -> Case:
    text = Text()
    text.read(addr=CHANNEL - 16, n_inner=17)
    text.halt()
    return Case(text, Error.BUS_READ, RD)


# --- size ----------------------------------------------------------------------------------------------------


@case
def more_words_than_anyone_waits_for() -> Case:
    text = Text()
    text.vector(src=Src.R0, dst=Dst.SB, n_mid=1 << 31)
    text.halt()
    return Case(text, Error.WATCHDOG, SEQUENCER, {"watchdog": 5000})


@case
def more_beats_than_anyone_waits_for() -> Case:
    text = Text()
    text.load(n_outer=1 << 31, n_inner=1)
    text.halt()
    return Case(text, Error.WATCHDOG, SEQUENCER, {"watchdog": 5000})


@case
def more_items_than_anyone_waits_for() -> Case:
    text = loaded()
    text.store(n_tok=-1, n_head=-1)
    text.halt()
    return Case(text, Error.WATCHDOG, SEQUENCER, {"watchdog": 5000})


@case
def wider_than_any_stream() -> Case:
    text = loaded()
    text.read(addr=CUT, n_inner=4, fmt=1)
    text.multiply(kb=-1)
    text.read()
    text.multiply(kb=-1, ob=-1, n_outer=-1)
    text.halt()
    return Case(text, Error.WATCHDOG, SEQUENCER, {"watchdog": 5000})


@case
def reads_that_never_end() -> Case:
    text = loaded()
    text.read(addr=CUT + 8, n_outer=-1, n_inner=-1, fmt=1)
    text.halt()
    return Case(text, Error.BUS_READ, RD, {"watchdog": 1 << 20})


# --- running them --------------------------------------------------------------------------------------------


def stream_of_two_blocks() -> np.ndarray:
    """A header and the only round of a step, dense 2-bit codes, both twice."""
    from hw.spec.weights import Run

    run = Run(2, 16, 0, 1, True)
    beats = run.encode().ljust(64, b"\0") + bytes(range(64))
    return np.frombuffer(beats * 2, np.uint8)


@cache
def sparse_stream() -> np.ndarray:
    """uint8[units, bytes]: eight input blocks with four non-zeros of 16 each, for an output block a unit."""
    shape = (16 * TINY.units, 128)
    weight, form = random_matrix(shape, *uniform(shape, 8, 4))
    return encode(weight, form, TINY.units)


def prepared() -> MemoryImage:
    memory, generator = MemoryImage(TINY), np.random.default_rng(3)
    memory.write(TINY.aux_port, VALUES * BEAT_BYTES, np.arange(64 * 16, dtype="<i4"))
    memory.write(TINY.aux_port, EXTREMES * BEAT_BYTES, np.array([-(1 << 31), 5] * 8, "<i4"))
    for unit in range(TINY.units):
        memory.write(unit, 0, generator.integers(0, 256, 8192, dtype=np.uint8))
        memory.write(unit, NO_STREAM * BEAT_BYTES, np.full(64, 255, np.uint8))
        memory.write(unit, CUT * BEAT_BYTES, stream_of_two_blocks())
        memory.write(unit, SPARSE * BEAT_BYTES, sparse_stream()[unit])
    put_cleaner(memory)
    return memory


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[Case, Runs]]:
    """Every case on every executor, in one RTL process; each finds the memory that the cases before it left."""
    cases = {name: make() for name, make in CASES.items()}
    memory, calls = prepared(), {}
    for place, (name, case) in enumerate(cases.items()):
        at = PROGRAMS + place * APART
        assert len(case.program.words) <= APART * 8, name
        memory.write(TINY.aux_port, at * BEAT_BYTES, case.program.image())
        calls[name] = Invocation(at, len(case.program.words), **{"watchdog": 20_000} | case.options)
    found, left = {}, memory.fork()
    for name, call in calls.items():
        runs = run_simulators(left, call, MODEL)
        left = runs.memories["cycle"].fork()
        found[name] = cases[name], runs
    results = run_many(memory, list(calls.values()), MODEL, 20_000 * 4 * len(calls))
    for name, result in zip(calls, results, strict=True):
        found[name][1].rtl = result
    found["memory"] = Case(Text()), Runs(result, result, result, {"cycle": left, "rtl": memory})
    return found


@pytest.mark.parametrize("name", CASES)
def test_executors_agree(outcomes, name: str) -> None:
    case, runs = outcomes[name]
    assert not against_the_rtl(runs, compare_memory=False)
    assert not against_the_functional(runs)
    assert (runs.rtl.status, runs.rtl.detail) == (case.error, case.detail), status(runs.rtl)


@pytest.mark.parametrize(
    "name",
    [
        "more_words_than_anyone_waits_for",
        "more_beats_than_anyone_waits_for",
        "more_items_than_anyone_waits_for",
        "wider_than_any_stream",
        "reads_that_never_end",
    ],
)
def test_no_program_takes_memory_without_bound(name: str) -> None:
    case, memory = CASES[name](), prepared()
    memory.write(TINY.aux_port, PROGRAMS * BEAT_BYTES, case.program.image())
    tracemalloc.start()
    run_simulators(memory, Invocation(PROGRAMS, len(case.program.words), **case.options), MODEL)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < MOST_BYTES, f"{most >> 20} MiB"


def test_memory_after_all_of_them(outcomes) -> None:
    """Of the programs that failed, too, what was on the bus in time."""
    memories = outcomes["memory"][1].memories
    assert not memory_differences(memories["cycle"], memories["rtl"])
