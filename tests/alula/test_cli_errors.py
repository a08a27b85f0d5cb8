"""What the user gets wrong: one line on stderr, exit code 1, no traceback, no half-written file."""

from pathlib import Path

import numpy as np
import pytest

from alula.cli import main

TINY = ["--model", "llava-tiny", "--config", "tiny"]
CASES = {
    "unknown model": ["simulate", "--model", "no-such-model"],
    "unknown configuration": ["info", "--config", "huge"],
    "unknown phase": ["simulate", "--phase", "training"],
    "unknown backend": ["simulate", "--backend", "fpga"],
    "unknown synthesis tool": ["info", "--synth", "other"],
    "unknown option": ["info", "--colour", "red"],
    "unknown command": ["synthesise"],
    "number wanted": ["simulate", "--tokens", "many"],
    "length beyond the model's context": ["simulate", "--tokens", "257"],
    "length beyond the compiled context": ["simulate", "--tokens", "65", "--context", "64"],
    "decode beyond the context": ["simulate", "--phase", "decode", "--kv", "300"],
    "no tokens": ["simulate", "--tokens", "0"],
    "too many layers": ["simulate", "--layers", "3"],
    "context of nothing": ["simulate", "--context", "0"],
    "lengths that are no numbers": ["verify", "--lengths", "1,x"],
    "precision that is none": ["simulate", "--bits", "five"],
    "precision beyond 8": ["compile", "-o", "{tmp}/out.alula", "--bits", "9"],
    "unknown sparsity": ["verify", "--sparsity", "3:16"],
    "unknown recipe": ["simulate", "--bits", "4", "--recipe", "worst"],
    "random precisions with a fixed sparsity": ["verify", "--bits", "mixed", "--sparsity", "4:16"],
    "unknown attention mask": ["simulate", "--attention-mask", "diagonal"],
    "window that is no number": ["simulate", "--attention-mask", "window:wide"],
    "window of nothing": ["verify", "--attention-mask", "window:0"],
    "missing mask": ["simulate", "--attention-mask", "{tmp}/absent.npy"],
    "mask that is none": ["verify", "--attention-mask", "{tmp}/junk.npy"],
    "mask of another shape": ["simulate", "--attention-mask", "{tmp}/narrow.npy"],
    "mask of numbers": ["simulate", "--attention-mask", "{tmp}/numbers.npy"],
    "mask without its diagonal": ["simulate", "--attention-mask", "{tmp}/hole.npy"],
    "mask for decode": ["simulate", "--phase", "decode", "--attention-mask", "causal"],
    "no visual token kept": ["simulate", "--phase", "vision", "--keep-visual", "0"],
    "more visual tokens kept than patches": ["verify", "--keep-visual", "17"],
    "no visual token in front of the first token": ["simulate", "--phase", "ttft", "--image-tokens", "0"],
    "more visual tokens than there are": ["simulate", "--phase", "ttft", "--image-tokens", "17"],
    "no text in front of the first token": ["simulate", "--phase", "ttft", "--tokens", "0"],
    "first token beyond the context": ["simulate", "--phase", "ttft", "--tokens", "250"],
    "first token of another executor": ["simulate", "--phase", "ttft", "--backend", "rtl"],
    "first token with tokens dropped on the way": ["simulate", "--phase", "ttft", "--fastv", "1:4"],
    "numbers of visual tokens that there are not": ["simulate", "--keep-schedule", "{tmp}/kept.json", "--tokens", "33"],
    "kept tokens of no image": ["generate", *TINY, "--prompt", "x", "--keep-visual", "4"],
    "schedule that is none": ["simulate", "--keep-schedule", "1"],
    "schedule that keeps nothing": ["simulate", "--keep-schedule", "1:0"],
    "schedule that keeps more than there are": ["simulate", "--keep-schedule", "1:17", "--tokens", "33"],
    "schedule from the first layer on": ["simulate", "--keep-schedule", "0:4"],
    "missing schedule": ["simulate", "--keep-schedule", "{tmp}/absent.json"],
    "scores that keep nothing": ["verify", "--fastv", "1:0"],
    "scores that keep more than there are": ["verify", "--fastv", "1:17"],
    "scores that keep less than nothing": ["verify", "--fastv", "1:-1"],
    "exit before the first layer": ["simulate", "--exit-layer", "0"],
    "exit behind the last layer": ["verify", "--exit-layer", "2"],
    "visual tokens beyond the prompt": ["simulate", "--exit-layer", "1", "--image-tokens", "16"],
    "reduction of a prompt without an image": ["generate", *TINY, "--prompt", "x", "--exit-layer", "1"],
    "reduction in decode": ["simulate", "--phase", "decode", "--exit-layer", "1"],
    "scores under a mask": ["verify", "--fastv", "1:4", "--attention-mask", "causal", "--lengths", "33"],
    "reduction in streams for one length": ["verify", "--program", "unrolled", "--exit-layer", "1"],
    "prompt beyond the context": ["generate", *TINY, "--prompt", "word " * 60],
    "missing container": ["disasm", "{tmp}/absent.alula"],
    "missing assembly": ["asm", "{tmp}/absent.s", "-o", "{tmp}/out.bin"],
    "missing image": ["generate", *TINY, "--prompt", "x", "--image", "{tmp}/no.png"],
    "image that is none": ["generate", *TINY, "--prompt", "x", "--image", "{tmp}/junk"],
    "placeholder without an image": ["generate", *TINY, "--prompt", "<image>"],
    "demo of another model": ["demo", "--model", "smollm2-135m", "-o", "{tmp}/demo"],
    "demo of no tokens": ["demo", "--tokens", "0", "-o", "{tmp}/demo"],
    "demo of an image that is none": ["demo", "--image", "{tmp}/junk", "-o", "{tmp}/demo"],
    "wrong checkpoint": ["simulate", "--model", "{tmp}/junk"],
    "empty checkpoint folder": ["simulate", "--model", "{tmp}"],
    "a container that is none": ["disasm", "{tmp}/junk"],
    "a truncated raw program": ["disasm", "{tmp}/junk.bin"],
    "assembly that is none": ["asm", "{tmp}/junk.s", "-o", "{tmp}/out.bin"],
    "assembly that is one endless line": ["asm", "{tmp}/endless.s", "-o", "{tmp}/out.bin"],
    "a trace where nothing can be written": ["simulate", "--trace", "/proc/trace.json"],
    "a container where nothing can be written": ["compile", "-o", "/proc/tiny.alula"],
    "a result folder that is absent": ["info", "--json", "{tmp}/absent/out.json"],
}


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    return exit_.value.code or 0


