"""Random programs on every executor: legal ones, and the same with damaged words or damaged weight streams.

A seed makes a program and the memory that it finds; messages name it. Programs of one batch share an RTL process
(`tests.cross.many_starts`): each finds the memory that those before it left, and stores where no other does.
"""

import random
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from hw.spec.assembly import disassemble_word
from hw.spec.config import BEAT_BYTES
from hw.spec.isa import FIELDS, Error, Instruction, Op, Unit
from hw.spec.memory import MemoryModel
from hw.spec.run import Invocation
from hw.spec.weights import HEADER_RUNS, RUN_BYTES, RUN_FIELDS
from sim.memory_image import MemoryImage
from tests.cross.lockstep import (
    TINY,
    Runs,
    against_the_functional,
    against_the_rtl,
    call,
    load,
    memory_differences,
    run_all,
    run_simulators,
    status,
)
from tests.cross.many_starts import put_cleaner, run_many
from tests.cross.races import WatchedCycleBackend
from tests.cross.random_programs import DUMP_BEATS, RandomProgram, put_data, put_streams
from tests.sim.streams import header_positions

BATCH = 25
"""Programs in one RTL process."""
FIRST_DUMP = 8192
STREAM_BEATS = 4096
"""Of one program, at most."""
PROGRAMS, PROGRAM_BEATS = 140_000, 512
LATENCIES = MemoryModel(TINY.read_latency, TINY.write_latency), MemoryModel(2, 1), MemoryModel(60, 40)
PATIENCE = 20_000
"""The watchdog of all these programs."""
MOST_INSTRUCTIONS = 20_000
MOST_BYTES = 512 << 20
"""That a simulator may take for one program."""


Damage = Callable[[random.Random, RandomProgram], tuple[list[int], str]]
"""Gives the words of a damaged program, and what was done. It may damage the program's streams in place."""


@dataclass
class Batch:
    """Programs that follow each other. what: what was done to them."""

    damaged: bool
    what: list[str]
    memory: MemoryImage
    calls: list[Invocation]


def batch_of(seeds: list[int], damage: Damage | None, blocks: int, steps: int) -> Batch:
    what, calls = [], []
    memory = MemoryImage(TINY)
    put_data(memory, seeds[0])
    put_cleaner(memory)
    for place, seed in enumerate(seeds):
        program = RandomProgram(seed, blocks, steps, FIRST_DUMP + place * DUMP_BEATS, 16384 + place * STREAM_BEATS)
        assert program.source.next_stream <= 16384 + (place + 1) * STREAM_BEATS
        words, how = damage(random.Random(seed), program) if damage else (program.words, "")
        at = PROGRAMS + place * PROGRAM_BEATS
        assert len(words) <= PROGRAM_BEATS * 8
        put_streams(memory, program)
        memory.write(TINY.aux_port, at * BEAT_BYTES, np.array(words, "<u8"))
        limit = MOST_INSTRUCTIONS if damage else 0
        calls.append(Invocation(at, len(words), 0, tuple(program.arguments), PATIENCE, limit))
        what.append(f"seed {seed}, {how or 'legal'}")
    return Batch(damage is not None, what, memory, calls)


def damage_words(rng: random.Random, program: RandomProgram) -> tuple[list[int], str]:
    """The program with flipped bits, random words or fields, swapped or missing instructions; and what was done."""
    words = program.words
    out, kind = list(words), rng.choice(["bit", "bit", "bit", "bits", "word", "field", "field", "swap", "drop"])
    at = rng.randrange(len(out))
    if kind == "bit":
        out[at] ^= 1 << rng.randrange(64)
    elif kind == "bits":
        for _ in range(4):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(64)
    elif kind == "word":
        out[at] = rng.getrandbits(64)
    elif kind == "field":
        at = rng.choice([i for i, word in enumerate(out) if word & 0xFF == Op.SET])
        value = rng.choice([rng.getrandbits(32), rng.getrandbits(8), 0, 0xFFFFFFFF, 1 << 31, rng.getrandbits(16)])
        out[at] = out[at] & 0xFFFFFFFF | value << 32
    elif kind == "swap":
        other = rng.randrange(len(out))
        out[at], out[other] = out[other], out[at]
    else:
        del out[at]
    changed = [f"{i}: {_text(a)} -> {_text(b)}" for i, (a, b) in enumerate(zip(words, out, strict=False)) if a != b]
    return out, f"{kind}, {'; '.join(changed[:2])}"


