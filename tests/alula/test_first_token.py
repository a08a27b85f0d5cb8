"""`simulate --phase ttft`: parts that are whole runs, counted as each is alone."""

import pytest

from alula.first_token import first_token
from alula.runtime.work import projector_macs, text_macs, tower_macs
from alula.session import open_flow
from alula.simulation import simulate
from alula.verification import synthetic_patches
from hw.spec.errors import UserError
from hw.spec.memory import MemoryModel
from ref_model.compress import Compression
from sim.registry import backend

TOKENS, KEPT = 5, 7


def flow_of(keep: int | None = KEPT, **options):
    flow = open_flow("llava-tiny", "tiny", timing_only=True, **options)
    flow.keep(keep, "rank")
    return flow


@pytest.fixture(scope="module")
def report():
    flow = flow_of(compression=Compression.parse("8", "8:16", "plain"))
    return flow, first_token(flow, TOKENS, MemoryModel.of(flow.config))


def by_name(report: dict) -> dict:
    return {part["part"]: part for part in report["parts"]}


def test_parts_add_up_to_the_two_runs(report):
    flow, found = report
    machine = flow.machine(backend("cycle", with_data=False, model=MemoryModel.of(flow.config)))
    machine.encode_image(synthetic_patches(flow), keep=KEPT)
    alone = simulate(flow, "prefill", tokens=TOKENS + KEPT)["cycles"]
    parts = by_name(found)
    vision = sum(parts[name]["cycles"] for name in ("vision tower", "selection", "projector"))
    assert vision == machine.results[-1][1].cycles
    assert parts["language model"]["cycles"] == alone
    assert found["cycles"] == vision + alone
    assert found["ttft_seconds"] == found["cycles"] / flow.config.clock_hz


def test_products_are_those_of_the_formulas(report):
    flow, found = report
    parts, n = by_name(found), TOKENS + KEPT
    assert parts["vision tower"]["macs"] == parts["vision tower"]["macs_sparse"] == tower_macs(flow.layout)
    assert parts["projector"]["macs"] == parts["projector"]["macs_sparse"] == projector_macs(flow.layout, KEPT)
    assert parts["language model"]["macs"] == text_macs(flow.layout, n)
    assert parts["language model"]["macs_sparse"] == text_macs(flow.layout, n, sparse=True) < text_macs(flow.layout, n)
    for part in found["parts"]:
        assert part["mac_utilisation"] == part["macs"] / (part["cycles"] * flow.config.macs_per_cycle)
        assert part["array_utilisation"] <= min(part["mac_utilisation"], 1)


def test_some_layers_have_no_time_to_the_first_token():
    flow = flow_of(layers=1)
    found = first_token(flow, TOKENS, MemoryModel.of(flow.config))
    assert found["ttft_seconds"] is None and found["seconds_at_clock"] > 0
    assert (found["layers"], found["layers_of_model"]) == (1, 2)


def test_fewer_visual_tokens_are_faster_behind_the_tower():
    parts = {}
    for keep in (None, 4, KEPT):
        flow = flow_of(keep)
        parts[keep] = by_name(first_token(flow, TOKENS, MemoryModel.of(flow.config)))
    assert parts[None]["selection"]["cycles"] == 0 < parts[4]["selection"]["cycles"]
    for name in ("projector", "language model"):
        assert parts[4][name]["cycles"] < parts[KEPT][name]["cycles"] < parts[None][name]["cycles"]


def test_events_of_the_second_run_lie_behind_the_first(report):
    _, found = report
    language = by_name(found)["language model"]["cycles"]
    trace, end = found["trace"], found["cycles"]
    assert max(event.end for event in trace) <= end
    assert any(event.start > end - language for event in trace)
    assert any(event.end < end - language for event in trace)


def test_refusals():
    memory = MemoryModel.of(flow_of().config)
    with pytest.raises(UserError, match="no vision tower"):
        first_token(open_flow("smollm2-135m", "small", layers=1, timing_only=True), TOKENS, memory)
    with pytest.raises(UserError, match="at least 1"):
        first_token(flow_of(), 0, memory)
    with pytest.raises(UserError, match="266 tokens are beyond the context of 256"):
        first_token(flow_of(None), 250, memory)