@pytest.mark.parametrize("name", CASES)
def test_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "junk").write_bytes(b"not a checkpoint")
    (tmp_path / "junk.bin").write_bytes(b"123")
    (tmp_path / "junk.s").write_text("FROB r1\n")
    (tmp_path / "endless.s").write_text("x" * 30_000)
    (tmp_path / "kept.json").write_text('{"1": [0, 999]}')
    (tmp_path / "junk.npy").write_bytes(b"not an array")
    np.save(tmp_path / "narrow.npy", np.ones((8, 4), bool))
    np.save(tmp_path / "numbers.npy", np.ones((8, 8)))
    np.save(tmp_path / "hole.npy", np.tri(8, k=-1, dtype=bool))
    before = sorted(tmp_path.iterdir())
    assert run([part.replace("{tmp}", str(tmp_path)) for part in CASES[name]]) == 1
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1 and len(shown) < 1000, shown
    assert shown.startswith("error: ") and "Traceback" not in shown
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("container") / "tiny.alula"
    assert run(["compile", "-o", str(path)]) == 0
    return path


@pytest.mark.parametrize("damage", ["header", "manifest", "program", "weights", "truncated", "version"])
def test_corrupt_container(damage: str, container: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = bytearray(container.read_bytes())
    manifest = int.from_bytes(data[8:16], "little")
    at = {"header": 40, "manifest": 60, "program": (1 << 22) + 9, "weights": len(data) - 5, "version": 7}.get(damage)
    if at is None:
        data = data[: len(data) // 2]
    else:
        data[at] ^= 0xFF
    assert manifest > 0
    broken = tmp_path / "broken.alula"
    broken.write_bytes(data)
    capsys.readouterr()
    assert run(["disasm", str(broken)]) == 1
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 1 and not shown.out


def test_disassembly_round_trip(container: Path, tmp_path: Path) -> None:
    text, raw, again = tmp_path / "program.s", tmp_path / "program.bin", tmp_path / "again.bin"
    assert run(["disasm", str(container), "-o", str(text), "--raw", str(raw)]) == 0
    assert run(["asm", str(text), "-o", str(again)]) == 0
    assert raw.read_bytes() == again.read_bytes() != b""


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def interrupted(_name: str) -> dict:
        raise KeyboardInterrupt

    monkeypatch.setattr("alula.info.describe", interrupted)
    assert run(["info"]) == 130
    assert capsys.readouterr().err.splitlines() == ["interrupted"]


def test_internal_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def broken(_name: str) -> dict:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("alula.info.describe", broken)
    assert run(["info"]) == 1
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1 and "-v" in shown
