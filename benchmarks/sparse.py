"""Cycles of a linear layer, dense against N:16: `u280` in the cycle simulator, `small` in the RTL too."""

import time

import numpy as np

from alula.cross import CrossBackend
from benchmarks.depends import TIMING
from benchmarks.linear_layer import LinearLayer, Shape, golden, weights
from hw.spec.config import get

DEPENDS = (*TIMING, "benchmarks/linear_layer.py", "machine:u280", "machine:small", "hw/*.py")
NONZEROS = (16, 8, 4, 2, 1)
BITS = 8
FULL = Shape(tokens=616, n_in=4096, n_out=11008, rows=52)
"""LLaVA-1.5-7B's gate and up projection, a photograph's prompt."""
REDUCED = Shape(tokens=128, n_in=1024, n_out=512, rows=32)


def measure() -> dict:
    """One entry a configuration and N."""
    return {
        "what": "cycles of one INT8 linear layer: quantise, multiply, scale; activations and results stay on chip "
        "(u280), or results go to memory and are compared (small)",
        "memory": "fixed latency",
        "runs": _runs("u280", FULL, ("cycle",)) + _runs("small", REDUCED, ("functional", "cycle", "rtl")),
    }


def _runs(config: str, shape: Shape, executors: tuple[str, ...]) -> list[dict]:
    runs: list[dict] = []
    for nonzeros in NONZEROS:
        run = _one(config, shape, nonzeros, executors)
        dense = runs[0] if runs else run
        run["dense_over_sparse"] = dense["cycles"] / run["cycles"]
        if run["cycles_rtl"] is not None:
            run["dense_over_sparse_rtl"] = dense["cycles_rtl"] / run["cycles_rtl"]
        runs.append(run)
    return runs


def _one(config: str, shape: Shape, nonzeros: int, executors: tuple[str, ...]) -> dict:
    machine = get(config)
    layer = weights(shape.n_out, shape.n_in, BITS, nonzeros)
    linear = LinearLayer(machine, shape, layer, store="rtl" in executors)
    image, rows = linear.image()
    cross = CrossBackend(executors)
    began = time.monotonic()
    cross.run(machine, image, linear.invocation())
    cycles, rtl = cross.results["cycle"].cycles, cross.results.get("rtl")
    macs = shape.tokens * shape.n_in * shape.n_out * nonzeros // 16
    exact = None
    if rtl is not None:
        expected = golden(layer, rows)
        exact = all(np.array_equal(linear.results(cross.memories[name]), expected) for name in ("functional", "rtl"))
    assert cycles is not None
    return {
        "config": config,
        "tokens": shape.tokens,
        "n_in": shape.n_in,
        "n_out": shape.n_out,
        "bits": BITS,
        "nonzeros_of_16": nonzeros,
        "cycles": cycles,
        "cycles_rtl": rtl and rtl.cycles,
        "cycle_exact": None if rtl is None else rtl.cycles == cycles and rtl.trace == cross.results["cycle"].trace,
        "bit_exact": exact,
        "array_utilisation": macs / cycles / machine.macs_per_cycle,
        "stream_beats": linear.stream_beats,
        "wall_seconds": time.monotonic() - began,
    }
