"""Damaged programs and weight streams: whatever the words are, every executor ends the run with a status."""

from collections.abc import Iterator

import numpy as np
import pytest

from alula.runtime.session import Session
from alula.session import open_flow
from hw.spec.config import BEAT_BYTES
from hw.spec.isa import INSTRUCTION_BYTES, Error
from hw.spec.run import Invocation, Result
from ref_model.compress import Compression
from sim.functional import FunctionalBackend
from sim.memory_image import MemoryImage
from sim.registry import backend
from sim.rtl import accelerator

SEED = 20261124
WATCHDOG, INSTRUCTIONS, CYCLES = 20_000, 20_000, 600_000
"""Cycles without a retired instruction, instructions, and cycles after which a run counts as hung."""

DECIDED = (Error.ILLEGAL_INSTRUCTION, Error.PC_RANGE, Error.HALT_CODE)
"""What the sequencer alone decides, whatever the order of the units' work."""


class Recorder:
    """A functional backend that keeps what it was started with."""

    name = "functional"

    def __init__(self) -> None:
        self.memory: MemoryImage | None = None
        self.invocation: Invocation | None = None

    def run(self, config, memory: MemoryImage, invocation: Invocation) -> Result:
        self.memory, self.invocation = memory.fork(), invocation
        return FunctionalBackend().run(config, memory, invocation)


@pytest.fixture(scope="module")
def recorded():
    """Flow, memory and invocation of a three-token prefill with mixed weights."""
    flow = open_flow("llava-tiny", "tiny", vision=False, compression=Compression.parse("mixed", "mixed", "plain"))
    recorder = Recorder()
    machine = Session(flow.compiled, flow.image.fork(), recorder)
    machine.prefill([machine.embed_row(token) for token in (5, 77, 200)])
    call = recorder.invocation
    assert recorder.memory is not None and call is not None
    limited = Invocation(call.program_addr, call.program_length, call.entry, call.args, WATCHDOG, INSTRUCTIONS)
    return flow, recorder.memory, limited


def run_all(flow, memory: MemoryImage, call: Invocation) -> dict[str, Result]:
    """Every executor's result; a run that hangs or a simulator that crashes raises."""
    options = {
        "functional": {},
        "cycle": {"with_data": True},
        "rtl": {"design_of": lambda config: accelerator.design(config.name), "max_cycles": CYCLES, "dump": ()},
    }
    return {name: backend(name, **given).run(flow.config, memory.fork(), call) for name, given in options.items()}


def damaged_programs(memory: MemoryImage, call: Invocation, count: int) -> Iterator[tuple[str, MemoryImage]]:
    """Programs with flipped bits, random words, swapped and repeated instructions."""
    generator = np.random.default_rng(SEED)
    port, at = memory.config.aux_port, call.program_addr * BEAT_BYTES
    program = memory.read(port, at, call.program_length * INSTRUCTION_BYTES).view(np.uint64).copy()
    for number in range(count):
        words, where = program.copy(), generator.integers(0, len(program), 4)
        kind = ("bits", "words", "swapped", "repeated")[number % 4]
        if kind == "bits":
            words[where] ^= np.uint64(1) << generator.integers(0, 64, 4).astype(np.uint64)
        elif kind == "words":
            words[where] = generator.integers(0, 1 << 63, 4).astype(np.uint64)
        elif kind == "swapped":
            words[where] = words[where[::-1]]
        else:
            words[where[0] :] = np.roll(words[where[0] :], 1)
        image = memory.fork()
        image.write(port, at, words)
        yield f"{kind} {where.tolist()}", image


@pytest.mark.parametrize("count", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_every_program_ends(recorded, count: int) -> None:
    flow, memory, call = recorded
    found: list[str] = []
    for what, image in damaged_programs(memory, call, count):
        results = run_all(flow, image, call)
        found.append(f"{what}: {', '.join(f'{name} {result.status.name}' for name, result in results.items())}")
        rtl, functional = results["rtl"], results["functional"]
        assert rtl.cycles and rtl.cycles < CYCLES, found[-1]
        if functional.status in DECIDED:
            assert rtl.status != Error.NONE, found[-1]
    print(f"seed {SEED}", *found, sep="\n")
    assert any("rtl NONE" not in line for line in found), "nothing was damaged"


@pytest.mark.parametrize("count", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_every_weight_stream_ends(recorded, count: int) -> None:
    """A damaged header ends the run; damaged codes only change values."""
    flow, memory, call = recorded
    generator, statuses = np.random.default_rng(SEED), []
    section = flow.layout.channel["text.weights"]
    for _ in range(count):
        image, unit = memory.fork(), int(generator.integers(0, flow.config.units))
        beats = generator.integers(section.base, section.base + section.beats, 6)
        for at in (beats * BEAT_BYTES + generator.integers(0, 4, 6)).tolist():
            image.write(unit, at, generator.integers(0, 256, 1).astype(np.uint8))
        results = run_all(flow, image, call)
        statuses.append([result.status for result in results.values()])
        assert len(set(statuses[-1])) == 1, (SEED, statuses[-1])
    print(f"seed {SEED}", statuses)
