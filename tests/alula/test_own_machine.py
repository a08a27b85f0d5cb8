"""`--config my.toml` and `--set` on the command line: machines of one's own are described, simulated and verified."""

import json

import pytest

from alula.cli import main
from alula.machine import misfit, over_card
from alula.session import open_flow
from alula.simulation import simulate
from hw import emit
from hw.spec.config import get
from hw.spec.machine import resolve

MACHINES = {
    "lanes": 'base = "u280"\nlanes = 32\n',
    "half": 'base = "u280"\nunits = 16\nchains = 4\n',
    "memory": 'base = "u280"\n[memory]\nkind = "fixed"\nread_latency = 100\n',
}
LITTLE = 'base = "tiny"\nunits = 4\nchains = 4\n[memory]\nkind = "hbm"\n'
LAYER = ["--model", "llava-1.5-7b", "--layers", "1", "--phase", "decode", "--kv", "128", "--bits", "3.5"]


def run(*arguments):
    """Exit code of a command."""
    with pytest.raises(SystemExit) as ended:
        main([str(part) for part in arguments])
    return ended.value.code or 0


def result(folder, *arguments):
    """JSON of a command that must succeed."""
    path = folder / "result.json"
    assert run(*arguments, "--json", path) == 0
    return json.loads(path.read_text())


@pytest.fixture
def machine(tmp_path):
    def write(text, name="mine"):
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "half" else pytest.mark.slow) for name in MACHINES]
)
def test_a_layer_of_7b_on_three_machines(name, machine, tmp_path):
    """Cycles differ from u280's, and in the direction that the change says."""
    path = machine(MACHINES[name], name)
    told = result(tmp_path, "info", "--config", path)
    assert told["name"] == name and told["base"] == "u280" and told["over_card"] == []
    cycles = result(tmp_path, "simulate", "--config", path, *LAYER)["cycles"]
    whole = result(tmp_path, "simulate", "--config", "u280", *LAYER)["cycles"]
    assert (cycles > 1.5 * whole) if name == "half" else (cycles < whole) if name == "memory" else (cycles > whole)


@pytest.mark.slow
def test_a_machine_of_ones_own_is_exact_in_rtl(machine, tmp_path):
    found = result(tmp_path, "verify", "--config", machine(LITTLE), "--lengths", "1,17", "--steps", "1")
    assert found["bit_exact"] and found["cycle_exact"] and found["cycles_rtl"] > 0 and found["config"] == "mine"


@pytest.mark.parametrize("changes", [("chains=8", "acc_rows=32"), ("units=8", "fifo_beats=32", "memory.kind=hbm")])
def test_changed_machines_equal_the_golden_model(changes, tmp_path):
    words = [word for change in changes for word in ("--set", change)]
    found = result(tmp_path, "verify", *words, "--backend", "cycle", "--lengths", "17", "--steps", "0")
    assert found["bit_exact"] and found["config"].startswith("tiny-")


def test_what_is_larger_than_its_card_is_marked(tmp_path, capsys):
    told = result(tmp_path, "info", "--config", "u280", "--set", "units=64")
    assert "10,121 of 6,500 DSPs (155.7 % TOO MANY)" in capsys.readouterr().out
    over = {row["kind"]: row["share"] for row in told["over_card"]}
    assert round(over["DSP48E2"], 3) == 1.557
    found = result(tmp_path, "simulate", "--set", "units=256", "--phase", "vision")
    assert found["over_card"] and "does not fit" in capsys.readouterr().err


def test_ports_and_memory_count_too():
    assert misfit(get("u280")) is None and over_card(get("u280")) == []
    assert "32 masters" not in (misfit(resolve("u280", ["lanes=32"])) or "")
    assert "need an HBM port each" in misfit(resolve("u55c", ["units=32", "chains=4", "fifo_beats=64"]))


def test_from_python():
    """A configuration stands wherever a name can."""
    mine = resolve("tiny", ["units=4"])
    flow = open_flow("llava-tiny", mine, vision=False, timing_only=True)
    assert simulate(flow, "decode")["config"] == mine.name == "tiny-units4"


@pytest.mark.slow
def test_verilog_of_a_machine_of_ones_own(machine, tmp_path, capsys):
    path = machine('base = "tiny"\nunits = 1\nchains = 1\n', "least")
    assert emit.main(["--config", str(path), "--set", "fifo_beats=32", "--out", str(tmp_path / "out")]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["config"] == "least-fifo_beats32" and manifest["memory_ports"] == 2


@pytest.mark.parametrize("command", ["info", "simulate", "report", "verify", "generate", "compile", "build", "demo"])
def test_every_command_refuses_an_impossible_machine(command, machine, tmp_path, capsys):
    more = {"generate": ["--prompt", "x"], "report": ["-o", tmp_path / "x"], "compile": ["-o", tmp_path / "x"]}
    for words in (["--set", "lanes=33"], ["--config", machine("lanes = 32\n")]):
        assert run(command, *more.get(command, []), *words) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
    assert not (tmp_path / "x").exists()
