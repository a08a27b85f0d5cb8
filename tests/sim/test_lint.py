"""The Verilog lint finds what it should and waives what it says."""

from pathlib import Path

import pytest

from hw.verilog_writer import convert
from sim.rtl.lint import lint, main
from tests.sim.copy_engine import CopyEngine


def test_generated_verilog_is_clean():
    assert lint(convert(CopyEngine(2), "copy_engine"), "copy_engine") == []


def test_hand_written_verilog_is_clean(capsys):
    assert main([]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("rule", "body"),
    [
        ("UNDRIVEN", "output [3:0] q; wire [3:0] q;"),
        ("MULTIDRIVEN", "output reg q; always @(posedge clk) q <= 0; always @(posedge other) q <= 1;"),
        ("LATCH", "output reg q; always @* if (other) q = clk;"),
        ("MODMISSING", "output q; nowhere x (.q(q));"),
    ],
)
def test_defects_are_found(rule, body):
    messages = lint(f"module top(clk, other, q); input clk, other; {body} endmodule\n", "top")
    assert any(rule in message for message in messages), messages


def test_every_waiver_has_a_reason():
    lines = Path("hw/verilog/waivers.vlt").read_text().splitlines()
    for group in "\n".join(lines[1:]).split("\n\n"):
        waivers = [line for line in group.splitlines() if line.startswith("lint_off")]
        assert not waivers or group.startswith("//"), f"no comment above {waivers}"
