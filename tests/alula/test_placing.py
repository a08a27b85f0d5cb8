"""Which layer an event works for: told where it is sure, and left out where it is not."""

import json

import pytest

from alula.cli import main
from alula.placing import Places, layers_by_entry
from alula.session import open_flow
from alula.simulation import simulate
from compiler.kernels import vision
from hw.spec.isa import Unit
from sim.trace import UNIT_NAMES

OPERATORS = {"prefill": "self_attn.q_proj", "decode": "self_attn.q_proj", "vision": "self_attn.q_proj"}


@pytest.fixture(scope="module")
def flow():
    return open_flow("llava-tiny", "tiny", timing_only=True)


@pytest.mark.parametrize(
    ("phase", "options", "chunks"),
    [("prefill", {"tokens": 40}, 3), ("decode", {"kv": 20}, 1), ("vision", {}, 1), ("prefill", {"tokens": 16}, 1)],
)
def test_every_layer_is_told(flow, phase, options, chunks):
    """Each layer's matrix instructions of an operator are as many as another's, and come behind each other."""
    trace = simulate(flow, phase, **options)["trace"]
    places = Places(flow.compiled.program, trace, layers_by_entry(flow.layout, flow.layers))
    mine = [e for e in sorted(trace) if e.unit == Unit.MX and places[e].operator == OPERATORS[phase]]
    layers = [places[event].layer for event in mine]
    assert set(layers) == {0, 1} and layers.count(0) == layers.count(1)
    per_chunk = len(layers) // chunks
    for first in range(0, len(layers), per_chunk):
        part = layers[first : first + per_chunk]
        assert part == sorted(part)
    inside = [e for e in trace if any(a <= e.tag < b for a, b in flow.compiled.program.layer_loops)]
    assert all(places[event].layer is not None for event in inside)


def test_reads_ahead_belong_to_the_layer_that_uses_them(flow):
    trace = simulate(flow, "decode", kv=20)["trace"]
    places = Places(flow.compiled.program, trace, layers_by_entry(flow.layout, flow.layers))
    names = [places[e].name for e in sorted(trace) if e.unit == Unit.RD and places[e].operator == "self_attn.k_proj"]
    assert names == ["self_attn.k_proj, layer 0", "self_attn.k_proj, layer 1"]


def test_what_cannot_be_told_is_left_out(flow):
    """Dropped tokens make segments of layers, and a number of passes that no number of layers explains is none."""
    trace = simulate(flow, "decode", kv=20)["trace"]
    for layers in (layers_by_entry(flow.layout, flow.layers, reduced=True), {"lm": 3}):
        places = Places(flow.compiled.program, trace, layers)
        assert {places[event].layer for event in trace} == {None}
        assert {places[event].layer_pass for event in trace} == {None, 0, 1}
    assert Places(flow.compiled.program, [], {}).layer_window() is None


def test_a_unit_without_a_sure_instruction_is_told_by_its_returns(monkeypatch):
    """Layers tile by tile: the matrix units' instructions are all in loops over tiles, ST's in one such loop."""
    monkeypatch.setattr(vision, "plan", lambda layout: None)
    flow = open_flow("llava-tiny", "tiny", timing_only=True)
    trace = simulate(flow, "vision")["trace"]
    places = Places(flow.compiled.program, trace, layers_by_entry(flow.layout, flow.layers))
    inside = [event for event in trace if any(a <= event.tag < b for a, b in flow.compiled.program.layer_loops)]
    for unit in (Unit.RD, Unit.MX, Unit.VU):
        layers = [places[event].layer for event in sorted(inside) if event.unit == unit]
        assert layers == sorted(layers) and layers.count(0) == layers.count(1) > 0
    assert {places[event].layer for event in inside if event.unit == Unit.ST} == {None}


def test_a_layer_is_a_part_of_the_run(flow):
    for phase in ("prefill", "decode", "vision"):
        result = simulate(flow, phase, tokens=16, kv=20)
        places = Places(flow.compiled.program, result["trace"], layers_by_entry(flow.layout, flow.layers))
        first, end, layer = places.layer_window()
        assert layer == 0 and 0 <= first < end < 0.7 * result["cycles"]


def test_a_trace_has_names(tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["simulate", "--phase", "decode", "--trace", str(tmp_path / "trace.json")])
    assert not ended.value.code
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    process, *threads = (event["args"]["name"] for event in events if event["ph"] == "M")
    assert process == "llava-tiny on tiny, decode step at 16 keys"
    assert threads == list(UNIT_NAMES.values())
    spans = [event for event in events if event["ph"] == "X"]
    assert {"self_attn.q_proj, layer 1", "mlp.gate_proj + up_proj, layer 0"} <= {event["name"] for event in spans}
    assert not [event for event in spans if "@" in event["name"]]
    assert all({"pc", "first_cycle", "end_cycle", "operator", "occurrence"} <= set(e["args"]) for e in spans)
