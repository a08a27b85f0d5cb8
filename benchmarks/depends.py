"""What a measured result depends on, as one digest.

A result file says which sources its figures come from and what those sources meant when they were measured. A test
compares that digest with the sources of today, so a figure cannot outlive what made it. The digest follows the meaning
of a source: formatting, comments and docstrings do not change it.

A dependence is one of three:

- a pattern of files, such as `hw/spec/*.py`;
- `program:llava-1.5-7b/u280`: the instructions that the compiler emits for that model and configuration, so that a
  change of the compiler which leaves them alone leaves the figures alone;
- `machine:u280`: the fields of a configuration.

Example of what `stamp(("sim/cycle.py", "machine:u280"))` adds to a result file::

    "measured": {"depends_on": ["machine:u280", "sim/cycle.py"], "digest": "3f0c…", "date": "2026-11-27"}
"""

import ast
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path

from hw.spec.config import get
from hw.spec.isa import INSTRUCTION_BYTES

ROOT = Path(__file__).parents[1]
KEY = "measured"
"""The entry of a result file that `stamp` makes."""
PROGRAM, MACHINE = "program:", "machine:"
TIMING = (
    "sim/cycle.py",
    "sim/cycle_streams.py",
    "sim/hbm.py",
    "sim/weight_stream.py",
    "hw/spec/hbm.py",
    "hw/spec/isa.py",
    "hw/spec/memory.py",
    "hw/spec/timing.py",
    "hw/spec/weights.py",
    "alula/runtime/*.py",
)
"""What every count of cycles depends on, besides its program and its machine."""


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


def digest(dependences: Iterable[str]) -> str:
    """First 16 hex digits of the SHA-256 of what these mean today (on one version of Python: it hashes syntax)."""
    state = sha256()
    for name in sorted(dependences):
        state.update(f"{name}\n".encode())
        if name.startswith(PROGRAM):
            state.update(_program(*name.removeprefix(PROGRAM).split("/")))
        elif name.startswith(MACHINE):
            state.update(get(name.removeprefix(MACHINE)).digest().encode())
        else:
            state.update(_files(name))
    return state.hexdigest()[:16]


def _files(pattern: str) -> bytes:
    state = sha256()
    for path in sources([pattern]):
        state.update(f"{path.relative_to(ROOT).as_posix()}\n".encode())
        state.update(meaning(path.read_text()).encode() if path.suffix == ".py" else path.read_bytes())
    return state.digest()


@cache
def _program(model: str, config: str) -> bytes:
    """The SHA-256 of a compiled program's instructions: the same at every precision; at two bits all models fit."""
    from alula.session import open_flow
    from ref_model.compress import Compression

    two_bits = Compression.parse("2", "dense", "plain")
    words = open_flow(model, config, timing_only=True, compression=two_bits).compiled.program.words
    return sha256(b"".join(int(word).to_bytes(INSTRUCTION_BYTES, "little") for word in words)).digest()


def meaning(source: str) -> str:
    """A Python source without its comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [line for line in body if not _is_text(line)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


def stamp(dependences: Iterable[str]) -> dict:
    """The entry `measured` of a result that was measured just now."""
    chosen = sorted(set(dependences))
    return {"depends_on": chosen, "digest": digest(chosen), "date": f"{datetime.now(UTC):%Y-%m-%d}"}


def is_stale(result: dict) -> bool:
    """Whether a result is older than what it depends on, or does not say what that is."""
    stamped = result.get(KEY)
    return not stamped or digest(stamped["depends_on"]) != stamped["digest"]