def damage_streams(rng: random.Random, program: RandomProgram) -> tuple[list[int], str]:
    """A field of a run has another bit, in one unit's stream or in all, or an MX makes other groups, steps or rows."""
    streams, words = program.source.streams, list(program.words)
    if streams and rng.random() < 0.7:
        _, data = rng.choice(streams)
        unit = rng.randrange(TINY.units)
        slots = range(0, HEADER_RUNS * RUN_BYTES, RUN_BYTES)
        places = [at * BEAT_BYTES + slot for at in header_positions(data[unit]) for slot in slots]
        used = [place for place in places if data[unit][place]]
        name, bit, every = *rng.choice(RUN_BITS), rng.random() < 0.5
        where = rng.choice(used) + bit // 8
        for which in range(TINY.units) if every else (unit,):
            changed = bytearray(data[which])
            changed[where] ^= 1 << bit % 8
            data[which] = bytes(changed)
        return words, f"{name} of a run at byte {where} of {'every unit' if every else f'unit {unit}'}"
    name = rng.choice(["group", "group", "n_last", "ob", "n_rows"])
    field = Unit.MX << 5 | FIELDS[Unit.MX].index(name)
    sets = [i for i, word in enumerate(words) if word & 0xFFFF == Op.SET | field << 8]
    if not sets:
        return words, "nothing"
    at, value = rng.choice(sets), rng.choice([0, 1, 2, 3, 4, 5, 8, 16, 17, 33])
    words[at] = Instruction(Op.SET, field, imm=value).encode()
    return words, f"{at}: {name} = {value}"


RUN_BITS = [
    (name, sum(width for _, width in RUN_FIELDS[:place]) + bit)
    for place, (name, width) in enumerate(RUN_FIELDS)
    for bit in range(min(width, 3))
]
"""(field, bit of a slot) of what is damaged in a run: every field as often as it has bits, up to three."""


def _text(word: int) -> str:
    try:
        return disassemble_word(word)
    except ValueError:
        return f"0x{word:016x}"


@dataclass
class Tally:
    """What a batch did, for the report of a run."""

    found: list[str]
    """What differs."""
    statuses: Counter
    instructions: int = 0
    cycles: int = 0
    racing: int = 0
    most_bytes: int = 0

    def __str__(self) -> str:
        return (
            f"{self.statuses.total()} programs, {self.instructions} instructions, {self.cycles} cycles, "
            f"{self.racing} with races, simulators took at most {self.most_bytes >> 20} MiB, "
            f"{len(self.found)} mismatches; {dict(self.statuses)}"
        )


def compare(batch: Batch, model: MemoryModel, tally: Tally) -> None:
    """Runs a batch on every executor. Memory is compared at the end, but for what programs with races wrote."""
    left, every, written = batch.memory.fork(), [], []
    for one in batch.calls:
        runs, racing, used = simulate(left, one, model)
        racing = racing and batch.damaged  # the others have none, whatever a cautious judgement says
        tally.racing += racing
        tally.most_bytes = max(tally.most_bytes, used)
        before, left = left, runs.memories["cycle"].fork()
        written += [(before, left)] if racing else []
        every.append((runs, racing))
    results = run_many(batch.memory, batch.calls, model, 2 * (PATIENCE + 2 * MOST_INSTRUCTIONS) * len(batch.calls))
    for (runs, racing), result, what in zip(every, results, batch.what, strict=True):
        runs.rtl = result
        differing = against_the_rtl(runs, compare_memory=False)
        if not racing:
            differing += against_the_functional(runs, compare_memory=not batch.damaged)
        tally.found += [f"{what}: {line}" for line in differing]
        tally.statuses[result.status.name] += 1
        tally.instructions += result.counters["instructions"]
        tally.cycles += result.cycles or 0
    tally.found += [
        f"{batch.what[0]} and those behind: {line}" for line in memory_differences(left, batch.memory, written)
    ]


