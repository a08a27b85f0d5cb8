"""The cycle simulator against the RTL, event by event, counter by counter, on random tiny programs."""

import random

import pytest

from hw.spec.config import CONFIGS
from hw.spec.isa import Error
from hw.spec.memory import MemoryModel
from sim.cycle import CycleBackend
from sim.rtl.backend import RtlBackend
from sim.trace import differences
from tests.sim.test_cycle import random_run

TINY = CONFIGS["tiny"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("jitter", [0, 37])
def test_equals_the_rtl(seed, jitter):
    memory, call = random_run(random.Random(seed), 40)
    model = MemoryModel(TINY.read_latency, TINY.write_latency, jitter, seed)
    expected = CycleBackend(model).run(TINY, memory.fork(), call)
    result = RtlBackend(model=model).run(TINY, memory, call)
    assert result.status == Error.NONE
    assert not differences(result.trace, expected.trace)
    assert result.counters == expected.counters
