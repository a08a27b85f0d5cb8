"""What a measured result depends on, as one digest.

A result file says which sources its figures come from and what those sources meant when they were measured. A test
compares that digest with the sources of today, so a figure cannot outlive what made it. The digest follows the meaning
of a source: formatting, comments and docstrings do not change it.

Example of what `stamp(("hw/**/*.py",))` adds to a result file::

    "measured": {"depends_on": ["hw/**/*.py"], "digest": "3f0c…", "date": "2026-11-27"}
"""

import ast
from collections.abc import Iterable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEY = "measured"
"""The entry of a result file that `stamp` makes."""


def sources(patterns: Iterable[str]) -> list[Path]:
    """The files that the patterns name (`Path.glob`, from the top of the project), sorted.

    ValueError for a pattern that names no file: it would never make a figure stale.
    """
    found: set[Path] = set()
    for pattern in patterns:
        files = {path for path in ROOT.glob(pattern) if path.is_file() and "__pycache__" not in path.parts}
        if not files:
            raise ValueError(f"{pattern!r} names no file of the project: correct it where the benchmark says it")
        found |= files
    return sorted(found)


def digest(patterns: Iterable[str]) -> str:
    """First 16 hex digits of the SHA-256 of what these sources mean (on one version of Python: it hashes syntax)."""
    state = sha256()
    for path in sources(patterns):
        state.update(f"{path.relative_to(ROOT).as_posix()}\n".encode())
        state.update(meaning(path.read_text()).encode() if path.suffix == ".py" else path.read_bytes())
    return state.hexdigest()[:16]


def meaning(source: str) -> str:
    """A Python source without its comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [line for line in body if not _is_text(line)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


def stamp(patterns: Iterable[str]) -> dict:
    """The entry `measured` of a result that was measured just now."""
    chosen = sorted(patterns)
    return {"depends_on": chosen, "digest": digest(chosen), "date": f"{datetime.now(UTC):%Y-%m-%d}"}


def is_stale(result: dict) -> bool:
    """Whether a result is older than what it depends on, or does not say what that is."""
    stamped = result.get(KEY)
    return not stamped or digest(stamped["depends_on"]) != stamped["digest"]
