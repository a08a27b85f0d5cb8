"""The RTL test bench against its own definition: latencies to the cycle, jitter, faults, memories, trace, errors."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from amaranth.hdl import Module

from hw.spec.errors import InternalError, UserError
from hw.spec.memory import MemoryModel
from hw.verilog_writer import as_module, convert
from sim.rtl import toolchain
from sim.rtl.build import Design
from sim.rtl.run import DumpRange, Fault, MemoryImage, run
from sim.rtl.testbench import top_signals
from tests.conftest import needs_icarus
from tests.sim import copy_engine as dma

AUX = 1
SIZES_BYTES = (1 << 28, 1 << 34)
TARGET = 0x4_0000
TYPICAL = MemoryModel(40, 20)
SEED = 7


@pytest.fixture(params=["verilator", pytest.param("icarus", marks=needs_icarus)], autouse=True)
def simulator(request, monkeypatch) -> str:
    """Each test runs in both simulators."""
    monkeypatch.setenv("SIM", request.param)
    return request.param


in_verilator = pytest.mark.parametrize("simulator", ["verilator"], indirect=True)
"""For what the Verilog memories of other simulators do not have."""


@pytest.fixture(scope="module")
def design() -> Design:
    return Design(convert(dma.CopyEngine(2), "copy_engine"), "copy_engine", 2)


@dataclass
class Copy:
    """One run of the copy engine and what it wrote."""

    n_requests: int = 6
    n_beats: int = 8
    source: int = 0x2000
    gap: int = 0
    throttle: int = 0

    @property
    def n_total(self) -> int:
        return self.n_requests * self.n_beats

    def go(self, design: Design, memory: MemoryModel, **options):
        values = {
            dma.SOURCE: self.source,
            dma.N_REQUESTS: self.n_requests,
            dma.N_BEATS: self.n_beats,
            dma.TARGET: TARGET,
            dma.GAP: self.gap,
            dma.THROTTLE: self.throttle,
            dma.START: 1,
        }
        self.data = np.random.default_rng(SEED).integers(0, 256, (self.n_total, 64), dtype=np.uint8)
        in_range = max(0, min(self.n_total, (SIZES_BYTES[0] - self.source) // 64))
        image = [MemoryImage(0, self.source, self.data[:in_range])] if in_range else []
        # Noise where the engine writes: every byte that it leaves alone must still be there.
        image.append(MemoryImage(AUX, TARGET, bytes([0xA5]) * (128 * self.n_total)))
        result = run(
            design,
            sizes_bytes=SIZES_BYTES,
            image=image,
            csr_writes=list(values.items()),
            memory=memory,
            csr_reads=[dma.N_RESPONSES, dma.END_CYCLE, dma.WORST_RESPONSE],
            max_cycles=100_000,
            log_axi=True,
            dump_ranges=[DumpRange(AUX, TARGET, 128 * self.n_total)],
            **options,
        )
        written = np.frombuffer(result.dumps[0], np.uint8).reshape(self.n_total, 2, 64)
        self.copied, stamps = written[:, 0], written[:, 1]
        self.taken_cycles = stamps[:, dma.STAMP_CYCLE].copy().view("<u8")[:, 0].tolist()
        self.responses = stamps[:, dma.STAMP_RESPONSE].tolist()
        self.last = stamps[:, dma.STAMP_LAST].tolist()
        self.untouched = stamps[:, 63].tolist()
        return result


def expected_beats(requests: list[int], copy: Copy, memory: MemoryModel) -> list[int]:
    """The cycle in which each beat is taken, from the cycles of its requests: the model's definition, read aloud."""
    taken = []
    for j, t in enumerate(requests):
        for i in range(copy.n_beats):
            cycle = t + memory.latency(0, j) + i
            if taken:
                cycle = max(cycle, taken[-1] + 1)
            while cycle & copy.throttle:
                cycle += 1
            taken.append(cycle)
    return taken


TIMINGS = [
    (MemoryModel(1, 1), Copy()),
    (MemoryModel(40, 20), Copy()),
    (MemoryModel(40, 20), Copy(gap=30)),
    (MemoryModel(5, 3), Copy(throttle=0b10)),
    (MemoryModel(12, 7, jitter=50, seed=3), Copy(n_requests=40, n_beats=4, gap=2)),
    (MemoryModel(12, 1, jitter=9, seed=2**32 - 1), Copy(n_requests=30, n_beats=1, gap=5, throttle=0b100)),
    (MemoryModel(100, 60), Copy(n_requests=4, n_beats=64)),
]


@pytest.mark.parametrize(("memory", "copy"), TIMINGS)
def test_every_cycle_is_as_defined(design, memory, copy):
    result = copy.go(design, memory)
    reads = [event for event in result.events if event.unit == "rd"]
    writes = [event for event in result.events if event.unit == "st"]
    requests = [event.start_cycle for event in reads]

    assert np.diff(requests).tolist() == [copy.gap + 1] * (copy.n_requests - 1)
    assert copy.taken_cycles == expected_beats(requests, copy, memory)
    assert [event.done_cycle for event in reads] == copy.taken_cycles[copy.n_beats - 1 :: copy.n_beats]
    # One write burst takes two cycles, so no two responses ever compete for a cycle here.
    assert [event.done_cycle - event.start_cycle for event in writes] == [memory.write_latency] * copy.n_total
    assert [event.tag for event in reads] == list(range(copy.n_requests))
    assert [event.tag for event in writes] == list(range(copy.n_total))
    assert result.csr[:2] == [copy.n_total, writes[-1].done_cycle]
    assert result.cycles == writes[-1].done_cycle + 2  # the response register, then the bench's own


