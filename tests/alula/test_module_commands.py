"""compile, simulate and verify of FILE.py:NAME, as people call them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alula.cli import app
from hw.spec.errors import UserError

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = (
    "own_projector.py:Projector",
    "own_attention.py:Attention",
    "own_token_reducer.py:TokenReducer",
    "own_model.py:Model",
)
PLAIN = """
import torch
from torch import nn

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 16)
    def forward(self, x):
        return self.inner(x)

def made():
    return Plain()

instance = Plain()
number = 3

class Needs(Plain):
    def __init__(self, width):
        super().__init__()

def inputs():
    return {"x": torch.randn(4, 16)}

dynamic = {"x": {0: "seq"}}
lengths = {"seq": (1, 40)}
"""


def call(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def refusal(*arguments: str) -> str:
    result = call(*arguments)
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


@pytest.fixture
def plain(tmp_path) -> Path:
    path = tmp_path / "plain.py"
    path.write_text(PLAIN)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_examples_verify(name, tmp_path):
    """In RTL, as their text says; each is less than 80 lines."""
    out = tmp_path / "result.json"
    assert call("verify", str(EXAMPLES / name), "--json", str(out)).exit_code == 0
    result = json.loads(out.read_text())
    assert result["bit_exact"] and result["cycle_exact"] and result["compared_bytes"] > 0
    assert result["float_error"] < 0.03 and result["cases"] and result["operators"]
    assert len((EXAMPLES / name.split(":")[0]).read_text().splitlines()) < 80


@pytest.mark.parametrize("name", ["Plain", "made", "instance"])
def test_class_function_and_instance(plain, name, tmp_path):
    out = tmp_path / "result.json"
    arguments = ["--backend", "functional", "--length", "seq=1,33", "--json", str(out)]
    assert call("verify", f"{plain}:{name}", *arguments).exit_code == 0
    assert [case["lengths"] for case in json.loads(out.read_text())["cases"]] == [{"seq": 1}, {"seq": 33}]


def test_simulate_writes_figures_and_a_trace(plain, tmp_path):
    out, trace = tmp_path / "result.json", tmp_path / "trace.json"
    result = call("simulate", f"{plain}:Plain", "--length", "seq=40", "--json", str(out), "--trace", str(trace))
    assert result.exit_code == 0 and "cycles" in result.output
    assert json.loads(out.read_text())["cycles"] > 0
    assert any(event.get("name") == "linear" for event in json.loads(trace.read_text())["traceEvents"])


def test_compile_writes_a_container_that_can_be_listed(plain, tmp_path):
    out = tmp_path / "plain.alula"
    assert call("compile", f"{plain}:Plain", "-o", str(out)).exit_code == 0
    listing = call("disasm", str(out))
    assert listing.exit_code == 0 and "# forward: r1 seq" in listing.output and "# linear" in listing.output


def test_entries_are_chosen_by_name(tmp_path):
    model, out = f"{EXAMPLES}/own_model.py:Model", tmp_path / "result.json"
    arguments = ("--entry", "decode", "--length", "cache=3", "--json", str(out))
    assert "Model.decode: cache 3" in call("simulate", model, *arguments).output
    assert json.loads(out.read_text())["entry"] == "decode"
    assert call("verify", model, "--backend", "functional", *arguments).exit_code == 0
    assert [case["entry"] for case in json.loads(out.read_text())["cases"]] == ["decode"]
    assert "has several entries: choose of encode, prefill, decode" in refusal("simulate", model)
    assert "has no entry 'decide': choose of encode" in refusal("simulate", model, "--entry", "decide")
    assert "--entry has an effect only together with a module" in refusal("simulate", "--entry", "decode")


def test_a_container_has_all_entries(tmp_path):
    out = tmp_path / "model.alula"
    result = call("compile", f"{EXAMPLES}/own_model.py:Model", "-o", str(out))
    assert result.exit_code == 0 and "encode at 0, prefill at" in result.output
    listing = call("disasm", str(out)).output
    assert all(f"# {entry}:" in listing for entry in ("encode", "prefill", "decode"))


ENTRIES = """
entries = {"forward": {"inputs": inputs, "dynamic": dynamic, "lengths": lengths}}
both = Plain()
both.inputs, both.entries = inputs, entries
mine = Plain()
mine.entries = {"forward": {"inputs": inputs}}
typo = Plain()
typo.entries = {"forward": {"input": inputs}}
bare = Plain()
bare.entries = {"forward": inputs}
none = Plain()
none.entries = {}
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Plain", "has both inputs and entries: give every entry inputs of its own"),
        ("both", "has both inputs and entries: give every entry inputs of its own"),
        ("typo", "entry forward has 'input': choose of inputs, dynamic, lengths, method, takes"),
        ("bare", "entry forward is a function, a dict is needed"),
        ("none", "entries must be a dict with one entry at least"),
    ],
)
def test_wrong_entries_get_one_line(tmp_path, name, text):
    path = tmp_path / "entries.py"
    path.write_text(PLAIN + ENTRIES)
    assert text in refusal("verify", f"{path}:{name}")
    assert call("verify", f"{path}:mine", "--backend", "functional").exit_code == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Plane", "has no Plane, is Plain meant?"),
        ("number", "is a int: give a class, a function or a module"),
        ("Needs", "needs the argument 'width'"),
        ("inputs", "gives a dict, a torch.nn.Module is needed"),
    ],
)
def test_wrong_names_get_one_line(plain, name, text):
    assert text in refusal("verify", f"{plain}:{name}")


def test_wrong_files_get_one_line(tmp_path):
    assert "give FILE.py:NAME" in refusal("verify", "plain.py")
    assert "no file" in refusal("verify", f"{tmp_path}/missing.py:Plain")
    (tmp_path / "broken.py").write_text("raise OSError('no disk')")
    assert "cannot be executed (OSError: no disk)" in refusal("verify", f"{tmp_path}/broken.py:Plain")
    (tmp_path / "bare.py").write_text("from torch import nn\nclass Bare(nn.Identity): pass\n")
    assert "has no inputs: add a function `inputs`" in refusal("verify", f"{tmp_path}/bare.py:Bare")


def test_options_that_do_not_act_are_refused(plain):
    assert "--kv is about models" in refusal("simulate", f"{plain}:Plain", "--kv", "3")
    assert "--length is 'seq': give a symbol" in refusal("verify", f"{plain}:Plain", "--length", "seq")
    assert "--length has an effect only together with a module" in refusal("verify", "--length", "seq=3")
    assert "has several values" in refusal("simulate", f"{plain}:Plain", "--length", "seq=1,2")
    assert "seq = 41 is outside 1..40" in refusal("simulate", f"{plain}:Plain", "--length", "seq=41")
