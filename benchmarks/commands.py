"""What the two commands of the README take on a machine that has run neither: processor time and disk.

`python -m benchmarks.run commands` runs both with an empty cache. The environment is the one that is there already;
its size is measured, not the time of its download.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.depends import ROOT

COMMANDS = {
    "make demo": "text from a picture; one layer of each kind in RTL",
    "make test": "all tests that take seconds by themselves",
}
DEPENDS = ("Makefile", "pyproject.toml")
"""Minutes, not digits, are what these figures are for: changed sources do not make them old."""


def measure() -> dict:
    """Both commands in one fresh cache, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        runs = [{"command": "make venv", "does": "creates .venv", "processor_minutes": None, "wall_minutes": None}]
        runs[0]["disk"] = gigabytes(Path(sys.prefix))
        runs += [_one(command, cache) for command in COMMANDS]
    return {"what": "empty cache, programs of an environment that is there", "runs": runs}


def _one(command: str, cache: Path) -> dict:
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"ALULA_CACHE": str(cache), "ALULA_BIN": str(Path(sys.executable).parent)}
    subprocess.run(command.split(), cwd=ROOT, env=environment, check=True, stdout=sys.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "command": command,
        "does": COMMANDS[command],
        "processor_minutes": used / 60,
        "wall_minutes": (time.monotonic() - began) / 60,
        "disk": gigabytes(cache),
    }


def gigabytes(folder: Path) -> str:
    """Size of a folder, for people."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return f"{size / 1e9:.1f} GB"
