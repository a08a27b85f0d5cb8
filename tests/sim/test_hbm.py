"""The HBM model: its bandwidths against public figures, its twins against each other, the simulator against the RTL."""

import ctypes
import random
import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from benchmarks.hbm import BEATS, FIGURES, Channel
from hw.spec import hbm
from hw.spec.config import CONFIGS, ConfigError
from hw.spec.isa import Error
from hw.spec.memory import MemoryModel
from sim import cycle_streams
from sim.cycle import CycleBackend
from sim.hbm import alike, commit, new_channel, place, serve
from sim.rtl.backend import RtlBackend
from sim.trace import differences
from tests.sim.test_cycle import random_steps, run_of

TINY = CONFIGS["tiny"]
CLOCKS_MHZ = (225, 300, 450, 100, 187.5, 50)
"""Kernel clocks: 2, 1.5, 1, 4.5, 2.4 and 9 slots of the memory a cycle."""


def slots_a_cycle(clock_mhz):
    return Fraction(hbm.SLOT_HZ, int(clock_mhz * 10**6))


@pytest.mark.parametrize("pattern", FIGURES)
def test_bandwidth_is_the_public_figure(pattern):
    least, largest, tolerance, measure = FIGURES[pattern]
    share = measure()
    print(f"\n{pattern}: {share:.3f} of the peak; public {least} to {largest}, tolerance {tolerance:.0%}")
    assert least * (1 - tolerance) <= share <= largest * (1 + tolerance)


