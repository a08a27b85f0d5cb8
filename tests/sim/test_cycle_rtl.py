"""The cycle simulator against the RTL, event by event, counter by counter, on random tiny programs."""

import random

import pytest

from hw.spec.config import CONFIGS
from hw.spec.isa import Error
from hw.spec.memory import MemoryModel
from hw.spec.run import Invocation
from sim.cycle import CycleBackend
from sim.memory_image import MemoryImage
from sim.rtl.backend import RtlBackend
from sim.trace import differences
from tests.sim.test_cycle import attach, program_of, random_steps

TINY = CONFIGS["tiny"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("jitter", [0, 37])
def test_equals_the_rtl(seed, jitter):
    rng = random.Random(seed)
    steps, streams = random_steps(rng, 40, TINY.units)
    program, _ = program_of(steps)
    memory = MemoryImage(TINY)
    attach(memory, streams)
    base = TINY.aux_bytes // 2
    memory.write(TINY.aux_port, base, program)
    call = Invocation(base // 64, len(program) // 8)
    model = MemoryModel(TINY.read_latency, TINY.write_latency, jitter, seed)
    expected = CycleBackend(model).run(TINY, memory.fork(), call)
    result = RtlBackend(model=model).run(TINY, memory, call)
    assert result.status == Error.NONE
    assert not differences(result.trace, expected.trace)
    assert result.counters == expected.counters
