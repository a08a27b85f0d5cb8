"""Sparse memories, traces and reports."""

import json

import numpy as np
import pytest

from hw.spec.config import CONFIGS
from hw.spec.errors import InternalError
from hw.spec.isa import Error, Unit
from hw.spec.run import Event, Invocation, Result
from sim import report, trace
from sim.memory_image import PAGE_BYTES, MemoryImage, OutOfRange

EVENTS = [Event(3, Unit.VU, 7, 20), Event(1, Unit.RD, 2, 9)]


def test_writes_lie_over_attached_arrays():
    image = MemoryImage(CONFIGS["u280"])
    weights = np.arange(3 * PAGE_BYTES, dtype=np.uint8)
    image.attach(2, 100, weights)
    assert np.shares_memory(image.read(2, 100, 50), weights)
    image.write(2, 100 + PAGE_BYTES, b"\xff\xfe")
    expected = weights.copy()
    expected[PAGE_BYTES : PAGE_BYTES + 2] = 255, 254
    np.testing.assert_array_equal(image.read(2, 100, weights.size), expected)
    assert weights[PAGE_BYTES] == 0
    assert [t[:2] for t in image.touched()] == [(2, PAGE_BYTES)]
    fork = image.fork()
    fork.write(2, 0, b"\1")
    assert image.read(2, 0, 1)[0] == 0 and next(iter(fork.touched()))[1] == 0


def test_limits_and_absent_data():
    image = MemoryImage(CONFIGS["tiny"])
    with pytest.raises(OutOfRange):
        image.read(0, CONFIGS["tiny"].channel_bytes - 1, 2)
    image.attach_absent(0, 0, 4096)
    with pytest.raises(InternalError, match="timing only"):
        image.read(0, 0, 64)
    with pytest.raises(InternalError, match="overlap"):
        image.attach(0, 4095, np.zeros(2, np.uint8))


def test_traces(tmp_path):
    (tmp_path / "c.json").write_text(trace.chrome(EVENTS, 1_000_000, process="a model"))
    found = json.loads((tmp_path / "c.json").read_text())["traceEvents"]
    spans = [e for e in found if e["ph"] == "X"]
    assert [(e["name"], e["ts"], e["dur"]) for e in spans] == [("rd@2", 1, 8), ("vu@7", 3, 17)]
    assert spans[0]["args"] == {"pc": 2, "first_cycle": 1, "end_cycle": 9}
    names = [e["args"]["name"] for e in found if e["ph"] == "M"]
    assert names[0] == "a model" and set(names[1:]) == set(trace.UNIT_NAMES.values())
    assert trace.table(EVENTS).row_count == 2
    assert not trace.differences(EVENTS, reversed(EVENTS)) and len(trace.differences(EVENTS, EVENTS[:1])) == 2


def test_metrics():
    result = Result(Error.NONE, 0, 0, 1000, {"read_beats_channels": 10, "instructions": 5})
    work = report.Workload("m", "decode", 1, 4, 2, 12800, 99, 512)
    values = report.metrics("cycle", CONFIGS["tiny"], work, Invocation(0, 3), result, 0.1)
    assert values["mac_utilisation"] == 12800 / 1000 / CONFIGS["tiny"].macs_per_cycle
    peak = 1000 * CONFIGS["tiny"].peak_bytes_per_cycle
    assert values["hbm_utilisation"] == 512 / peak and values["hbm_busy"] == 640 / peak
    assert values["hbm_bytes_read"] == 640 and values["ttft_seconds"] is None
    assert values["tokens_per_second"] == pytest.approx(CONFIGS["tiny"].clock_hz / 1000)
    assert values["array_utilisation"] == values["mac_utilisation"]


def test_bytes_are_named_by_their_memory():
    counters = {"read_beats_channels": 10, "read_beats_aux": 2, "write_bytes_channels": 5, "write_bytes_aux": 7}
    result = Result(Error.NONE, 0, 0, 1000, counters)
    work = report.Workload("m", "decode", 1, 4, 2, 12800, 99, 512)
    values = report.metrics("cycle", CONFIGS["tiny"], work, Invocation(0, 3), result, 0.1)
    assert (values["channel_bytes_read"], values["aux_bytes_read"], values["bytes_read"]) == (640, 128, 768)
    assert (values["channel_bytes_written"], values["aux_bytes_written"], values["bytes_written"]) == (5, 7, 12)
    assert (values["hbm_bytes_read"], values["hbm_bytes_written"]) == (640, 5)


@pytest.mark.parametrize("part", [{"layers_of_model": 3}, {"head": False}])
def test_a_part_of_a_model_has_no_rate(part):
    result = Result(Error.NONE, 0, 0, 1000, {})
    for phase in ("prefill", "decode"):
        work = report.Workload("m", phase, 1, 4, 2, 12800, 99, 512, **part)
        values = report.metrics("cycle", CONFIGS["tiny"], work, Invocation(0, 3), result, 0.1)
        assert values["tokens_per_second"] is None and values["ttft_seconds"] is None
        assert values["seconds_at_clock"] and not values["whole_model"]
