"""The vector unit under Verilator: one binary a design, passes in, stores and done cycles out."""

import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

import numpy as np

from hw.buffer_memory import READ_LATENCY
from hw.spec.config import get
from hw.spec.timing import VU_LATENCY
from hw.vector_unit import VectorUnit
from hw.verilog_writer import convert
from sim.cache import entry
from sim.rtl.toolchain import tool_environment, toolchain_digest
from tests.hw.vector_oracle import NAMES, Machine

CONFIG = get("tiny")
HARNESS = Path(__file__).parent / "native" / "vector_unit.cpp"


def verilog():
    return convert(VectorUnit(CONFIG, hierarchical=True), "vector_unit")


def binary(text: str) -> Path:
    """The simulation of a design's Verilog, from the cache if it is there."""
    digest = sha256((toolchain_digest() + text + HARNESS.read_text()).encode()).hexdigest()[:24]

    def make(folder: Path) -> None:
        (folder / "vector_unit.v").write_text(text)
        command = [
            "verilator",
            "--cc",
            "--exe",
            "--build",
            "-j",
            "2",
            "--top-module",
            "vector_unit",
            "-Mdir",
            "obj",
            "-o",
            "sim",
            "-Wno-lint",
            "-Wno-style",
            "-Wno-fatal",
            "-CFLAGS",
            f"-O1 -DREAD_LATENCY={READ_LATENCY}",
            "-MAKEFLAGS",
            "OPT_FAST=-O1 OPT_SLOW=-O0 OPT_GLOBAL=-O1",
            "vector_unit.v",
            str(HARNESS),
        ]
        subprocess.run(command, cwd=folder, env=tool_environment(folder / "bin"), check=True, capture_output=True)
        (folder / "obj" / "sim").rename(folder / "sim")
        shutil.rmtree(folder / "obj")

    return entry("vector_unit", digest, make) / "sim"


def simulate(program: Path, ab, pb, passes):
    """A pass's ([stores], done cycle, error, code), for each."""
    words = [len(ab), len(pb), len(passes), *ab.ravel(), *pb.ravel(), *(d[name] for d in passes for name in NAMES)]
    raw = (np.array(words, dtype=np.int64) & 0xFFFFFFFF).astype(np.uint32).tobytes()
    run = subprocess.run([program], input=raw, stdout=subprocess.PIPE, check=True)
    results, stores = [], []
    for line in run.stdout.decode().splitlines():
        kind, *numbers = line.split()
        numbers = [int(x) for x in numbers]
        if kind == "P":
            results.append((stores, *numbers))
            stores = []
        else:
            stores.append((kind, numbers[0], tuple(numbers[1:])))
    return results


def mismatch(program: Path, ab, pb, passes):
    """The first difference from the oracle, as text, or None."""
    machine = Machine(CONFIG, ab, pb)
    simulated = simulate(program, ab, pb, passes)
    for number, (d, (stores, cycle, error, code)) in enumerate(zip(passes, simulated, strict=True)):
        machine.stores = []
        n_words, want = machine.run(d)
        if (error, code) != (int(want != 0), want):
            return f"pass {number}: error {error} code {code}, expected {want}; {d}"
        if cycle != n_words + VU_LATENCY:
            return f"pass {number}: done in cycle {cycle}, expected {n_words + VU_LATENCY}; {d}"
        for got, expected in zip(stores, machine.stores, strict=False):
            if got != expected:
                return f"pass {number}: got {got}, expected {expected}; {d}"
        if len(stores) != len(machine.stores):
            return f"pass {number}: {len(stores)} stores, expected {len(machine.stores)}; {d}"
    return None
