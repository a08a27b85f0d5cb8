"""What commands print: ten lines of 80 columns, and with --full every figure with its unit."""

import json

import pytest

from alula.cli import main
from alula.output import duration, percent, size
from alula.summary import array_text, figures, layers_text, part_text, unit_of

COMMANDS = {
    "prefill": ["simulate", "--tokens", "24"],
    "one layer": ["simulate", "--phase", "decode", "--layers", "1"],
    "sparse": ["simulate", "--bits", "4", "--sparsity", "2:16", "--memory", "hbm", "--jitter", "7", "--tokens", "64"],
    "functional": ["simulate", "--backend", "functional"],
    "vision": ["simulate", "--phase", "vision"],
    "first token": ["simulate", "--phase", "ttft", "--layers", "1", "--image-tokens", "5"],
    "compile": ["compile", "--timing-only"],
    "verify": ["verify", "--backend", "cycle", "--lengths", "1,2,3", "--steps", "2"],
    "info": ["info", "--config", "u280"],
    "too large": ["info", "--config", "u280", "--set", "units=64"],
    "large": ["simulate", "--model", "llava-1.5-13b", "--config", "u280", "--phase", "decode", "--kv", "2048",
              "--layers", "1", "--bits", "3.5", "--sparsity", "8:16"],
}  # fmt: skip
ENOUGH = {
    "prefill": ["llava-tiny, all 2 layers: prefill of 24 tokens", " cycles, ", "ms at an assumed 225 MHz", "tokens/s"],
    "one layer": ["1 of 2 layers: decode step at 16 keys", "1 of 2 layers: no rate of the whole model is given"],
    "sparse": ["4 bits, 2:16 sparse", "dense-equivalent", "HBM2 timing", "reads up to 7 cycles late"],
    "functional": ["counts no cycles"],
    "vision": ["one image"],
    "first token": ["5 visual and 16 text tokens", "1 of 2 layers: no rate", "language model"],
    "compile": ["256 tokens", "runtime", "bucketed"],
    "verify": ["9 cases (1 vision, 3 prefill, 5 decode)", "bit-exact ("],
    "info": ["32 units of 8 chains", "460.8 GB/s", "960 UltraRAMs (76.1 %)"],
    "too large": ["10,121 of 6,500 DSPs (155.7 % TOO MANY)"],
    "large": ["llava-1.5-13b, 1 of 40 layers"],
}


def printed(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("case", COMMANDS)
def test_a_summary_has_ten_lines_of_80_columns(case, capsys):
    text = printed(COMMANDS[case], capsys)
    lines = text.splitlines()
    assert len(lines) <= 10 and max(map(len, lines)) <= 80
    for part in ENOUGH[case]:
        assert part in text
    assert "HBM" not in text or case == "sparse" or "u280" in text


@pytest.mark.parametrize("case", ["one layer", "first token", "compile", "verify", "info"])
def test_full_has_every_figure(case, capsys, tmp_path):
    result = tmp_path / "result.json"
    more = ["--full", "--json", str(result)]
    lines = printed([*COMMANDS[case], *more], capsys).splitlines()
    assert max(map(len, lines)) <= 80
    shown = " ".join(lines)
    found = json.loads(result.read_text())
    for key, value in found.items():
        if value is not None and not isinstance(value, list | dict):
            assert key in shown
    for _, value, unit in figures({key: value for key, value in found.items() if key not in ("cases", "budget")}):
        if isinstance(value, int) and not isinstance(value, bool):
            assert f"{value:,}" in shown and unit in shown


def test_a_budget_names_its_parts(capsys):
    text = printed(["info", "--full"], capsys)
    assert "budget on u280" in text and "row scalars" in text and "15.7 %" in text


def test_units_go_by_names():
    units = {"cycles": "cycles", "seconds_at_clock": "s", "clock_hz": "Hz", "bytes_read": "bytes", "model": "",
             "hbm_busy": "of 1", "peak_memory_bytes": "bytes", "wall_seconds": "s"}  # fmt: skip
    assert {key: unit_of(key) for key in units} == units
    assert unit_of("read_beats_aux", "counters: ") == "beats of 64 bytes"
    assert unit_of("weights", "traffic: ") == "bytes"


def test_numbers_with_units():
    assert [size(n) for n in (0, 999, 1000, 117_120, 8_388_608, 6_738_000_000)] == [
        "0 bytes", "999 bytes", "1 kB", "117.1 kB", "8.389 MB", "6.738 GB",
    ]  # fmt: skip
    assert [duration(s) for s in (0, 0.000118067, 0.25, 1.5, 7200)] == [
        "0 s",
        "0.1181 ms",
        "250 ms",
        "1.5 s",
        "7,200 s",
    ]
    assert percent(1.654) == "165.4 %"


def test_a_dense_run_has_one_utilisation():
    dense = {"macs": 8, "macs_sparse": 8, "array_utilisation": 0.5, "mac_utilisation": 0.5}
    assert array_text(dense) == "50.0 % of what it can multiply"
    pruned = dense | {"macs": 16, "mac_utilisation": 1.0}
    assert array_text(pruned) == "50.0 % of what it can multiply; dense-equivalent 100.0 %"


def test_a_run_without_its_head_says_so():
    part = {"layers": 2, "layers_of_model": 2, "whole_model": False}
    assert layers_text(part) == "all 2 layers" and part_text(part).startswith("without the head: no rate")
    assert not part_text(part | {"whole_model": True})
