"""`alula report`: a page that is well-formed, needs nothing else, repeats itself, and says what `simulate` says."""

import html
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from alula import report
from alula.cli import main
from alula.output import percent, size
from alula.report_profile import Profile
from alula.session import open_flow
from alula.simulation import simulate
from hw.spec.config import BEAT_BYTES
from hw.spec.isa import Unit
from ref_model.compress import Compression

RUNS = {"prefill": ["--tokens", "24"], "decode": ["--kv", "40", "--bits", "4", "--sparsity", "8:16"], "vision": []}
LOADS = re.compile(
    r"""(?:src|href|data|action|poster)\s*=\s*["'](?!\#)|url\((?!["']?\#)|@import|<script|<link|<iframe"""
)
"""Anything that a browser would fetch or run."""


def run(command: str, phase: str, *more: str | Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--model", "llava-tiny", "--config", "tiny", "--phase", phase, *RUNS[phase], *map(str, more)])
    assert not ended.value.code


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, tuple[str, dict]]:
    """By phase: the page, and the JSON of `simulate`."""
    folder, found = tmp_path_factory.mktemp("report"), {}
    for phase in RUNS:
        run("report", phase, "--out", folder / f"{phase}.html")
        run("simulate", phase, "--json", folder / f"{phase}.json")
        found[phase] = (folder / f"{phase}.html").read_text(), json.loads((folder / f"{phase}.json").read_text())
    return found


@pytest.mark.parametrize("kind, says", [("fixed", "fixed latency"), ("hbm", "HBM2 timing")])
def test_the_memory_is_the_one_asked_for(tmp_path, kind, says):
    run("report", "decode", "--memory", kind, "--out", tmp_path / "page.html", "--json", tmp_path / "report.json")
    run("simulate", "decode", "--memory", kind, "--json", tmp_path / "simulate.json")
    shown, simulated = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("report", "simulate"))
    assert (shown["memory"], shown["cycles"]) == (kind, simulated["cycles"])
    assert says in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("phase", RUNS)
def test_well_formed_and_self_contained(pages, phase):
    page, _ = pages[phase]
    root = ET.fromstring(page.removeprefix("<!DOCTYPE html>"))
    assert sum(element.tag.endswith("}svg") for element in root.iter()) == 5
    assert not LOADS.search(page)
    names = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(set(names)) == len(names)
    assert set(re.findall(r"""(?:url\(|href=["'])#([^)"']+)""", page)) <= set(names)


@pytest.mark.parametrize("phase", RUNS)
def test_figures_are_those_of_simulate(pages, phase):
    page, result = pages[phase]
    for name in ("cycles", "macs", "macs_sparse", "instructions_executed"):
        assert f"{result[name]:,}" in page, name
    for name in ("channel_bytes_read", "channel_bytes_written", "aux_bytes_read", "aux_bytes_written", "program_bytes"):
        assert size(result[name]) in page, name
    for name in report.CAUSES:
        assert f">{name}</td><td>{result['counters'][name]:,}<" in page
    for name, value in result["traffic"].items():
        assert not value or f">{name.replace('_', ' ')}</td><td>{size(value)}<" in page
    assert f"<b>{percent(result['array_utilisation'])}</b><span>of the array</span>" in page
    pruned = f"<b>{percent(result['mac_utilisation'])}</b><span>dense-equivalent</span>"
    assert (pruned in page) == (result["macs"] != result["macs_sparse"]) == (phase == "decode")
    assert not re.search(r"\d,\d{3},\d{3},\d{3} bytes", page)
    rate = result["tokens_per_second"]
    assert "tokens/s</span>" not in page if rate is None else f"<b>{rate:,.1f}</b><span>tokens/s</span>" in page
    assert "not a measured board" in page


