"""A memory that answers later than the machine waits: its beats must not reach the next program."""

from hw.control import DRAIN_LIMIT_CYCLES
from hw.spec import csr
from hw.spec.config import BEAT_BYTES
from hw.spec.isa import Error
from hw.spec.memory import MemoryModel
from hw.spec.run import SEQUENCER, Invocation
from hw.spec.timing import END_LATENCY
from sim.memory_image import MemoryImage
from tests.cross.lockstep import TINY
from tests.cross.many_starts import results_of, simulate, start
from tests.cross.test_edges import Text

WATCHDOG = 1000
LATE = MemoryModel(WATCHDOG + DRAIN_LIMIT_CYCLES + 2000, 10)
"""Its beats come when the machine has given them up, and 2,000 cycles later."""
READS = 1000
"""Register accesses that take longer than that."""
FIRST, SECOND = 4096, 5120
"""Aux beats of two programs."""


def test_a_start_is_refused_until_reset_while_an_answer_may_still_come() -> None:
    memory = MemoryImage(TINY)
    calls = []
    for beat in (FIRST, SECOND):
        text = Text()
        text.store()
        text.halt()
        memory.write(TINY.aux_port, beat * BEAT_BYTES, text.image())
        calls.append(Invocation(beat, len(text.words), watchdog=WATCHDOG))
    before = memory.fork()
    first, second, third = start(calls[0]), start(calls[1]), start(calls[1])
    waiting = [["read", csr.CTRL]] * READS
    reads = simulate(memory, [*first, *second, *waiting, *third], LATE, 1_000_000).csr
    of_two = (len(reads) - READS) * 2 // 3
    results = results_of(reads[:of_two] + reads[of_two + READS :])
    assert [(r.status, r.detail, r.cycles) for r in results] == [
        (Error.WATCHDOG, SEQUENCER, WATCHDOG + END_LATENCY + 1),
        (Error.POISONED, 0, 0),
        (Error.POISONED, 0, 0),
    ]
    for port, size in enumerate(memory.sizes_bytes):
        assert (memory.read(port, 0, size) == before.read(port, 0, size)).all()
