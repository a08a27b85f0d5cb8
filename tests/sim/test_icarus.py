"""Icarus Verilog says what Verilator says: every bit, every cycle, every register, every burst."""

import random

import pytest

from hw.spec.config import CONFIGS
from hw.spec.errors import UserError
from hw.spec.isa import Error
from hw.spec.memory import MemoryModel
from sim.cycle import CycleBackend
from sim.memory_image import MemoryImage
from sim.rtl import toolchain
from sim.rtl.accelerator import design
from sim.rtl.backend import RtlBackend
from sim.rtl.icarus import one_process
from sim.rtl.run import run
from sim.trace import differences
from tests.conftest import needs_icarus
from tests.sim.test_cycle import random_run

TINY = CONFIGS["tiny"]
FIXED = MemoryModel.of(TINY)


@needs_icarus
def test_one_program_in_both_simulators(monkeypatch):
    memory, call = random_run(random.Random(3), 4)
    expected = CycleBackend(FIXED).run(TINY, memory.fork(), call)
    runs = {}
    for simulator in ("verilator", "icarus"):
        monkeypatch.setenv("SIM", simulator)
        backend = RtlBackend(model=FIXED, log_axi=True)
        result = backend.run(TINY, memory.fork(), call)
        assert result.status == Error.NONE
        assert not differences(result.trace, expected.trace)
        assert result.counters == expected.counters
        runs[simulator] = backend.last
    assert runs["icarus"].events and runs["icarus"].axi
    assert runs["icarus"] == runs["verilator"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"stall_percent": 10}, "random stalls"),
        ({"memory": MemoryModel.of(TINY, "hbm")}, "HBM timing"),
    ],
)
def test_what_only_verilator_does_is_refused_in_one_line(monkeypatch, options, what):
    monkeypatch.setenv("SIM", "icarus")
    sizes = MemoryImage(TINY).sizes_bytes
    with pytest.raises(UserError, match=f"^SIM=icarus has no {what}: run it with SIM=verilator") as error:
        run(design("tiny"), **{"sizes_bytes": sizes, "memory": FIXED, **options})
    assert "\n" not in str(error.value)


def test_an_unknown_simulator_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv("SIM", "questa")
    with pytest.raises(UserError, match=r"^SIM is 'questa', .*: choose verilator or icarus$"):
        run(design("tiny"), sizes_bytes=MemoryImage(TINY).sizes_bytes, memory=FIXED)


def test_without_icarus_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setenv("SIM", "icarus")
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"^iverilog not found on PATH: .*apt-get install iverilog") as error:
        run(design("tiny"), sizes_bytes=MemoryImage(TINY).sizes_bytes, memory=FIXED)
    assert "\n" not in str(error.value)


def test_neighbouring_registers_become_one_process():
    one, two = "  always @(posedge clk)\n    a <= b;\n", "  always @(posedge clk)\n    \\c$1  <= _0_;\n"
    other = "  always @(posedge clk)\n    if (en) m[a] <= b;\n  always @(posedge clk) begin\n    r <= m[a];\n  end\n"
    assert one_process(one + two) == "  always @(posedge clk) begin\n    a <= b;\n    \\c$1  <= _0_;\n  end\n"
    assert one_process(one + "  assign x = a;\n" + two) == one + "  assign x = a;\n" + two
    assert one_process(other) == other
