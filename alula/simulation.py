"""`alula simulate`: one phase on the simulators, its metrics, and on request the golden model's verdict."""

import time
from collections.abc import Callable

import numpy as np

from alula.cross import CrossBackend, Outcome
from alula.errors import UserError
from alula.expected import cache_pieces, write_pieces
from alula.output import peak_memory_bytes
from alula.session import Flow
from alula.verification import check_text, check_vision, synthetic_ids, synthetic_patches
from compiler.host import Session, text_macs, vision_macs
from hw.spec import numerics as nm
from hw.spec.config import BEAT_BYTES
from ref_model.golden.model import LayerCache
from sim.backend import Result
from sim.report import Comparison, Workload, metrics

PHASES = ("prefill", "decode", "vision")
SEED = 7
Note = Callable[[str], None]


def synthetic_cache(kv_heads: int, head_dim: int, n: int, layer: int) -> LayerCache:
    """Seeded keys and values of n earlier tokens, scales as those of a trained model's cache."""
    rng = np.random.default_rng((SEED, layer))

    def int8() -> np.ndarray:
        return rng.integers(-127, 128, (kv_heads, n, head_dim), dtype=np.int8)

    def raw() -> np.ndarray:
        return rng.integers(1 << 15, 1 << 18, (kv_heads, n))

    return LayerCache(int8(), nm.to_scale(raw()), int8(), raw())


def fill_cache(flow: Flow, machine: Session, golden, n: int) -> None:
    """Puts n synthetic earlier tokens into the machine's memory and the golden model alike."""
    c = flow.model.config.text
    for index in range(flow.layers):
        cache = synthetic_cache(c.kv_heads, c.head_dim, n, index)
        write_pieces(machine.memory, cache_pieces(flow.layout, "text", index, cache, flow.context))
        if golden is not None:
            golden.cache[index] = cache
    machine.kept = n


def simulate(
    flow: Flow,
    phase: str,
    *,
    tokens: int = 16,
    kv: int = 16,
    name: str = "cycle",
    check: bool = False,
    note: Note = lambda _: None,
) -> dict:
    """The JSON of `alula simulate`, and "trace" with the events. kv counts the new token (decode)."""
    if phase not in PHASES:
        raise UserError(f"unknown phase {phase!r}: choose one of {', '.join(PHASES)}")
    if phase == "vision" and flow.model.vision is None:
        raise UserError(f"model {flow.model.config.name} has no vision tower: choose prefill or decode")
    if phase != "vision":
        flow.require_tokens(tokens if phase == "prefill" else kv)
    if min(tokens, kv) < 1:
        raise UserError(f"--tokens {tokens} and --kv {kv} must be at least 1")
    began = time.monotonic()
    executors = {"functional": ("functional",), "cycle": ("functional", "cycle"), "rtl": ("functional", "cycle", "rtl")}
    cross = CrossBackend(executors[name] if check else (name,), note)
    outcome = _run(flow, cross, phase, tokens, kv, check)
    result = cross.results[name]
    assert cross.invocation is not None
    seen, cached = (tokens, 0) if phase == "prefill" else (1, kv)
    workload = Workload(
        flow.model.config.name, phase, seen, cached, flow.layers, _macs(flow, phase, tokens, kv), weight_bytes(flow)
    )
    comparison = Comparison()
    if outcome is not None:
        comparison = Comparison(outcome.bit_exact, outcome.cycle_exact, outcome.compared_bytes)
    report = metrics(name, flow.config, workload, cross.invocation, result, cross.wall_seconds[name], comparison)
    if phase == "vision":
        vision = {"tokens": flow.model.config.n_visual_tokens, "layers": flow.model.config.num_executed_vision_layers}
        report |= vision | {"kv": 0, "tokens_per_second": None}
    return report | _memory_traffic(result) | {
        "wall_seconds": time.monotonic() - began, "simulator_seconds": cross.wall_seconds[name],
        "peak_memory_bytes": peak_memory_bytes(), "counters": result.counters,
        "first_difference": outcome.first_difference if outcome else None, "trace": result.trace,
    }  # fmt: skip


def _run(flow: Flow, cross: CrossBackend, phase: str, tokens: int, kv: int, check: bool) -> Outcome | None:
    """Runs the phase; with `check` the outcome against the golden model."""
    machine = flow.machine(cross)
    if phase == "vision":
        patches = synthetic_patches(flow)
        if check:
            return check_vision(flow, machine, patches)[0]
        machine.encode_image(patches)
        return None
    golden = flow.golden() if check else None
    ids = synthetic_ids(flow, tokens if phase == "prefill" else 1)
    if phase == "decode":
        fill_cache(flow, machine, golden, kv - 1)
    if golden is not None:
        return check_text(flow, machine, golden, phase, ids)[0]
    machine.prefill(machine.prompt_rows(ids, flow.model.config.image_token_index))
    return None


def _macs(flow: Flow, phase: str, tokens: int, kv: int) -> int:
    if phase == "vision":
        return vision_macs(flow.layout)
    return text_macs(
        flow.layout, tokens if phase == "prefill" else 1, 0 if phase == "prefill" else kv - 1, flow.layers, flow.head
    )


def weight_bytes(flow: Flow) -> int:
    """Bytes of weight streams in all channels."""
    sections = flow.layout.channel.sections
    return sum(s.beats for name, s in sections.items() if not name.endswith("cache")) * BEAT_BYTES * flow.config.units


def _memory_traffic(result: Result) -> dict:
    """Bytes by memory: the channels are the HBM, aux holds programs, tables, rows and results."""
    c = result.counters
    return {
        "hbm_bytes_read": c.get("read_beats_channels", 0) * BEAT_BYTES,
        "hbm_bytes_written": c.get("write_bytes_channels", 0) + c.get("write_bytes_aux", 0),
        "hbm_bytes_written_kv": c.get("write_bytes_channels", 0),
        "aux_bytes_read": c.get("read_beats_aux", 0) * BEAT_BYTES, "aux_bytes_written": c.get("write_bytes_aux", 0),
    }  # fmt: skip
