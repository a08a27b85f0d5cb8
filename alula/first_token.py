"""`alula simulate --phase ttft`: from the patches of an image to the first token, part by part, timed without data."""

import time
from collections.abc import Callable
from dataclasses import replace

from alula.output import peak_memory_bytes
from alula.runtime.work import projector_macs, text_macs, tower_macs
from alula.session import Flow
from alula.verification import synthetic_ids, synthetic_patches
from hw.spec.errors import UserError
from hw.spec.memory import MemoryModel
from hw.spec.run import Event, Result
from sim.registry import backend

Note = Callable[[str], None]


def first_token(flow: Flow, tokens: int, memory: MemoryModel, note: Note = lambda _: None) -> dict:
    """The JSON of the phase, and "trace". tokens: of text; the visual ones are as many as `Flow.keep` left."""
    began = time.monotonic()
    _check(flow, tokens)
    machine = flow.machine(backend("cycle", with_data=False, model=memory))
    note("vision tower")
    machine.encode_image(synthetic_patches(flow), keep=flow.keep_visual, strategy=flow.strategy)
    note("language model")
    image = flow.model.config.image_token_index
    assert image is not None
    ids = [image] * flow.visual_tokens + synthetic_ids(flow, tokens)
    machine.prefill(machine.prompt_rows(ids, image))
    (_, vision), (_, text) = machine.results
    assert vision.cycles is not None and text.cycles is not None
    parts = [_part(flow, *part) for part in (*_vision_parts(flow, vision), _text_part(flow, text, len(ids)))]
    macs, macs_sparse = (sum(part[key] for part in parts) for key in ("macs", "macs_sparse"))
    report = _part(flow, "total", vision.cycles + text.cycles, macs, macs_sparse)
    whole = flow.head and flow.layers == flow.model.config.text.layers
    return {
        "backend": "cycle", "config": flow.config.name, "model": flow.model.config.name, "phase": "ttft",
        "tokens": tokens, "image_tokens": flow.visual_tokens, "layers": flow.layers, "context": flow.context,
        "layers_of_model": flow.model.config.text.layers, "whole_model": whole,
        "vision_layers": flow.layout.tower.n_layers, "clock_hz": flow.config.clock_hz,
        **{key: value for key, value in report.items() if key != "part"}, 
        "ttft_seconds": report["seconds_at_clock"] if whole else None,
        "parts": parts, **flow.compression_report, **memory.report(), "bit_exact": None, "cycle_exact": None,
        "wall_seconds": time.monotonic() - began, "peak_memory_bytes": peak_memory_bytes(),
        "first_difference": None, "trace": _joined(vision, text),
    }  # fmt: skip


def _check(flow: Flow, tokens: int) -> None:
    config = flow.model.config
    if config.vision is None:
        raise UserError(f"model {config.name} has no vision tower: choose prefill or decode")
    if config.pinpoints:
        raise UserError(f"model {config.name} cuts images into tiles, ttft is timed for an image of one tile")
    if tokens < 1:
        raise UserError(f"--tokens {tokens} must be at least 1")
    flow.require_tokens(tokens + flow.visual_tokens)


def _part(flow: Flow, name: str, cycles: int, macs: int, macs_sparse: int) -> dict:
    """macs_sparse: without the products of pruned weights; each with its share of what the array could do."""
    possible = cycles * flow.config.macs_per_cycle
    return {
        "part": name,
        "cycles": cycles,
        "seconds_at_clock": cycles / flow.config.clock_hz,
        "macs": macs,
        "macs_sparse": macs_sparse,
        "mac_utilisation": macs / possible if possible else None,
        "array_utilisation": macs_sparse / possible if possible else None,
    }


def _vision_parts(flow: Flow, result: Result) -> list[tuple[str, int, int, int]]:
    """Tower, selection and projector: each lasts until the first instruction of the next one starts."""
    starts = flow.compiled.program.entries["vision"]["parts"]
    assert result.cycles is not None
    bounds = [0, *(_first_start(result, pc) for pc in (starts["selection"], starts["projector"])), result.cycles]
    macs = {
        "vision tower": tower_macs(flow.layout),
        "selection": 0,
        "projector": projector_macs(flow.layout, flow.visual_tokens),
    }
    return [(name, end - start, n, n) for (name, n), start, end in zip(macs.items(), bounds, bounds[1:], strict=False)]


def _first_start(result: Result, pc: int) -> int:
    """When the first unit instruction at or behind `pc` starts."""
    return min(event.start for event in result.trace if event.tag >= pc)


def _text_part(flow: Flow, result: Result, n: int) -> tuple[str, int, int, int]:
    assert result.cycles is not None
    macs, sparse = (text_macs(flow.layout, n, 0, flow.layers, flow.head, sparse=sparse) for sparse in (False, True))
    return "language model", result.cycles, macs, sparse


def _joined(first: Result, second: Result) -> list[Event]:
    """Events of both runs, the second behind the first."""
    later = first.cycles or 0
    return first.trace + [replace(e, start=e.start + later, end=e.end + later) for e in second.trace]
