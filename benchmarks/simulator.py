"""Speed of the cycle simulator without moving data: cycles a second, and a layer's wall time against SCALE-Sim's.

`python -m benchmarks.simulator [--limit S] [--decode-limit S] [--gemm NAME ..]` measures with other limits than
`benchmarks.run` does.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from alula.output import write_atomically
from alula.session import open_flow
from alula.simulation import simulate
from benchmarks import systolic
from benchmarks.depends import TIMING
from benchmarks.systolic import Gemm

DEPENDS = (
    *TIMING,
    "machine:tiny",
    "machine:small",
    "machine:u280",
    "program:llava-tiny/tiny",
    "program:smollm2-135m/small",
    "program:llava-1.5-7b/u280",
)
RUNS = (
    ("llava-tiny", "tiny", None, "prefill", 64, 1),
    ("llava-tiny", "tiny", None, "decode", 1, 200),
    ("smollm2-135m", "small", None, "prefill", 128, 1),
    ("smollm2-135m", "small", None, "decode", 1, 256),
)
LIMIT_SECONDS = 2400.0
"""A matrix product of SCALE-Sim is stopped then."""
MODEL, CONFIG, KEYS, REPEATS = "llava-1.5-7b", "u280", 616, 3
"""KEYS: tokens of the prefill, keys of the decode step."""
HIDDEN, INTERMEDIATE, HEADS, HEAD_DIM = 4096, 11008, 32, 128


def measure(limit: float = LIMIT_SECONDS, decode_limit: float | None = None, gemms: set[str] | None = None) -> dict:
    """One entry a run, and the comparison; gemms: names of the products that SCALE-Sim gets (None: all)."""
    limits = {"prefill": limit, "decode": limit if decode_limit is None else decode_limit}
    return {"runs": _runs(), "against_scale_sim": _compare(limits, gemms)}


def _runs() -> list[dict]:
    runs, flows = [], {}
    for model, config, layers, phase, tokens, kv in RUNS:
        key = model, config, layers
        if key not in flows:
            flows[key] = open_flow(model, config, layers=layers, vision=False, timing_only=True)
        began = time.monotonic()
        result = simulate(flows[key], phase, tokens=tokens, kv=kv, name="cycle")
        runs.append(
            {
                "model": model,
                "config": config,
                "phase": phase,
                "tokens": tokens,
                "kv": kv,
                "cycles": result["cycles"],
                "mac_utilisation": result["mac_utilisation"],
                "hbm_utilisation": result["hbm_utilisation"],
                "simulator_seconds": result["simulator_seconds"],
                "wall_seconds": time.monotonic() - began,
                "cycles_per_second": result["cycles"] / result["simulator_seconds"],
            }
        )
    return runs


def layer_gemms(tokens: int, keys: int) -> list[Gemm]:
    """Matrix products of one layer of the 7B."""
    return [
        Gemm("q, k, v, o", tokens, HIDDEN, HIDDEN, 4),
        Gemm("gate, up", tokens, INTERMEDIATE, HIDDEN, 2),
        Gemm("down", tokens, HIDDEN, INTERMEDIATE),
        Gemm("scores", tokens, keys, HEAD_DIM, HEADS),
        Gemm("values", tokens, HEAD_DIM, keys, HEADS),
    ]


def _compare(limits: dict[str, float], gemms: set[str] | None) -> dict:
    """A layer of the 7B here and there, in the same run."""
    python = systolic.environment()
    start_up = systolic.run(python, Gemm("start-up", 1, 1, 1), LIMIT_SECONDS)
    flow = open_flow(MODEL, CONFIG, layers=1, vision=False, timing_only=True)
    phases = [_phase(flow, python, phase, limits[phase], gemms, start_up) for phase in ("prefill", "decode")]
    return {
        "scale_sim": list(systolic.PACKAGES),
        "array": f"{systolic.ROWS} x {systolic.COLUMNS}, weight stationary, {systolic.WORDS_PER_CYCLE} words a cycle",
        "scale_sim_start_up_seconds": start_up["wall_seconds"],
        "model": MODEL,
        "config": CONFIG,
        "layers": 1,
        "phases": phases,
    }


def _phase(flow, python: Path, phase: str, limit: float, gemms: set[str] | None, start_up: dict) -> dict:
    options = {"tokens": KEYS} if phase == "prefill" else {"kv": KEYS}
    results, cpu = [simulate(flow, phase, name="cycle", **options)], list[float]()  # the first loads compiled code
    for _ in range(REPEATS):
        began = time.process_time()
        results.append(simulate(flow, phase, name="cycle", **options))
        cpu.append(time.process_time() - began)
    ours = [result["simulator_seconds"] for result in results[1:]]
    whole = _process_seconds(phase)
    wanted = layer_gemms(KEYS if phase == "prefill" else 1, KEYS)
    found = [systolic.run(python, gemm, limit) for gemm in wanted if gemms is None or gemm.name in gemms]
    theirs, their_cpu = (
        sum(row["times_in_a_layer"] * (row[kind] - start_up[kind]) for row in found)
        for kind in ("wall_seconds", "cpu_seconds")
    )
    left_out = [gemm.name for gemm in wanted if gemms is not None and gemm.name not in gemms]
    return {
        "phase": phase,
        "tokens": KEYS if phase == "prefill" else 1,
        "kv": KEYS,
        "cycles": results[0]["cycles"],
        "simulator_seconds": median(ours),
        "simulator_seconds_each": ours,
        "simulator_cpu_seconds": median(cpu),
        "process_seconds": whole,
        "scale_sim_limit_seconds": limit,
        "scale_sim_gemms": found,
        "scale_sim_left_out": left_out,
        "scale_sim_layer_seconds": theirs,
        "scale_sim_layer_cpu_seconds": their_cpu,
        "scale_sim_is_lower_bound": bool(left_out) or not all(row["finished"] for row in found),
        "ratio": theirs / median(ours),
        "ratio_of_cpu_time": their_cpu / median(cpu),
        "ratio_with_start_up": (theirs + start_up["wall_seconds"]) / whole,
    }


def _process_seconds(phase: str) -> float:
    """`alula simulate` of one layer: start-up, compilation and simulation."""
    length = "--tokens" if phase == "prefill" else "--kv"
    command = [sys.executable, "-m", "alula.cli", "simulate", "--model", MODEL, "--config", CONFIG, "--layers", "1",
               "--phase", phase, length, str(KEYS)]  # fmt: skip
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
    return time.monotonic() - began


def main() -> None:
    """Writes results/simulator.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS, help="seconds a matrix product may take")
    parser.add_argument("--decode-limit", type=float, help="the same, in decode")
    names = [gemm.name for gemm in layer_gemms(1, 1)]
    parser.add_argument("--gemm", action="append", choices=names, help="only these (default: all)")
    options = parser.parse_args()
    result = measure(options.limit, options.decode_limit, set(options.gemm) if options.gemm else None)
    path = Path(__file__).parent / "results" / "simulator.json"
    write_atomically(path, json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["against_scale_sim"], indent=2))


if __name__ == "__main__":
    main()
