"""The guard of the test bench finds every breach of AXI4 that is planted, and nothing in a master that obeys."""

import pytest

from hw.spec.errors import InternalError
from hw.spec.memory import MemoryModel
from sim.rtl.build import Design
from sim.rtl.run import run
from tests.sim.bad_master import MODE, MODES, START, verilog

MEMORY = MemoryModel(20, 10, seed=3)
CHANGES = [name for name, message in MODES.items() if message and "changed" in message and name != "awlen changes"]
"""Breaches while waiting; a length that changes in flight breaks the data's length, too."""


def play(mode: str, stall_percent: int):
    return run(
        Design(verilog(), "bad_master", 1),
        sizes_bytes=[1 << 20],
        memory=MEMORY,
        max_cycles=5000,
        csr_writes=[(MODE, list(MODES).index(mode)), (START, 1)],
        stall_percent=stall_percent,
    )


@pytest.mark.parametrize("stall_percent", [0, 30, 80])
def test_a_master_that_obeys(stall_percent):
    port = play("good", stall_percent).ports[0]
    assert (port.n_reads, port.n_read_beats, port.n_writes, port.n_write_beats) == (3, 6, 3, 6)


@pytest.mark.parametrize("mode", [name for name, message in MODES.items() if message])
def test_a_planted_breach_is_found(mode):
    with pytest.raises(InternalError, match=f"port 0 .*{MODES[mode]}"):
        play(mode, 60)


@pytest.mark.parametrize("mode", CHANGES)
def test_what_changes_unseen_is_no_breach_without_a_stall(mode):
    """These only break a rule while they wait: without stalls nothing would be checked."""
    play(mode, 0)
