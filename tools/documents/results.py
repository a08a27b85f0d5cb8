"""Result files: reading them, and saying so where one is older than the sources that it was measured from."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks import depends

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Older:
    """Why a result that is older than its sources may be shown, and when it was measured if its file does not say."""

    date: str
    reason: str


_UNSTAMPED = "measured before result files said what they depend on"
LATE = "with older sources and not again since"
"""What is said of a result that is older than its sources."""
OLDER: dict[str, Older] = {
    "simulator": Older("2026-11-25", _UNSTAMPED),
    "rtl": Older(
        "2026-11-27",
        "the hardware's redesign goes on (wires between dies): the whole `u280` is measured when it is whole",
    ),
    "commands": Older(
        "2026-11-27", "pyproject.toml names more data files and the Makefile has one target more, which no command runs"
    ),
}
"""Result files that documents show although they are stale. The label in the documents stays in any case."""
USED: set[str] = set()
"""Result files that some generated block reads."""


def load(name: str) -> dict:
    """benchmarks/results/NAME.json."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def exists(name: str) -> bool:
    """Whether there is such a result file."""
    return (RESULTS / f"{name}.json").is_file()


def is_stale(result: dict) -> bool:
    """`depends.is_stale`, with each set of sources hashed once a process."""
    stamped = result.get(depends.KEY)
    return not stamped or _digest(tuple(stamped["depends_on"])) != stamped["digest"]


@cache
def _digest(patterns: tuple[str, ...]) -> str:
    return depends.digest(patterns)


def label(name: str, result: dict) -> str:
    """The line below a block: where its figures come from, and whether the sources have changed since."""
    older = OLDER.get(name)
    stamped = result.get(depends.KEY) or {}
    date = stamped.get("measured_on") or stamped.get("date") or (older.date if older else "an unknown date")
    confirmed = ""
    if "rows_confirmed" in stamped:
        confirmed = f" ({stamped['rows_confirmed']} rows measured again on {stamped['date']}: the same)"
    late = f", {LATE}" if is_stale(result) else ""
    return f"`benchmarks/results/{name}.json`, measured on {date}{confirmed}{late}."


def figure(*names: str) -> Callable[[Callable[..., str]], Callable[[], str]]:
    """Makes a function of these result files' contents one without arguments, whose block ends with their labels."""
    USED.update(names)

    def decorate(write: Callable[..., str]) -> Callable[[], str]:
        def block() -> str:
            found = [load(name) for name in names]
            labels = " ".join(label(name, result) for name, result in zip(names, found, strict=True))
            return f"{write(*found).rstrip()}\n\nSource: {labels}"

        block.__doc__ = write.__doc__
        return block

    return decorate


def unexplained() -> list[str]:
    """One line a used result file that is stale and not in `OLDER`, or that is in `OLDER` without being stale."""
    lines = []
    for name in sorted(USED):
        stale = is_stale(load(name))
        if stale and name not in OLDER:
            lines.append(
                f"benchmarks/results/{name}.json is older than its sources: measure it anew "
                f"(python -m benchmarks.run {name}), or give the reason in tools/documents/results.py (OLDER)"
            )
        if not stale and name in OLDER:
            lines.append(f"benchmarks/results/{name}.json is up to date: take it off OLDER in tools/documents")
    return lines


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