def test_a_write_among_reads_turns_the_bus_twice():
    """12 DRAM clocks from read to write, 2 for the write's words, 13 to 16 back (public: 13 and 15; whole slots)."""

    def clocks(n_writes):
        reads = [(beat, 0, 0) for beat in range(400)]  # ahead enough that rows open in time; no refresh yet
        writes = [(200 + hbm.WRITE_EPOCH // 2 * i, (1 << 20) + i, 3) for i in range(n_writes)]
        return 4 * Channel(reads, writes).told()[-1]

    assert 2 * (12 + 2 + 13) <= clocks(3) - clocks(1) <= 2 * (12 + 2 + 16)  # the first one opens the row


def test_idle_latencies():
    """18 ns for a row hit and 48 ns for a conflict in the memory, within a slot or two; 90 ns more on the way."""
    slot_ns = 1000 / 450
    h = new_channel(Fraction(2))
    columns = []
    for row, ready in ((0, 0), (0, 100), (1, 200)):
        found = place(h, 0, row, ready, ready, False)
        commit(h, 0, row, *found, False)
        columns.append(found[0] + hbm.READ_DONE - ready)
    assert columns[1] * slot_ns == pytest.approx(18, abs=slot_ns)
    assert columns[2] * slot_ns == pytest.approx(48, abs=slot_ns)
    assert (hbm.REQUEST + hbm.RETURN) * slot_ns == pytest.approx(90, abs=2 * slot_ns)


def test_refresh_is_where_it_is_said():
    """An empty channel that is read every 10 cycles: beats stand still once in 3.9 us, counted from cycle 0."""
    asked = np.arange(0, 9000, 10)
    took = np.array(Channel([(i, t, 0) for i, t in enumerate(asked)]).told()) - asked
    late = asked[np.flatnonzero(took > 60)]
    starts = late[np.flatnonzero(np.diff(late, prepend=-1000) > 100)]
    expected = np.arange(1, 11) * hbm.REFRESH_INTERVAL / 2
    assert len(starts) == 10 and (abs(starts + hbm.REQUEST / 2 - expected) <= 10).all()
    assert took.max() <= (hbm.REFRESH_BLOCK + hbm.ROW_TO_COLUMN) / 2 + 40


def random_traffic(seed, n=1500):
    """Reads and writes of every kind of locality, idle times, bursts and hot banks."""
    rng = random.Random(seed)
    reads, writes, t = [], [], 0
    while len(reads) + len(writes) < n:
        t += rng.choice([1, 1, 1, 2, 20, rng.randrange(1, 3000)])
        near = rng.choice([0, 1 << 8, rng.randrange(1 << 22)])
        address = (near + rng.choice([0, rng.randrange(512), rng.randrange(8) << 8])) % (1 << 22)
        for i in range(rng.choice([1, 4, 16, 16])):
            if rng.random() < 0.5:
                reads.append((address + i, t, rng.choice([0, 0, rng.randrange(40)])))
            else:
                writes += [(t + j, address + j, rng.randrange(1, 4)) for j in range(rng.randrange(3))]
                t = max(t, writes[-1][0] if writes else 0)
    return reads, writes


@pytest.mark.parametrize("clock_mhz", CLOCKS_MHZ)
def test_the_kernel_clock_does_not_change_the_bandwidth(clock_mhz):
    """The same time for the same bytes, unless the kernel's port (a beat a cycle) is what takes longer."""
    cycles = Channel([(beat, 0, 0) for beat in range(BEATS)], slots_a_cycle=slots_a_cycle(clock_mhz)).told()[-1]
    at_225 = Channel([(beat, 0, 0) for beat in range(BEATS)]).told()[-1]
    by_port = BEATS / clock_mhz
    assert cycles / clock_mhz == pytest.approx(max(at_225 / 225, by_port), rel=2e-3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("clock_mhz", CLOCKS_MHZ)
def test_python_and_numba_are_the_same(seed, clock_mhz):
    reads, writes = random_traffic(seed, 600)
    python, compiled = (Channel(reads, writes, way, slots_a_cycle(clock_mhz)) for way in (hbm.serve, serve))
    assert python.told() == compiled.told()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("clock_mhz", CLOCKS_MHZ)
def test_what_is_known_changes_nothing(seed, clock_mhz):
    """Told as the cycles go by, beats come when they came; none is told too late."""
    reads, writes = random_traffic(seed)
    ratio = slots_a_cycle(clock_mhz)
    channel, told = Channel(reads, writes, slots_a_cycle=ratio), 0
    all_at_once = Channel(reads, writes, slots_a_cycle=ratio).told()
    accepted = np.array([t for _, t, _ in reads])
    for now in range(max(all_at_once) + hbm.WRITE_EPOCH):
        beats = channel.told(now, int(np.searchsorted(accepted, now, "right")))
        assert beats[told:] == all_at_once[told : len(beats)]
        assert all(beat > now + 1 for beat in beats[told:])
        told = len(beats)
    assert told == len(reads)


def cut(seed, rng, ratio):
    """Two channels somewhat behind a write, of which one missed the last writes: (both, the slot from which on anything
    may begin), or None where those that it got are not drained."""
    reads, writes = random_traffic(seed, 400)
    now = rng.choice(writes)[0] + rng.choice([70, 300, 1200])
    accepted = np.array([t for _, t, _ in reads])
    early, asked = sum(t < now for t, _, _ in writes), int(np.searchsorted(accepted, now))
    missed = rng.randint(1, min(early, rng.choice([1, 3, 100])))
    a, b = (Channel(reads, writes, slots_a_cycle=ratio) for _ in "ab")
    for channel, got in ((a, early), (b, early - missed)):
        channel.h[hbm.TAIL] = got
        channel.told(now, asked)
    if b.h[hbm.HEAD] != early - missed:
        return None
    b.h[hbm.HEAD] = b.h[hbm.TAIL] = early
    first = int(accepted[b.h[hbm.SERVED]]) if b.h[hbm.SERVED] < asked else now
    return (a, b), min(hbm.slot_of(a.h, now), hbm.slot_of(a.h, first) + hbm.REQUEST)


@pytest.mark.parametrize("clock_mhz", [225, 300, 187.5])
def test_channels_that_are_alike_do_the_same(clock_mhz):
    """Whatever comes later. Some that are not do so too, but not all."""
    rng, outcomes = random.Random(0), {True: [0, 0], False: [0, 0]}  # [differ, the same]
    for i in range(1500):
        found = cut(i % 30, rng, slots_a_cycle(clock_mhz))
        if found is None:
            continue
        (a, b), start = found
        said, served = alike(a.h, b.h, start), int(b.h[hbm.SERVED])
        if i % 20 == 0:
            assert said == hbm.alike(a.h.tolist(), b.h.tolist(), start)
        for channel in (a, b):
            channel.h[hbm.TAIL] = channel.writes_given
        outcomes[said][a.told()[served:] == b.told()[served:]] += 1
    assert outcomes[True][False] == 0
    assert min(outcomes[True][True], outcomes[False][False]) > 50, outcomes


HARNESS = """
#include "hbm.h"
// Cycle by cycle, as the test bench does; a beat that is told too late is not told at all.
extern "C" void run(const int64_t* p, int64_t n, const int64_t* reads, int64_t m, const int64_t* writes, int64_t* out) {
    Hbm hbm;
    std::copy(p, p + HBM_PARAMETERS, reinterpret_cast<int64_t*>(&hbm));
    PseudoChannel channel(hbm);
    int64_t i = 0, j = 0, k = 0;
    for (int64_t t = 0; k < n; t++) {
        for (; j < m && writes[3 * j] == t; j++) channel.writes.push_back({t, writes[3 * j + 1], writes[3 * j + 2]});
        for (; i < n && reads[3 * i + 1] == t; i++) channel.asked.push_back({reads[3 * i], t, reads[3 * i + 2]});
        channel.serve(t);
        for (; !channel.arrivals.empty(); channel.arrivals.pop_front())
            out[k++] = channel.arrivals.front() > t ? channel.arrivals.front() : -1;
    }
}
extern "C" int64_t parameters() { return HBM_PARAMETERS; }
"""


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hbm")
    (folder / "harness.cpp").write_text(HARNESS)
    headers = Path(__file__).parents[2] / "sim" / "rtl" / "native"
    command = ["g++", "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{headers}"]
    subprocess.run([*command, "-o", "harness.so", "harness.cpp"], cwd=folder, check=True)
    return ctypes.CDLL(folder / "harness.so")


@pytest.mark.parametrize("seed", range(30))
def test_the_c_twin_is_the_same(native, seed):
    reads, writes = random_traffic(seed)
    ratio = slots_a_cycle(CLOCKS_MHZ[seed % len(CLOCKS_MHZ)])
    assert native.parameters() == len(hbm.parameters(ratio))
    arrays = [np.array(x, np.int64) for x in (hbm.parameters(ratio), reads, writes, [0] * len(reads))]
    parameters, r, w, out = (a.ctypes.data_as(ctypes.c_void_p) for a in arrays)
    native.run(parameters, ctypes.c_int64(len(reads)), r, ctypes.c_int64(len(writes)), w, out)
    assert arrays[3].tolist() == Channel(reads, writes, slots_a_cycle=ratio).told()


def test_which_memory_a_configuration_has():
    """It is a field, and what runs without a model of its own is timed with it."""
    kinds = {name: MemoryModel.of(config).kind for name, config in CONFIGS.items()}
    assert kinds == {"tiny": "fixed", "small": "fixed", "u280": "hbm", "u50": "hbm", "u55c": "hbm", "v80": "hbm"}
    memory, call = random_run(1, TINY)
    with_hbm = replace(TINY, memory=replace(TINY.memory, kind="hbm"))
    assert CycleBackend().run(with_hbm, memory.fork(), call) == CycleBackend(MemoryModel.of(TINY, "hbm")).run(
        TINY, memory.fork(), call
    )
    assert MemoryModel.of(TINY, "hbm", 5, 3) == MemoryModel(20, 10, 5, 3, hbm=True)
    for wrong in ({"kind": "ddr"}, {"jitter": -1}):
        with pytest.raises(ConfigError):
            MemoryModel.of(TINY, **wrong)


def test_the_kernel_clock_changes_latencies_in_cycles():
    """A fixed latency is as long as before in time, and a port is never faster than its memory."""
    faster = replace(TINY, clock_hz=300_000_000)
    assert (TINY.read_latency, TINY.write_latency) == (20, 10)
    assert (faster.read_latency, faster.write_latency) == (27, 14)
    assert MemoryModel.of(replace(CONFIGS["u280"], clock_hz=300_000_000)).slots_a_cycle == Fraction(3, 2)
    for wrong, what in (
        (450_000_001, "whole number of kHz"),
        (10**6, "outside 50,000,000.."),
        (500_000_000, "more beats"),
    ):
        with pytest.raises(ConfigError, match=what):
            replace(TINY, clock_hz=wrong)
    for wrong in ({"kind": "ddr"}, {"read_latency": 0}):
        with pytest.raises(ConfigError):
            replace(TINY, memory=replace(TINY.memory, **wrong))


def random_run(seed, config, n=40, mixed=True):
    """A random program with K and V stores among the reads: (memory, call)."""
    rng = random.Random(seed)
    steps, streams = random_steps(rng, n, config.units, mixed)
    for _, fields, *_ in steps:
        if "n_tok" in fields:
            fields |= {
                "pos": rng.randrange(100),
                "n_head": rng.randint(1, 8),
                "n_gran": rng.randint(1, 8),
                "stride_gran": 4,
                "stride_head": 256,
                "stride_slot": 32,
            }
    return run_of(config, steps, streams)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("mixed", [False, True])
def test_rows_of_their_own_change_nothing(seed, mixed, monkeypatch):
    """Channels that share a row but for the time in which a write makes a difference run as if each had its own."""
    config = replace(TINY, units=4)
    memory, call = random_run(seed, config, 100, mixed)
    model, numbers = MemoryModel(20, 10, hbm=True), []
    choose = cycle_streams.Streams._choose

    def noted(self, rows):
        numbers.append(len(rows) - len(self.channels))
        choose(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(cycle_streams.Streams, "_choose", noted)
        shared = CycleBackend(model).run(config, memory.fork(), call)
    assert shared.status == Error.NONE
    assert max(numbers) > 0 and (mixed or min(numbers) < 0)
    began = cycle_streams.Streams.__post_init__

    def apart(self):
        began(self)
        self.share_from = cycle_streams.NEVER
        self._own_rows(np.arange(config.units))

    monkeypatch.setattr(cycle_streams.Streams, "__post_init__", apart)
    assert CycleBackend(model).run(config, memory, call) == shared


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("jitter", [0, 37])
@pytest.mark.parametrize("clock_mhz", [225, 300])
def test_equals_the_rtl(seed, jitter, clock_mhz):
    memory, call = random_run(seed, TINY)
    model = MemoryModel.of(replace(TINY, clock_hz=clock_mhz * 10**6), "hbm", jitter, seed)
    expected = CycleBackend(model).run(TINY, memory.fork(), call)
    result = RtlBackend(model=model).run(TINY, memory, call)
    assert result.status == expected.status == Error.NONE
    assert not differences(result.trace, expected.trace)
    assert result.counters == expected.counters
