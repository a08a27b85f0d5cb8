"""Images without weights take exactly as many cycles as full ones."""

import numpy as np
import pytest

from alula.session import open_flow
from alula.simulation import simulate
from compiler import stream
from hw.spec.config import BEAT_BYTES
from hw.spec.errors import InternalError
from ref_model.compress import Compression, MixedPlan, UniformPlan
from sim import weight_stream

COMPRESSED = [("8", "dense"), ("3", "dense"), ("3", "8:16"), ("mixed", "mixed"), ("3.5", "dense")]


@pytest.mark.parametrize("bits, sparsity", COMPRESSED)
def test_cycles_and_counters_equal_the_full_image(bits, sparsity):
    compression = Compression.parse(bits, sparsity, "plain")
    full, bare = (open_flow("llava-tiny", "tiny", compression=compression, timing_only=t) for t in (False, True))
    for phase, n in (("prefill", 1), ("prefill", 37), ("decode", 33), ("vision", 1)):
        want, found = (simulate(flow, phase, tokens=n, kv=n) for flow in (full, bare))
        for key in ("cycles", "counters", "trace", "weight_bytes", "program_bytes", "macs_sparse"):
            assert found[key] == want[key], (phase, n, key)


@pytest.mark.parametrize("units, steps", [(1, None), (2, None), (4, 5)])
@pytest.mark.parametrize("plan", [None, UniformPlan(3, 8), UniformPlan(2, 1), MixedPlan(5)], ids=str)
def test_headers_give_the_plans_of_the_encoded_stream(plan, units, steps):
    shape = (80, 304)
    bits, nonzeros = (None, None) if plan is None else plan.blocks("language_model.layers.0.x", *shape)
    if plan is None:
        whole = stream.encode(np.ones(shape, np.int8), None, units, steps).reshape(units, -1, BEAT_BYTES)
        n_beats = stream.dense_beats(shape, units, steps)
        np.testing.assert_array_equal(
            whole[:, stream.headers(shape, None, None, units, steps)[0][0]],
            [beats for _, beats in stream.headers(shape, None, None, units, steps)],
        )
    else:
        n_beats = stream.beats(shape, bits, nonzeros, units, steps)
    for unit, (where, beats) in enumerate(stream.headers(shape, bits, nonzeros, units, steps)):
        found, runs = weight_stream.walk(beats, where, n_beats)
        assert len(where) == len(beats) and found.ends[-1] < n_beats and len(runs)
        if plan is None:
            want, _ = weight_stream.walk(whole[unit])
            np.testing.assert_array_equal(found.ends, want.ends)
            np.testing.assert_array_equal(found.info, want.info)


def test_streams_that_are_alike_share_their_headers():
    dense = stream.headers((96, 256), None, None, 2)
    assert dense[0] is dense[1]
    flow = open_flow("llava-tiny", "tiny", timing_only=True)
    held = {id(region.headers) for port in flow.image.ports for region in port.regions if region.headers}
    shapes = {(op.n_in, op.n_out) for op in _linears(flow)}
    assert len(held) <= len(shapes)


def _linears(flow):
    from compiler import ir

    model = flow.layout.model
    return [
        *ir.linears(model.text.layer),
        *ir.linears(model.vision.layer),
        *ir.linears(model.vision.stem),
        *ir.linears(model.vision.projector),
        model.text.head,
    ]


def test_values_are_refused():
    flow = open_flow("llava-tiny", "tiny", timing_only=True)
    with pytest.raises(InternalError, match="timing only"):
        flow.golden()
    with pytest.raises(InternalError, match="timing only"):
        simulate(flow, "prefill", tokens=3, name="functional")
