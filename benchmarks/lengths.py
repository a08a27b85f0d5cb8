"""LLaVA-1.5-7B's language model on `u280` at every kind of length: one program, and what one more token costs.

Timing only: the cycle simulator without weights. A prefill's tile is a chunk of tokens (manifest: `tile`), a decode
step's is a key slot of all units (16 x units keys). One more token must cost no more than one more tile does.
"""

import time
from collections.abc import Callable
from functools import cache, partial
from hashlib import sha256

import numpy as np

from alula.session import Flow, open_flow
from benchmarks.depends import TIMING
from hw.spec.memory import MemoryModel
from sim.registry import backend

MODEL, CONFIG = "llava-1.5-7b", "u280"
DEPENDS = (*TIMING, f"machine:{CONFIG}", f"program:{MODEL}/{CONFIG}")
LENGTHS = (1, 16, 128, 256, 512, 576, 616, 617, 2968, 4096)


def measure() -> dict:
    """One entry a phase and length."""
    flow = open_flow(MODEL, CONFIG, vision=False, timing_only=True)
    tiles = {"prefill": flow.compiled.program.entries["lm"]["tile"], "decode": 1 << flow.layout.geo.keys_per_slot_log2}
    program = np.array(flow.compiled.program.words, np.uint64).tobytes()
    cycles = cache(partial(_cycles, flow))
    runs = [_one(flow, cycles, phase, n, tile) for phase, tile in tiles.items() for n in LENGTHS]
    return {
        "what": "language model with its head; one_more_token: cycles of that length + 1 less those of the length "
        "(at the end of the context the last token's); one_more_tile: the same with a tile of tokens",
        "model": MODEL,
        "config": CONFIG,
        "memory": "fixed latency",
        "context": flow.context,
        "tiles": tiles,
        "program_bytes": len(program),
        "program_sha256": sha256(program).hexdigest(),
        "runs": runs,
    }


def _one(flow: Flow, cycles: Callable[[str, int], int], phase: str, n: int, tile: int) -> dict:
    def more(count: int) -> int:
        start = min(n, flow.context - count)
        return cycles(phase, start + count) - cycles(phase, start)

    began, found = time.monotonic(), cycles(phase, n)
    return {
        "phase": phase,
        "length": n,
        "cycles": found,
        "seconds_at_clock": found / flow.config.clock_hz,
        "one_more_token": more(1),
        "one_more_tile": more(tile),
        "within_limit": more(1) <= more(tile),
        "wall_seconds": time.monotonic() - began,
    }


def _cycles(flow: Flow, phase: str, n: int) -> int:
    """Of a prefill of n tokens, or of a decode step that sees n keys."""
    machine = flow.machine(backend("cycle", model=MemoryModel.of(flow.config, "fixed")))
    machine.kept = n - 1 if phase == "decode" else 0
    machine.prefill([machine.embed_row(0)] * (n if phase == "prefill" else 1))
    cycles = machine.results[-1][1].cycles
    assert cycles is not None
    return cycles
