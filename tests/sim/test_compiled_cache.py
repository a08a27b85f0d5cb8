"""Compiled functions are kept apart by what hw/spec and sim say, and compiled again where their files are damaged."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import hw

LOOK = "import numba, sim.weight_stream; print(numba.config.CACHE_DIR)"


def folder_of(checkout: Path, cache: Path) -> str:
    environment = {"ALULA_CACHE": str(cache), "PYTHONPATH": str(checkout)}
    return subprocess.run(
        [sys.executable, "-c", LOOK], cwd=checkout, env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_another_latency_is_another_cache(tmp_path: Path) -> None:
    root = Path(hw.__file__).parents[1]
    for package in ("hw", "sim", "alula"):
        shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    before = folder_of(tmp_path, tmp_path / "cache")
    timing = tmp_path / "hw" / "spec" / "timing.py"
    timing.write_text(timing.read_text().replace("MX_ACC_LATENCY = 21", "MX_ACC_LATENCY = 22"))
    assert before.startswith(str(tmp_path / "cache"))
    assert folder_of(tmp_path, tmp_path / "cache") != before


RUN = """
import numpy as np
from numba.core.event import register, Listener
from hw.spec.hbm import new_channel
from fractions import Fraction
from sim.hbm import slot_of

compiled = []
class Count(Listener):
    def on_start(self, event):
        compiled.append(event)
    def on_end(self, event):
        pass
register("numba:compile", Count())
print(int(slot_of(np.array(new_channel(Fraction(3, 2)), np.int64), 5)), len(compiled))
"""


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize(
    "damage",
    [
        truncated,
        flipped,
        pytest.param(lambda data: b"", marks=pytest.mark.slow),
        pytest.param(lambda data: b"garbage" * 30, marks=pytest.mark.slow),
    ],
    ids=["truncated", "flipped", "empty", "garbage"],
)
def test_damaged_files_are_compiled_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    root = Path(hw.__file__).parents[1]

    def answer() -> list[str]:
        environment = {"ALULA_CACHE": str(tmp_path), "PYTHONPATH": str(root)}
        return subprocess.run(
            [sys.executable, "-c", RUN], cwd=root, env=environment, capture_output=True, text=True, check=True
        ).stdout.split()

    assert answer() == ["8", "1"] and answer() == ["8", "0"]
    files = [path for path in tmp_path.rglob("*") if path.suffix in (".nbi", ".nbc")]
    for suffix in (".nbi", ".nbc"):
        (path,) = [path for path in files if path.suffix == suffix]
        path.write_bytes(damage(path.read_bytes()))
        assert answer() == ["8", "1"] and answer() == ["8", "0"]
