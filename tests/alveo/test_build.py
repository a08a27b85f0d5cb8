"""`alula build` without the vendor's tools, and with stand-ins for them."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from alula import cli
from alula.alveo import build, vitis
from hw.kernel import Kernel
from hw.spec import cards, config
from hw.spec.config import ConfigError
from hw.spec.packaging import KERNEL
from hw.verilog_writer import convert

PAIRS = [
    ("tiny", "u280"),
    ("u280", "u280"),
    ("u50", "u50"),
    ("u55c", "u55c"),
    ("v80", "v80"),
    ("tiny", "generic"),
    ("u280", "generic"),
]
TOOLS = {"u280": ["vivado", "v++"], "v80": ["vivado", "slashkit"], "generic": ["vivado"]}
"""Card -> what builds it; the others need what U280 needs."""
REPORTS = Path(__file__).parent / "reports"


def wrapper(name: str) -> str:
    """The packaged top alone: what is below it takes minutes to write and is the same text as ever."""
    return convert(Kernel(config.get(name)), KERNEL)


@pytest.mark.parametrize(("name", "card"), PAIRS)
def test_without_tools_everything_is_written_twice_alike(tmp_path, name, card):
    first, second = (
        build.build(name, card, None, tmp_path / str(turn), wrapper, find=lambda tool: None) for turn in (0, 1)
    )
    tools = TOOLS.get(card, TOOLS["u280"])
    assert first["missing"] == tools and first["target"] == ("ip" if card == "generic" else "hw")
    assert first["project_digest"] == second["project_digest"] and first["files"] == second["files"]
    for file_name in [*first["files"], build.MANIFEST]:
        assert (tmp_path / "0" / file_name).read_bytes() == (tmp_path / "1" / file_name).read_bytes()
    line = build.missing_line(first)
    assert (
        "\n" not in line and f"{' and '.join(tools)} {'are' if len(tools) > 1 else 'is'} not on PATH; install" in line
    )


def test_the_command_says_what_is_missing_and_how_it_ended(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build, "kernel_verilog", wrapper)
    monkeypatch.setattr(build.shutil, "which", lambda tool: None)
    monkeypatch.setattr(build.build, "__defaults__", (*build.build.__defaults__[:4], lambda tool: None, print))
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", "--config", "tiny", "--target", "xo", "--out", str(tmp_path / "x")])
    assert ended.value.code == build.NOT_BUILT
    assert "vivado is not on PATH" in " ".join(capsys.readouterr().err.split())
    manifest = json.loads((tmp_path / "x" / build.MANIFEST).read_text())
    assert manifest["digest"] == config.get("tiny").digest() and manifest["results"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--card", "u200"], "unknown card 'u200'; choose one of u280, u50, u55c, v80, generic"),
        (["--target", "sw"], "--target is 'sw': choose one of hw, hw_emu, xo, sim, ip"),
        (["--config", "u280", "--card", "u55c"], "33 masters need an HBM port each"),
        (["--config", "v80", "--target", "xo"], "v80 has no target 'xo': choose one of hw, sim, ip"),
        (["--card", "generic", "--target", "hw"], "generic has no target 'hw': choose one of ip"),
        (["--config", "u280", "--card", "u50"], "33 masters need an HBM port each, the card has 30 and no DDR"),
        (["--config", "v80", "--card", "u280"], "64 masters need an HBM port each, the card has 32; choose"),
        (
            ["--config", "v80", "--set", "units=128", "--card", "v80"],
            "129 masters need a NoC port each, the card has 76",
        ),
        (["--config", "u55c", "--card", "u50"], "channel_bytes = 536870912, a pseudo-channel has 268435456 bytes"),
    ],
)
def test_what_cannot_be_built_is_one_line(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        cli.main(["build", "--out", str(tmp_path / "x"), *arguments])
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 1 and message in said and "Traceback" not in said
    assert not (tmp_path / "x").exists()


def test_aux_memory_must_fit_what_the_channels_leave():
    with pytest.raises(ConfigError, match="aux_bytes"):
        cards.get("u50").check(config.Config(**config.get("u50").__dict__ | {"aux_bytes": 1 << 34}))


def test_the_u50_s_limit_is_its_own():
    """v++ connects 30 masters there, though its HBM has 32 ports; `u50` has 17 and is refused by a card of 16."""
    card, machine = cards.get("u50"), config.get("u50")
    assert (card.memory_masters(machine), card.masters, card.hbm_channels) == (17, 30, 32)
    with pytest.raises(ConfigError, match="17 masters need an HBM port each, the card has 16 and no DDR"):
        replace(card, masters=16).check(machine)


STAND_IN = """#!/bin/sh
case "$1" in -version|--version) echo "{name} v2099.9 (stand-in, builds nothing)"; exit 0;; esac
echo "$@" > {name}.arguments
{action}
"""


def stand_ins(folder: Path, action: str, tools: tuple[str, ...] = ("vivado", "v++")) -> dict[str, str]:
    """Scripts in place of the tools: they write down their arguments and copy made-up reports."""
    found = {}
    for name in tools:
        path = folder / name
        path.write_text(STAND_IN.format(name=name, action=action if name == tools[-1] else ""))
        path.chmod(0o755)
        found[name] = str(path)
    return found


def test_reports_of_the_tools_become_the_manifest(tmp_path):
    tools = stand_ins(tmp_path, f"cp {REPORTS}/*.rpt $ALULA_REPORTS/")
    out = tmp_path / "x"
    result = build.build("tiny", "u280", "hw", out, wrapper, find=tools.get)
    manifest = json.loads((out / build.MANIFEST).read_text())
    assert result["missing"] == [] and manifest["tools"]["v++"] == "v++ v2099.9 (stand-in, builds nothing)"
    assert manifest["results"]["kernel_utilisation"]["DSP48E2"] == 1234
    assert manifest["results"]["power"]["report"] == "reports/power.rpt"
    arguments = (out / "v++.arguments").read_text()
    assert f"PRE={os.fspath(out.resolve())}/{vitis.FLOORPLAN}" in arguments and "--target hw" in arguments


def test_a_tool_that_fails_names_its_log(tmp_path):
    with pytest.raises(build.InternalError, match=r"v\+\+ failed with code 7: see .*vpp.log"):
        build.build("tiny", "u280", "hw_emu", tmp_path / "x", wrapper, find=stand_ins(tmp_path, "exit 7").get)


def test_slashkit_gets_the_core_and_the_link_file(tmp_path):
    """`sim` is slashkit's simulation of the RTL. It tells no version and writes none of Vivado's reports."""
    tools = stand_ins(tmp_path, "", ("vivado", "slashkit"))
    out = tmp_path / "x"
    result = build.build("v80", None, "sim", out, wrapper, find=tools.get)
    assert result["missing"] == [] and result["tools"]["slashkit"] is None and result["results"] == {}
    assert (out / "slashkit.arguments").read_text().split() == (
        ["link", "-c", "link.cfg", "-k", "ip/component.xml", "-o", "alula_kernel.sim.vbin", "-p", "sim"]
    )
