"""Prefill of LLaVA-1.5-7B's language model on `u280` with fewer visual tokens: time and useful work of each mechanism.

Timing only: the cycle simulator without weights. MACs are checked against the published formula a layer. Without values
nobody can choose by them: with mechanism `score` the ranking's program runs as if the first tokens had won. What that
makes of the cycles is an estimate; how far off it is, is measured on llava-tiny (tests/compiler/test_reduction.py).
"""

import time

from alula.reduction import Asked
from alula.runtime.work import text_macs
from alula.session import Flow, open_flow
from benchmarks.depends import TIMING
from hw.spec.memory import MemoryModel
from ref_model.reduction import Drop
from sim.registry import backend

MODEL, CONFIG = "llava-1.5-7b", "u280"
DEPENDS = (*TIMING, f"machine:{CONFIG}", f"program:{MODEL}/{CONFIG}", "ref_model/reduction.py")
TEXT, VISUAL = 40, 576
COUNTS = (576, 288, 144, 58, 29)
EXITS = (8, 16, 24)
PRUNED_AT = 2
"""FastV's layer: visual tokens are dropped before it, ranked by attention in the one before."""
MANY_TOKENS, TOLERANCE, TOLERANCE_FEW = 128, 0.10, 0.20
"""Cycles a MAC may differ by this much from those at 576 visual tokens, from so many tokens on and below."""


def measure() -> dict:
    """One entry a mechanism and number of visual tokens."""
    flow = open_flow(MODEL, CONFIG, vision=False, timing_only=True)
    runs: list[dict] = []
    for mechanism, kept, tokens, reduction in _cases():
        run = _one(flow, mechanism, kept, tokens, reduction)
        base = runs[0] if runs else run
        limit = TOLERANCE if run["tokens_fewest"] >= MANY_TOKENS else TOLERANCE_FEW
        run["cycles_a_mac_over_full"] = run["cycles_a_mac"] / base["cycles_a_mac"]
        run["within_limit"] = abs(run["cycles_a_mac_over_full"] - 1) <= limit
        run["speed_up"] = base["cycles"] / run["cycles"]
        runs.append(run)
    return {
        "what": "prefill of the language model, head included, no vision tower; exit: visual_tokens is the layer",
        "model": MODEL,
        "config": CONFIG,
        "text_tokens": TEXT,
        "memory": "fixed latency",
        "context": flow.context,
        "runs": runs,
    }


def _cases() -> list[tuple[str, int, int, Asked | None]]:
    """(mechanism, visual tokens or exit layer, prompt's tokens, what is asked for)."""
    cases: list[tuple[str, int, int, Asked | None]] = [("encoder", r, TEXT + r, None) for r in COUNTS]
    for mechanism, by_score in (("schedule", False), ("score", True)):
        cases += [(mechanism, r, TEXT + VISUAL, Asked((Drop(PRUNED_AT, r, by_score),), VISUAL)) for r in COUNTS]
    return cases + [("exit", e, TEXT + VISUAL, Asked((Drop(e, 0),), VISUAL)) for e in EXITS]


def layer_tokens(mechanism: str, kept: int, layers: int) -> list[int]:
    """n of every layer by the definition of a mechanism."""
    if mechanism == "encoder":
        return [TEXT + kept] * layers
    if mechanism == "exit":
        return [TEXT + VISUAL * (layer < kept) for layer in range(layers)]
    return [TEXT + (VISUAL if layer < PRUNED_AT else kept) for layer in range(layers)]


def formula(flow: Flow, tokens: list[int]) -> int:
    """n (2 d**2 + 2 d d_kv + 3 d ff) + n (n + 1) d a layer, and the head."""
    c = flow.model.config.text
    d, d_kv = c.hidden, c.kv_heads * c.head_dim
    layers = sum(n * (2 * d * d + 2 * d * d_kv + 3 * d * c.ffn) + n * (n + 1) * d for n in tokens)
    return layers + d * c.vocab


def _one(flow: Flow, mechanism: str, kept: int, tokens: int, reduction: Asked | None) -> dict:
    began, machine = time.monotonic(), flow.machine(backend("cycle", model=MemoryModel.of(flow.config, "fixed")))
    reduced = None if reduction is None else reduction.synthetic(flow, tokens)
    machine.prefill([machine.embed_row(0)] * tokens, reduction=reduced)
    cycles = machine.results[-1][1].cycles
    macs = text_macs(flow.layout, tokens, layers=flow.layers, head=flow.head, reduction=reduced)
    assert cycles is not None
    expected = layer_tokens(mechanism, kept, flow.layers)
    return {
        "mechanism": mechanism,
        "visual_tokens": kept,
        "tokens_first": expected[0],
        "tokens_fewest": min(expected),
        "cycles": cycles,
        "estimate": mechanism == "score",
        "seconds_at_clock": cycles / flow.config.clock_hz,
        "macs": macs,
        "macs_equal_formula": macs == formula(flow, expected),
        "cycles_a_mac": cycles / macs,
        "wall_seconds": time.monotonic() - began,
    }