def simulate(memory: MemoryImage, one: Invocation, model: MemoryModel) -> tuple[Runs, bool, int]:
    """The simulators' runs, whether the program has a race, and the bytes that they took at most."""
    cycle = WatchedCycleBackend(model)
    tracemalloc.start()
    runs = run_simulators(memory, one, model, cycle)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return runs, cycle.races(), used


def run_batches(seeds: range, damage: Damage | None, blocks: int, steps: int) -> Tally:
    tally = Tally([], Counter())
    for number, first in enumerate(range(seeds.start, seeds.stop, BATCH)):
        chosen = list(range(first, min(first + BATCH, seeds.stop)))
        compare(batch_of(chosen, damage, blocks, steps), LATENCIES[number % len(LATENCIES)], tally)
    print(f"seeds {seeds.start}..{seeds.stop - 1}: {tally}")
    return tally


@pytest.mark.parametrize("seeds", [range(12), pytest.param(range(100, 300), marks=pytest.mark.slow)], ids=str)
def test_legal_programs(seeds: range) -> None:
    tally = run_batches(seeds, None, blocks=3, steps=30)
    assert not tally.found, "\n".join(tally.found)
    assert set(tally.statuses) == {"NONE"}


@pytest.mark.parametrize("seeds", [range(1000, 1036), pytest.param(range(2000, 2200), marks=pytest.mark.slow)], ids=str)
def test_damaged_programs(seeds: range) -> None:
    tally = run_batches(seeds, damage_words, blocks=1, steps=12)
    assert not tally.found, "\n".join(tally.found)
    assert tally.most_bytes < MOST_BYTES
    assert tally.racing < len(seeds) // 2 and len(tally.statuses) >= 4, "little was compared"


@pytest.mark.parametrize("seeds", [range(4000, 4025), pytest.param(range(5000, 5200), marks=pytest.mark.slow)], ids=str)
def test_damaged_streams(seeds: range) -> None:
    tally = run_batches(seeds, damage_streams, blocks=1, steps=12)
    assert not tally.found, "\n".join(tally.found)
    assert tally.statuses[Error.STREAM_HEADER.name] >= len(seeds) // 4, "little was damaged"


def alone(program: RandomProgram, words: list[int]) -> tuple[MemoryImage, Invocation]:
    """A program by itself, as the executors start it."""
    memory = MemoryImage(TINY)
    put_data(memory, program.seed)
    put_streams(memory, program)
    load(memory, words)
    options = {"args": tuple(program.arguments), "watchdog": PATIENCE, "instruction_limit": MOST_INSTRUCTIONS}
    return memory, call(words, **options)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_legal_programs_on_other_memories(seed: int) -> None:
    """Jitter and HBM, whose times depend on everything before: a process each; and stalls, which change times only."""
    program = RandomProgram(seed, 2, 20)
    stall = 40 if seed % 4 == 3 else 0
    model = MemoryModel(20, 10, 37 * (seed % 2), seed, hbm=seed % 4 == 2)
    runs = run_all(*alone(program, program.words), model, stall)
    assert runs.rtl.status == Error.NONE, status(runs.rtl)
    found = [] if stall else against_the_rtl(runs)
    assert not found + memory_differences(runs.memories["cycle"], runs.memories["rtl"]) + against_the_functional(runs)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3000, 3012))
def test_damaged_programs_on_other_memories(seed: int) -> None:
    program = RandomProgram(seed, 1, 12)
    words, what = damage_words(random.Random(seed), program)
    model = MemoryModel(20, 10, 37 * (seed % 2), seed, hbm=seed % 2 == 0)
    runs = run_all(*alone(program, words), model)
    print(f"seed {seed}, {what}: {status(runs.rtl)}")
    assert not against_the_rtl(runs, compare_memory=False), what
