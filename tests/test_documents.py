"""Documents say what files, commands and sources say today."""

import json
import re
import shutil
from pathlib import Path

import pytest

from benchmarks import depends
from hw.spec.config import get
from tools.documents import figures, pages, recorded, results
from tools.documents.results import ROOT
from tools.pictures import IMAGES, timeline
from tools.pictures import machine as diagram

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
PAGES = [*pages.pages(), ROOT / "CONTRIBUTING.md"]
README_LINES = 120


@pytest.mark.parametrize("page", pages.pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_generated_blocks_are_what_the_files_say(page):
    assert pages.generated(page) == page.read_text(), "python -m tools.documents writes them"


def test_results_in_documents_are_not_stale_without_a_reason():
    assert results.unexplained() == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Results in a temporary copy; returns a function that changes one of them."""
    folder = tmp_path / "results"
    shutil.copytree(results.RESULTS, folder)
    monkeypatch.setattr(results, "RESULTS", folder)

    def change(name, **values):
        path = folder / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def test_a_changed_figure_is_found(planted):
    planted("perplexity", ratio=2.0)
    planted("quality", aims={"4 dense best": 9.99})
    differing = {page.name for page in pages.differing()}
    assert {"README.md", "results.md"} <= differing


def test_a_stale_result_is_found_and_labelled(planted, monkeypatch):
    monkeypatch.setattr(results, "OLDER", {})
    monkeypatch.setattr(results, "USED", {"perplexity"})
    stamp = depends.stamp(("hw/spec/config.py",))
    planted("perplexity", measured=stamp)
    assert results.unexplained() == []
    assert "with older sources and not again since" not in figures.perplexity()
    planted("perplexity", measured=stamp | {"digest": "0" * 16, "date": "2001-02-03"})
    assert len(results.unexplained()) == 1
    assert "measured on 2001-02-03, with older sources and not again since" in figures.perplexity()
    monkeypatch.setattr(results, "OLDER", {"perplexity": results.Older("2001-02-03", "a test")})
    assert results.unexplained() == []


def test_an_unstamped_result_is_labelled(planted):
    planted("perplexity", measured=None)
    assert "with older sources and not again since" in figures.perplexity()


def test_a_reason_that_is_no_longer_needed_is_found(planted, monkeypatch):
    monkeypatch.setattr(results, "USED", {"perplexity"})
    monkeypatch.setattr(results, "OLDER", {"perplexity": results.Older("2001-02-03", "a test")})
    planted("perplexity", measured=depends.stamp(("hw/spec/config.py",)))
    assert "take it off" in results.unexplained()[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    broken = [link for link in LINK.findall(page.read_text()) if not _resolves(page, link)]
    assert broken == []


def _resolves(page: Path, link: str) -> bool:
    if "://" in link:
        return True
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
        return False
    return not anchor or anchor in {_anchor(title) for title in HEADING.findall(target.read_text())}


def _anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_nothing_refers_to_what_is_not_in_the_project():
    for page in PAGES:
        assert "/work" not in page.read_text(), page


def test_the_block_diagram_is_what_the_configuration_gives():
    assert (IMAGES / "machine.svg").read_text() == diagram.svg(get("u280")), "python -m tools.pictures draws it"


def test_the_timeline_is_what_the_simulator_says():
    assert (IMAGES / "timeline.svg").read_text() == timeline.svg(*timeline.simulated()), "python -m tools.pictures"


def test_commands_are_recorded():
    text = "<!-- head 1 -->\n```console\n$ seq 3\n$ echo a; echo b\n```\n"
    new, faults = recorded.run(text, slow=False)
    assert new == "<!-- head 1 -->\n```console\n$ seq 3\n1\n...\n$ echo a; echo b\na\n...\n```\n"
    assert faults == []
    assert recorded.differences(text, new, "page")
    assert recorded.run(new, slow=False)[0] == new


def test_lines_are_chosen():
    text = "<!-- only 2|4 -->\n```console\n$ seq 5\n```\n"
    assert "$ seq 5\n...\n2\n...\n4\n...\n" in recorded.run(text, slow=False)[0]


def test_a_command_that_fails_is_a_fault_unless_it_should():
    text = "```console\n$ false\n```\n"
    assert len(recorded.run(text, slow=False)[1]) == 1
    assert recorded.run("<!-- fails -->\n" + text, slow=False)[1] == []


def test_slow_blocks_wait():
    text = "<!-- slow -->\n```console\n$ echo a\n```\n"
    assert recorded.run(text, slow=False)[0] == text
    assert recorded.run(text, slow=True)[0] != text


def test_files_are_written_for_commands():
    text = "<!-- file my.toml -->\n```toml\nlanes = 32\n```\n\n```console\n$ cat my.toml\n```\n"
    assert recorded.run(text, slow=False)[0].endswith("$ cat my.toml\nlanes = 32\n```\n")


@pytest.mark.parametrize(
    "line, expected",
    [
        ("│ wall_seconds  │  20.5648 │", "│ wall_seconds  │      ... │"),
        ("│ cycles        │  54,707 │", "│ cycles        │  54,707 │"),
        ("54,707 cycles, simulated in 3.4 s", "54,707 cycles, simulated in ... s"),
        ("54,707 cycles in 20.5 s of wall time", "54,707 cycles in ... s of wall time"),
        ("written on 2026-11-27 12:30", "written on ..."),
    ],
)
def test_what_varies_is_masked(line, expected, tmp_path):
    assert recorded.masked(line, tmp_path) == [expected]


EXEMPT = {"decisions.md", "isa.md", "machine.md", "memory.md", "alveo.md"}
"""Figures of the day of a decision; constants of contracts; a section whose figures Yosys gives."""
MEASURED = re.compile(r"\b\d[\d,.]* ?(?:million cycles|cycles|tokens/s|seconds|minutes|hours|ms|GB/s|GB|%|LUTs)")
WRITTEN_BY_PROGRAMS = re.compile(r"<!-- \[\[\[cog.*?\[\[\[end\]\]\] -->|^```.*?^```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in EXEMPT],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_prose_names_no_measured_figure(page):
    assert MEASURED.findall(WRITTEN_BY_PROGRAMS.sub("", page.read_text())) == []


def test_the_readme_names_targets_that_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:.* ## ", makefile, re.MULTILINE), target
