"""The folder of `alula emit --testbench`: what it runs is judged as it should be, in Icarus and in Verilator."""

import re
import subprocess
from pathlib import Path

import pytest

from alula.cli import main
from hw.spec.config import CONFIGS
from hw.spec.isa import CTL0, Dst, Src, StMode, Unit, pack_bits
from sim.rtl.accelerator import synthesisable
from sim.rtl.toolchain import tool_environment
from tests.conftest import needs_icarus
from tests.hw.machine import Program

TINY = CONFIGS["tiny"]
LD, ST, VU = Unit.LD, Unit.ST, Unit.VU
TARGET = 1000
"""Beat that the program copies itself to: its own instructions are the only bytes that a program file brings."""


@pytest.fixture
def cached_verilog(monkeypatch):
    """The same text, written once for all tests."""
    monkeypatch.setattr("hw.emit.accelerator_verilog", synthesisable)


def copies_itself(path: Path) -> Path:
    program, beats = Program(), 4
    copy = {"n_outer": 1, "n_mid": 1, "n_words": beats, "len0": beats * TINY.lanes}
    program.issue(LD, signal=[VU], addr=0, n_outer=1, n_inner=beats, dst=0)
    program.issue(VU, wait=[LD], signal=[ST], ctl0=pack_bits(CTL0, {"src": Src.P, "dst": Dst.SB}), **copy)
    program.issue(ST, wait=[VU], mode=StMode.LIN, addr=TARGET, src=0, n_tok=1, n_head=1, n_gran=beats)
    program.halt()
    path.write_bytes(program.image().tobytes())
    return path


def emitted(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["emit", *arguments])
    return ended.value.code or 0


def commands(folder: Path, simulator: str) -> list[str]:
    """The commands that README.md names for a simulator."""
    block = (folder / "README.md").read_text().split(f"# {simulator}\n")[1]
    return re.split(r"\n\n|```", block)[0].splitlines()


def play(folder: Path, command: str, environment=None) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=3000, check=False
    )


@needs_icarus
def test_a_program_passes_and_planted_faults_fail(tmp_path, cached_verilog):
    folder = tmp_path / "bench"
    program = copies_itself(tmp_path / "copy.bin")
    assert emitted("--testbench", "--program", str(program), "-o", str(folder)) == 0
    compile, simulate = commands(folder, "Icarus Verilog")
    assert play(folder, compile).returncode == 0
    good = play(folder, simulate)
    assert good.returncode == 0 and good.stdout.splitlines()[-1].startswith("PASS: "), good.stdout

    expected, setup = folder / f"expected_{TINY.aux_port}.hex", folder / "setup.txt"
    text = expected.read_text()
    (line,) = re.findall(f"^{TARGET:x} .*$", text, flags=re.M)
    assert int(line.split()[1], 16), "zeros are what an empty memory holds, too"
    flipped = line[:-1] + f"{int(line[-1], 16) ^ 1:x}"
    expected.write_text(text.replace(line, flipped))
    bad = play(folder, simulate)
    assert bad.returncode != 0 and "FAIL: 0 registers and 1 of 1024 beats" in bad.stdout, bad.stdout

    expected.write_text(text)
    setup.write_text(setup.read_text().replace(f"read_latency {TINY.read_latency}", "read_latency 21"))
    late = play(folder, simulate)
    assert late.returncode != 0 and re.search("FAIL: [1-9][0-9]* registers and 0 of 1024 beats", late.stdout)
    assert "\ncycles: found " in f"\n{late.stdout}"


@pytest.mark.slow
@pytest.mark.parametrize("simulator", [pytest.param("Icarus Verilog", marks=needs_icarus), "Verilator"])
def test_a_layer_passes(simulator, tmp_path, cached_verilog):
    folder = tmp_path / "bench"
    assert emitted("--testbench", "-o", str(folder)) == 0
    environment = tool_environment(tmp_path / "bin")
    *build, simulate = commands(folder, simulator)
    for command in build:
        assert play(folder, command, environment).returncode == 0
    found = play(folder, simulate, environment)
    assert found.returncode == 0 and found.stdout.splitlines()[0].startswith("PASS: "), found.stdout
    expected = folder / "expected_0.hex"
    text = expected.read_text()
    for fault in (re.sub("0$", "1", text, count=1, flags=re.M), text.split("\n", 1)[1]):
        expected.write_text(fault)
        assert play(folder, simulate, environment).returncode != 0, "a wrong beat, or one that is not compared"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--program", "{tmp}/odd.bin"], "--program has an effect only together with --testbench: leave it out"),
        (["--testbench", "--program", "{tmp}/none.bin"], "none.bin: give the path of an existing file"),
        (["--testbench", "--program", "{tmp}/odd.bin"], "has 9 bytes, a program is a multiple of 8"),
        (["--testbench", "--config", "u280"], "does not fit u280: give one with --program FILE"),
        (["--testbench", "--program", "{tmp}/fails.bin"], "ends with HALT_CODE (detail 7) at pc 0"),
    ],
)
def test_what_cannot_run_is_one_line_and_leaves_nothing(arguments, words, tmp_path, capsys):
    (tmp_path / "odd.bin").write_bytes(bytes(9))
    fails = Program()
    fails.halt(7)
    (tmp_path / "fails.bin").write_bytes(fails.image().tobytes())
    given = [word.replace("{tmp}", str(tmp_path)) for word in arguments]
    assert emitted(*given, "-o", str(tmp_path / "bench")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "bench").exists()
