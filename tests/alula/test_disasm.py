"""`alula disasm`: a program with its pcs, entries and operators; `asm` gives the same bytes back."""

import json
import re

import pytest

from alula.cli import main
from compiler import container
from hw.spec.isa import INSTRUCTION_BYTES


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert not ended.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A compiled model, its text and its program."""
    folder = tmp_path_factory.mktemp("disasm")
    run("compile", "--timing-only", "-o", folder / "tiny.alula")
    run("disasm", folder / "tiny.alula", "-o", folder / "tiny.s", "--raw", folder / "tiny.bin")
    return folder


def test_asm_gives_the_same_bytes(folder):
    run("asm", folder / "tiny.s", "-o", folder / "again.bin")
    assert (folder / "again.bin").read_bytes() == (folder / "tiny.bin").read_bytes()


def test_every_line_has_its_pc(folder):
    lines = [line for line in (folder / "tiny.s").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == len((folder / "tiny.bin").read_bytes()) // INSTRUCTION_BYTES
    assert all(re.search(rf"# {pc}(: |$)", line) for pc, line in enumerate(lines))


def test_entries_layers_and_operators_are_named(folder):
    text = (folder / "tiny.s").read_text()
    for name in ("lm: r1 n_tokens, r2 position", "vision: r1 patches", "vision.projector:", "one layer a pass:",
                 "self_attn.q_proj", "softmax", "mlp.down_proj"):  # fmt: skip
        assert f"\n# {name}" in f"\n{text}"


def test_a_raw_program_has_no_names(folder, capsys):
    run("disasm", folder / "tiny.bin")
    found = capsys.readouterr().out.splitlines()
    assert not [line for line in found if line.startswith("#")] and found[0].endswith("# 0")


def test_a_container_of_before_is_read(folder, monkeypatch):
    """Without names in its manifest."""
    opened = container.load(folder / "tiny.alula")
    kept = {key: value for key, value in opened.manifest.items() if key not in ("operators", "layer_loops")}
    monkeypatch.setattr(container, "load", lambda path: container.Container(path, json.loads(json.dumps(kept))))
    run("disasm", folder / "tiny.alula", "-o", folder / "plain.s")
    assert "# lm: r1 n_tokens" in (folder / "plain.s").read_text()