def test_same_input_same_bytes(pages, tmp_path):
    run("report", "decode", "--out", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == pages["decode"][0]


def test_published_systems_say_where_they_come_from(pages):
    for phase in RUNS:
        systems = report.published(phase)
        assert systems and all(row["source"] and row["obtained"] and row["by"] for row in systems)
        assert all(row["source"] in html.unescape(pages[phase][0]) for row in systems)
    flight = next(row for row in report.published("decode") if row["length"] == "128 keys")
    assert flight["tokens_per_second"] == pytest.approx(1e3 / flight["milliseconds"], rel=1e-3)


@pytest.mark.parametrize("phase, lengths", [("prefill", {"tokens": 24}), ("decode", {"kv": 40}), ("vision", {})])
def test_operators_add_up(phase, lengths):
    """Cycles, MACs and bytes of the operators are the run's; a layer holds each of its operators."""
    flow = open_flow("llava-tiny", "tiny", timing_only=True)
    result = simulate(flow, phase, **lengths)
    profile = Profile(result["trace"], flow.compiled.program.operators, flow.config, result["cycles"])
    rows, counters = profile.rows(), result["counters"]
    assert "program" not in profile.names
    assert 0 < sum(row.cycles for row in rows) <= result["cycles"]
    assert sum(row.macs for row in rows) >= result["macs"]
    assert sum(row.channel_bytes for row in rows) == counters["read_beats_channels"] * BEAT_BYTES
    loads = counters["read_beats_aux"] - counters["read_beats_fetch"] - counters["read_beats_scalars"]
    assert sum(row.aux_bytes for row in rows) == loads * BEAT_BYTES
    for unit in Unit:
        assert sum(row.busy[unit.name] for row in rows) == counters[f"busy_{unit.name.lower()}"]
    (first, last), part = report._window(flow, result, result["cycles"])
    assert part == f"layer {int(phase == 'prefill')} (of 0 to 1)"
    inside = {profile.names[i] for i in profile.tracks[Unit.MX].cut(first, last).operator}
    projection = "self_attn.out_proj" if phase == "vision" else "self_attn.o_proj"
    assert {"self_attn.q_proj", "scores", "values", projection} <= inside
    assert last - first < 0.7 * result["cycles"]


def test_a_part_of_a_model_is_marked(tmp_path):
    """No rate, and no time beside the published systems'."""
    run("report", "decode", "--layers", "1", "--out", tmp_path / "page.html")
    page = html.unescape((tmp_path / "page.html").read_text())
    assert "on tiny, 1 of 2 layers: decode step at 40 keys" in page
    assert "1 of 2 layers: no rate of the whole model is given" in page and "tokens/s</span>" not in page
    here = re.search(r'<tr class="here">.*?</tr>', page, re.DOTALL)[0]
    assert "1 of 2 layers" in here and here.count(f"<td>{report.NO_VALUE}</td>") == 2


@pytest.mark.parametrize("sparsity", ["2:16", "8:16", "mixed"])
def test_nothing_lies_above_the_roof(sparsity):
    """Not with pruned weights either; gate and up, which are read as one stream, are one operator."""
    compression = Compression.parse("4", sparsity, "plain")
    flow = open_flow("llava-tiny", "tiny", timing_only=True, compression=compression)
    result = simulate(flow, "prefill", tokens=64)
    profile = report.profile_of(flow, result, result["cycles"])
    rows = {row.name: row for row in profile.rows()}
    assert "mlp.gate_proj + up_proj" in rows and "mlp.gate_proj" not in rows and "mlp.up_proj" not in rows
    array, memory = flow.config.macs_per_cycle, profile.peak_bytes_per_cycle
    for row in rows.values():
        assert row.array_macs <= row.macs
        if row.moving_cycles:
            assert row.array_macs / row.moving_cycles <= array
            assert row.channel_bytes / row.moving_cycles <= memory
    assert result["macs_sparse"] <= sum(row.array_macs for row in rows.values()) < sum(r.macs for r in rows.values())


def test_the_published_table_fits_the_page(pages):
    for page, _ in pages.values():
        table = page[page.index('<table class="fitting">') :]
        widths = [int(width) for width in re.findall(r'<col style="width: (\d+)%"/>', table)]
        assert sum(widths) == 100 and table[: table.index("</tr>")].count("<th") == len(widths)


def test_bandwidth_keeps_the_sum_and_the_peak():
    flow = open_flow("llava-tiny", "tiny", vision=False, timing_only=True)
    result = simulate(flow, "decode", kv=40)
    profile = Profile(result["trace"], flow.compiled.program.operators, flow.config, result["cycles"])
    edges = np.linspace(0, result["cycles"], 101)
    rate = profile.channel_bytes_per_cycle(edges)
    assert rate.max() <= flow.config.peak_bytes_per_cycle * (1 + 1e-9)
    assert (rate * np.diff(edges)).sum() == pytest.approx(result["channel_bytes_read"])
    for unit in Unit:
        busy = (profile.busy_shares(unit, edges) * np.diff(edges)).sum()
        assert busy == pytest.approx(result["counters"][f"busy_{unit.name.lower()}"])


WRONG = {
    "folder that is absent": ["--out", "{tmp}/absent/x.html"],
    "folder instead of a file": ["--out", "{tmp}"],
    "phase that is none": ["--phase", "training", "--out", "{tmp}/x.html"],
    "beyond the context": ["--tokens", "999", "--out", "{tmp}/x.html"],
    "precision that is none": ["--bits", "five", "--out", "{tmp}/x.html"],
    "no file": [],
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_line(case, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["report", *(argument.format(tmp=tmp_path) for argument in WRONG[case])])
    said = capsys.readouterr().err.strip()
    assert ended.value.code == 1 and said.startswith("error: ") and "\n" not in said
    assert not list(tmp_path.iterdir())
