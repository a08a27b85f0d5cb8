"""`make bench-rtl`: a decoder layer's decode step on the whole RTL of a configuration, against all other executors.

`python -m benchmarks.rtl [--config NAME ...] [--cached]`. Without --cached every simulation is built anew, in a cache
of its own that is removed afterwards: the times are those of a machine that has nothing yet. What is found goes to
benchmarks/results/rtl.json, a row a configuration.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from alula.cross import CrossBackend, executors
from alula.output import console, show, table, write_atomically
from alula.session import Flow, open_flow
from alula.verification import check_text, fill_cache, synthetic_ids
from benchmarks.depends import KEY, TIMING, stamp
from benchmarks.run import RESULTS
from hw.spec.config import CONFIGS
from hw.spec.memory import MemoryModel
from ref_model.compress import Compression
from sim.rtl.accelerator import design
from sim.rtl.build import build


@dataclass(frozen=True)
class Run:
    """One decode step: `keys` counts the new token."""

    model: str
    config: str
    layers: int
    keys: int
    bits: str


RUNS = (
    Run("llava-tiny", "tiny", 1, 128, "3.5"),
    Run("smollm2-135m", "small", 1, 128, "3.5"),
    Run("llava-1.5-7b", "u280", 1, 128, "3.5"),
)
DEPENDS = (
    *TIMING,
    "hw/*.py",
    *(f"machine:{run.config}" for run in RUNS),
    *(f"program:{run.model}/{run.config}" for run in RUNS),
)
LIMIT_SECONDS = 1800
"""What a run may take on two cores, emission of the Verilog and compilation included."""


@dataclass
class Stopwatch:
    """Seconds of the wall and of all processors, of this process and of those that it waited for."""

    wall: float = 0.0
    cpu: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        wall, cpu = time.monotonic(), sum(os.times()[:4])
        yield
        self.wall += time.monotonic() - wall
        self.cpu += sum(os.times()[:4]) - cpu


def measure(run: Run, note: Callable[[str], None] = lambda _: None) -> dict:
    """One entry of "runs"."""
    whole, emission, compilation, step = (Stopwatch() for _ in range(4))
    config = CONFIGS[run.config]
    with whole.running():
        note("quantises and compiles the model")
        compression = Compression.parse(run.bits, "dense", "best")
        flow = open_flow(run.model, run.config, layers=run.layers, vision=False, compression=compression)
        note("emits the Verilog")
        with emission.running():
            simulated = design(config)
        note("compiles the RTL")
        with compilation.running():
            build(simulated)
        cross = CrossBackend(executors("rtl"), lambda name: note(f"runs on {name}"), model=MemoryModel.of(config))
        with step.running():
            found = _step(flow, cross, run.keys)
    rtl_seconds = cross.wall_seconds["rtl"]
    return {
        "model": run.model, "config": run.config, "layers": run.layers, "phase": "decode", "kv": run.keys,
        "bits": run.bits, "memory": MemoryModel.of(config).kind, "matrix_units": config.units, "lanes": config.lanes,
        "chain_dsps": config.chain_dsps, **found, "verilog_bytes": len(simulated.verilog),
        "emission_seconds": emission.wall, "emission_cpu_seconds": emission.cpu, "build_seconds": compilation.wall,
        "build_cpu_seconds": compilation.cpu, "rtl_seconds": rtl_seconds, "step_cpu_seconds": step.cpu,
        "cycles_per_second": found["cycles_rtl"] / rtl_seconds, "total_seconds": whole.wall,
        "total_cpu_seconds": whole.cpu, "within_limit": whole.wall <= LIMIT_SECONDS,
    }  # fmt: skip


def _step(flow: Flow, cross: CrossBackend, keys: int) -> dict:
    """How the executors agreed on a decode step behind a synthetic cache, in `alula verify`'s words."""
    machine, golden = flow.machine(cross), flow.golden()
    fill_cache(flow, machine, golden, keys - 1)
    outcome, *_ = check_text(flow, machine, golden, f"decode kv {keys}", synthetic_ids(flow, 1, keys))
    return outcome.as_json()


def exact(found: dict) -> bool:
    """Whether every byte, cycle, event and counter agreed."""
    return bool(found["bit_exact"] and found["cycle_exact"] and not found["counters_differing"])


def record(found: dict) -> None:
    """Puts a run into the results file, in place of what it held of the same configuration."""
    path = RESULTS / "rtl.json"
    held = json.loads(path.read_text())["runs"] if path.exists() else []
    stamped = stamp(DEPENDS)
    runs = {row["config"]: row for row in [*held, found | {"sources": stamped["digest"]}]}
    ordered = [runs[run.config] for run in RUNS if run.config in runs]
    result: dict = {"cores": os.cpu_count(), "limit_seconds": LIMIT_SECONDS, "runs": ordered}
    if all(row.get("sources") == stamped["digest"] for row in ordered):  # else a row is older than its sources
        result[KEY] = stamped
    write_atomically(path, json.dumps(result, indent=2) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 where the executors disagree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rtl", description=__doc__.split("\n")[0])
    names = [run.config for run in RUNS]
    parser.add_argument("--config", action="append", choices=names, help="only this configuration")
    parser.add_argument("--cached", action="store_true", help="take what is built already; nothing is recorded")
    options = parser.parse_args(arguments)
    code = 0
    for run in RUNS:
        if run.config not in (options.config or names):
            continue
        with nullcontext() if options.cached else _fresh_cache():
            found = measure(run, lambda text, run=run: print(f"{run.config}: {text}", flush=True))
        console.print(table(f"{run.model} on {run.config}", ["", ""], [[k, show(v)] for k, v in found.items()]))
        if not options.cached:
            record(found)
        if not exact(found):
            difference = found["first_difference"] or "times or counters"
            print(f"{run.model} on {run.config}: the executors disagree in {difference}", file=sys.stderr)
            code = 1
    return code


@contextmanager
def _fresh_cache() -> Iterator[None]:
    """An empty cache for the designs made meanwhile."""
    with tempfile.TemporaryDirectory(prefix="alula-bench-") as folder:
        before = os.environ.get("ALULA_CACHE")
        os.environ["ALULA_CACHE"] = folder
        try:
            yield
        finally:
            os.environ.pop("ALULA_CACHE") if before is None else os.environ.update(ALULA_CACHE=before)


if __name__ == "__main__":
    sys.exit(main())
