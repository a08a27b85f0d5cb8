"""Compiled functions are kept apart by what hw/spec says, whose constants they hold."""

import shutil
import subprocess
import sys
from pathlib import Path

import hw

LOOK = "import numba, sim.weight_stream; print(numba.config.CACHE_DIR)"


def folder_of(checkout: Path, cache: Path) -> str:
    environment = {"ALULA_CACHE": str(cache), "PYTHONPATH": str(checkout)}
    return subprocess.run([sys.executable, "-c", LOOK], cwd=checkout, env=environment, capture_output=True, text=True,
                          check=True).stdout.strip()  # fmt: skip


def test_another_latency_is_another_cache(tmp_path: Path) -> None:
    root = Path(hw.__file__).parents[1]
    for package in ("hw", "sim", "alula"):
        shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    before = folder_of(tmp_path, tmp_path / "cache")
    timing = tmp_path / "hw" / "spec" / "timing.py"
    timing.write_text(timing.read_text().replace("MX_ACC_LATENCY = 21", "MX_ACC_LATENCY = 22"))
    assert before.startswith(str(tmp_path / "cache"))
    assert folder_of(tmp_path, tmp_path / "cache") != before