def test_data_strobes_and_counts(design):
    copy = Copy()
    result = copy.go(design, TYPICAL)
    np.testing.assert_array_equal(copy.copied, copy.data)
    assert copy.untouched == [0xA5] * copy.n_total
    assert copy.last == ([0] * (copy.n_beats - 1) + [1]) * copy.n_requests
    assert set(copy.responses) == {0} and result.csr[2] == 0
    source, aux = result.ports
    assert (source.n_reads, source.n_read_beats, source.n_writes) == (copy.n_requests, copy.n_total, 0)
    assert (aux.n_writes, aux.n_write_beats, aux.n_write_bytes) == (copy.n_total, 2 * copy.n_total, 127 * copy.n_total)


def test_bench_log_agrees_with_the_design(design):
    copy = Copy(gap=3)
    result = copy.go(design, MemoryModel(30, 10, jitter=20, seed=1))
    reads = [event for event in result.events if event.unit == "rd"]
    logged = [event for event in result.axi if event.kind == "read"]
    assert [(e.accepted_cycle, e.last_cycle) for e in logged] == [(e.start_cycle, e.done_cycle) for e in reads]
    assert [e.address for e in logged] == [copy.source + 64 * copy.n_beats * j for j in range(copy.n_requests)]


def test_out_of_range_answers_decerr(design):
    copy = Copy(n_requests=4, source=SIZES_BYTES[0] - 2 * 8 * 64)
    copy.go(design, TYPICAL)
    assert copy.responses == [0] * 16 + [3] * 16
    np.testing.assert_array_equal(copy.copied[:16], copy.data[:16])
    assert not copy.copied[16:].any()


def test_injected_faults(design):
    copy = Copy()
    result = copy.go(design, TYPICAL, faults=[Fault(0, "read", 2), Fault(AUX, "write", 5)])
    assert copy.responses[:5] == [0] * 5
    assert copy.copied[5].tolist() == [0xA5] * 64  # a write that fails changes nothing
    assert result.csr[2] == 2
    assert copy.responses[16:24] == [2] * 8 and set(copy.responses[24:]) == {0}


@in_verilator
def test_images_and_dumps_at_any_address(design):
    """Far addresses cost nothing, bytes never written are zero, and no page boundary shows."""
    far, odd = SIZES_BYTES[AUX] - 64, 0x1_0000 - 101
    noise = np.random.default_rng(SEED).integers(0, 256, 200_003, dtype=np.uint8)
    result = run(
        design,
        sizes_bytes=SIZES_BYTES,
        memory=TYPICAL,
        image=[MemoryImage(AUX, far, b"far!"), MemoryImage(AUX, odd, noise)],
        csr_writes=[(dma.N_REQUESTS, 1), (dma.N_BEATS, 1), (dma.TARGET, 1 << 30), (dma.START, 1)],
        dump_ranges=[DumpRange(AUX, far, 8), DumpRange(0, 1, 100_000), DumpRange(AUX, odd - 1, len(noise) + 2)],
    )
    assert result.dumps == [b"far!\0\0\0\0", bytes(100_000), b"\0" + noise.tobytes() + b"\0"]


class Wrapped(dma.CopyEngine):
    """The copy engine as a module of its own inside another, for a hierarchical build."""

    def elaborate(self, platform):
        m = Module()
        m.submodules.inner = inner = as_module(dma.CopyEngine(self.n_ports), "inner_engine")
        for name, (_, way) in top_signals(self.n_ports).items():
            outside, inside = getattr(self, name), getattr(inner, name)
            m.d.comb += inside.eq(outside) if way == "in" else outside.eq(inside)
        return m


@in_verilator
@pytest.mark.slow
def test_a_hierarchical_build_does_the_same(design, tmp_path):
    parts = Design(convert(Wrapped(2), "wrapped"), "wrapped", 2, hierarchical=("inner_engine",))
    memory = MemoryModel(12, 7, jitter=50, seed=3)
    assert Copy(throttle=1).go(parts, memory) == Copy(throttle=1).go(design, memory)


@in_verilator
@pytest.mark.slow
def test_waves_are_written(design, tmp_path):
    path = tmp_path / "run.vcd"
    Copy().go(replace(design, waves=True), TYPICAL, waves=path)
    assert "m00_axi_araddr" in path.read_text()


def test_a_run_that_does_not_end_says_so(design):
    with pytest.raises(InternalError, match="did not end within 500 cycles"):
        run(design, sizes_bytes=SIZES_BYTES, memory=TYPICAL, max_cycles=500)


def test_a_burst_across_4_kib_is_refused(design):
    with pytest.raises(InternalError, match=r"port 0 AR .* crosses a 4 KiB boundary"):
        Copy(source=0x2000 - 64).go(design, TYPICAL)


def test_an_image_outside_of_the_memory_is_refused(design):
    with pytest.raises(InternalError, match=r"image: port 0 .* outside"):
        run(design, sizes_bytes=SIZES_BYTES, memory=TYPICAL, image=[MemoryImage(0, SIZES_BYTES[0] - 1, b"ab")])


@in_verilator
@pytest.mark.parametrize("tool", ["g++", "make"])
def test_a_missing_tool_is_one_line(monkeypatch, tmp_path, tool):
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None if name == tool else f"/bin/{name}")
    with pytest.raises(UserError) as error:
        toolchain.tool_environment(tmp_path)
    message = str(error.value)
    assert message.count("\n") == 0 and message.startswith(f"{tool} not found") and "install" in message
