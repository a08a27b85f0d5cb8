"""`alula simulate`: one phase on the simulators, its metrics, and on request the golden model's verdict."""

import time
from collections.abc import Callable

from alula.cross import CrossBackend, Outcome
from alula.output import peak_memory_bytes
from alula.reduction import Asked
from alula.runtime.work import text_macs, vision_macs
from alula.session import Flow
from alula.useful import useful_bytes
from alula.verification import check_text, check_vision, fill_cache, synthetic_ids, synthetic_patches
from hw.spec.config import BEAT_BYTES
from hw.spec.errors import UserError
from hw.spec.memory import MemoryModel
from hw.spec.run import Result
from ref_model.mask import BlockMask
from ref_model.reduction import Reduction
from sim.report import Comparison, Workload, metrics

PHASES = ("prefill", "decode", "vision")
Note = Callable[[str], None]
READ = {
    "weights": "weights",
    "kv": "kv",
    "kv_scales": "kv_scales",
    "embedding": "embedding",
    "parameters": "parameters",
    "tables": "tables",
    "fetch": "fetch",
    "scalars": "scalars",
    "activations_read": "activations",
}
WRITTEN = {
    "activations_written": "activations",
    "results": "results",
    "kv_written": "kv",
    "kv_scales_written": "kv_scales",
    "lists_written": "lists",
}
"""Names in "traffic" and the counters (`hw.spec.csr`) they come from."""


def simulate(
    flow: Flow,
    phase: str,
    *,
    tokens: int = 16,
    kv: int = 16,
    name: str = "cycle",
    check: bool = False,
    note: Note = lambda _: None,
    mask: BlockMask | None = None,
    reduction: Asked | None = None,
    memory: MemoryModel | None = None,
) -> dict:
    """The JSON of `alula simulate`, and "trace" with the events. kv counts the new token (decode). memory None: the
    configuration's own."""
    memory = memory or MemoryModel.of(flow.config)
    if phase not in PHASES:
        raise UserError(f"unknown phase {phase!r}: choose one of {', '.join(PHASES)}")
    if phase == "vision" and flow.model.vision is None:
        raise UserError(f"model {flow.model.config.name} has no vision tower: choose prefill or decode")
    if phase != "vision":
        flow.require_tokens(tokens if phase == "prefill" else kv)
    if min(tokens, kv) < 1:
        raise UserError(f"--tokens {tokens} and --kv {kv} must be at least 1")
    if mask is not None and phase != "prefill":
        raise UserError(f"an attention mask is for prefill, {phase} attends to everything: leave --attention-mask out")
    if reduction is not None and phase != "prefill":
        raise UserError(f"visual tokens are dropped in prefill, not in {phase}: leave the reduction out")
    reduced = None if reduction is None else reduction.synthetic(flow, tokens)
    began = time.monotonic()
    executors = {"functional": ("functional",), "cycle": ("functional", "cycle"), "rtl": ("functional", "cycle", "rtl")}
    cross = CrossBackend(executors[name] if check else (name,), note, not flow.timing_only, memory)
    outcome = _run(flow, cross, phase, tokens, kv, check, mask, reduced)
    result = cross.results[name]
    assert cross.invocation is not None
    seen, cached = (tokens, 0) if phase == "prefill" else (1, kv)
    macs, sparse = (_macs(flow, phase, tokens, kv, mask, reduced, sparse=which) for which in (False, True))
    vision = phase == "vision"
    executed = flow.model.config.num_executed_vision_layers if vision else flow.layers
    workload = Workload(
        flow.model.config.name,
        phase,
        seen,
        cached,
        executed,
        macs,
        flow.layout.weight_bytes,
        useful_bytes(flow, phase, seen, cached, result.counters, mask is None and reduction is None),
        sparse,
        executed if vision else flow.model.config.text.layers,
        vision or flow.head,
    )
    comparison = Comparison()
    if outcome is not None:
        comparison = Comparison(outcome.bit_exact, outcome.cycle_exact, outcome.compared_bytes)
    report = metrics(
        name, flow.config, workload, cross.invocation, result, cross.wall_seconds[name], comparison, memory
    )
    if vision:
        report |= {"tokens": flow.model.config.n_visual_tokens, "kv": 0, "tokens_per_second": None}
    return (
        report
        | flow.compression_report
        | _traffic(result)
        | memory.report()
        | {
            "context": flow.context,
            "reduction": None if reduced is None else reduced.report(),
            "wall_seconds": time.monotonic() - began,
            "simulator_seconds": cross.wall_seconds[name],
            "peak_memory_bytes": peak_memory_bytes(),
            "counters": result.counters,
            "first_difference": outcome.first_difference if outcome else None,
            "trace": result.trace,
        }
    )


def _run(
    flow: Flow,
    cross: CrossBackend,
    phase: str,
    tokens: int,
    kv: int,
    check: bool,
    mask: BlockMask | None,
    reduction: Reduction | None,
) -> Outcome | None:
    """Runs the phase; with `check` the outcome against the golden model."""
    machine = flow.machine(cross)
    if phase == "vision":
        patches = synthetic_patches(flow)
        if check:
            return check_vision(flow, machine, patches)[0]
        machine.encode_image(patches, keep=flow.keep_visual, strategy=flow.strategy)
        return None
    golden = flow.golden() if check else None
    ids = synthetic_ids(flow, tokens if phase == "prefill" else 1)
    if phase == "decode":
        fill_cache(flow, machine, golden, kv - 1)
    if golden is not None:
        return check_text(flow, machine, golden, phase, ids, mask=mask, reduction=reduction)[0]
    rows = machine.prompt_rows(ids, flow.model.config.image_token_index)
    machine.prefill(rows, mask=mask, reduction=reduction)
    return None


def _macs(
    flow: Flow,
    phase: str,
    tokens: int,
    kv: int,
    mask: BlockMask | None,
    reduction: Reduction | None,
    sparse: bool = False,
) -> int:
    if phase == "vision":
        return vision_macs(flow.layout, sparse=sparse, features=flow.visual_tokens)
    seen, start = (tokens, 0) if phase == "prefill" else (1, kv - 1)
    return text_macs(flow.layout, seen, start, flow.layers, flow.head, mask, sparse, reduction)


def _traffic(result: Result) -> dict:
    """Bytes by purpose."""
    c = result.counters
    traffic = {name: c.get(f"read_beats_{counter}", 0) * BEAT_BYTES for name, counter in READ.items()}
    traffic |= {name: c.get(f"write_bytes_{counter}", 0) for name, counter in WRITTEN.items()}
    return {
        "activation_bytes": traffic["activations_read"] + traffic["activations_written"],
        "traffic": traffic,
    }
