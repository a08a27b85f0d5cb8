"""Matrix against NumPy and against docs/machine.md, cycle for cycle, with random memory stalls."""

import random
from dataclasses import replace

import numpy as np
import pytest
from amaranth.sim import Simulator

import hw.matrix
from hw.matrix import Matrix
from hw.spec import config as cfg
from hw.spec.isa import Error, MxMode, StreamFormat
from hw.spec.weights import header
from tests.hw.matrix_model import FrontModel, Mx, Rd, address_times, mx_times

SMALL = replace(cfg.get("tiny"), ob_blocks=256, ab_granules=256, acc_rows=16)
CONFIGS = {
    "tiny": SMALL,
    "one": replace(SMALL, units=1, chains=1),
    "wide": replace(SMALL, units=4, chains=4, lanes=32, fifo_beats=48),
    "fast": replace(SMALL, units=2, chains=8, lanes=32, fifo_beats=128),
}
MAX_CYCLES = 20_000
RAW, STREAM = StreamFormat.RAW, StreamFormat.STREAM
SPLIT_N, SPLIT_K = MxMode.SPLIT_N, MxMode.SPLIT_K


class Bench:
    """A Matrix in the simulator between scripted dispatchers and random memories; records when what happened."""

    def __init__(self, config, channels, *, seed=0, stall=0.0, latency=20, fault=None):
        self.config, self.channels, self.latency, self.fault = config, channels, latency, fault
        self.stall = stall
        rng = np.random.default_rng(seed)
        self.ready = rng.random((config.units, MAX_CYCLES)) >= stall
        self.gap = rng.random((config.units, MAX_CYCLES)) < stall
        self.cycle = 0
        self.asked = [[] for _ in range(config.units)]
        self.arrived = [[] for _ in range(config.units)]
        self.takes, self.drained, self.errors = [], [], {}
        self.starts, self.dones = {"rd": [], "mx": []}, {"rd": [], "mx": []}

    def run(self, rd, mx, *, operands, reads, max_cycles=MAX_CYCLES, gaps=0, stop_on_error=False):
        """Results: int32[granule, 16] of the first ``reads`` granules, read when everything is done."""
        dut = self.dut = Matrix(self.config)
        controls = []
        step_control, drain_control = hw.matrix.StepControl, hw.matrix.DrainControl
        hw.matrix.StepControl = lambda config: controls.append(step_control(config)) or controls[-1]
        hw.matrix.DrainControl = lambda config: controls.append(drain_control(config)) or controls[-1]
        try:
            sim = Simulator(dut)
        finally:
            hw.matrix.StepControl, hw.matrix.DrainControl = step_control, drain_control
        sim.add_clock(1e-6)
        self.result = None
        for unit in range(self.config.units):
            sim.add_process(self._memory(unit))
        sim.add_process(self._watch(*controls))
        sim.add_process(self._dispatch("rd", rd, lambda: True, 0))
        sim.add_process(self._dispatch("mx", mx, lambda: self.written, gaps))
        self.written = False

        async def main(ctx):
            await self._write(ctx, operands)
            self.written = True
            for _ in range(max_cycles):
                if len(self.dones["mx"]) == len(mx) and len(self.dones["rd"]) == len(rd):
                    break
                if stop_on_error and self.errors:
                    while not ctx.get(dut.bus_idle):
                        await ctx.tick()
                    await ctx.tick().repeat(40)
                    self.result = np.zeros((0, 16))
                    return
                await ctx.tick()
            else:
                raise AssertionError(f"not done after {max_cycles} cycles: starts {self.starts}, dones {self.dones}, "
                                     f"takes {self.takes}, errors {self.errors}")
            await self._read(ctx, reads)

        sim.add_testbench(main)
        sim.run()
        return self.result

    async def _write(self, ctx, operands):
        """operands: int8[blocks, 16]."""
        per_word = self.config.granules_per_word
        for word in range(len(operands) // per_word):
            port = self.dut.operands
            ctx.set(port.en, 1)
            ctx.set(port.addr, word)
            ctx.set(port.data, [int(x) for x in operands[word * per_word:(word + 1) * per_word].ravel()])
            await ctx.tick()
        ctx.set(self.dut.operands.en, 0)

    async def _read(self, ctx, granules):
        rows, port = [], self.dut.results
        ctx.set(port.en, 1)
        for word in range(granules // self.config.granules_per_word):
            ctx.set(port.addr, word)
            await ctx.tick()
            rows.append([ctx.get(port.data[lane]) for lane in range(self.config.lanes)])
        self.result = np.array(rows, np.int64).reshape(-1, 16)

    def _dispatch(self, name, program, allowed, gaps):
        port_name, rng = name, random.Random(1)

        async def process(ctx):
            port = getattr(self.dut, port_name)
            await ctx.tick().repeat(3)
            for instruction in program:
                while not allowed():
                    await ctx.tick()
                if gaps:
                    await ctx.tick().repeat(1 + rng.randrange(gaps))
                for field, value in vars(instruction).items():
                    ctx.set(getattr(port.desc, field), int(value))
                ctx.set(port.start, 1)
                await ctx.tick()
                ctx.set(port.start, 0)
                while True:
                    _, _, done = await ctx.tick().sample(port.done)
                    if done:
                        break

        return process

    def _memory(self, unit):
        async def process(ctx):
            axi, contents = self.dut.axi[unit], self.channels[unit]
            pending, cycle, n = [], 0, 0
            while True:
                ctx.set(axi.arready, int(self.ready[unit, cycle]))
                show = bool(pending) and pending[0][0] <= cycle and not self.gap[unit, cycle]
                ctx.set(axi.rvalid, show)
                if show:
                    _, beat, last = pending.pop(0)
                    ctx.set(axi.rdata, int.from_bytes(contents[beat * 64:beat * 64 + 64].tobytes(), "little"))
                    ctx.set(axi.rlast, last)
                    ctx.set(axi.rresp, 2 * (self.fault == (unit, n)))
                    self.arrived[unit].append(cycle)
                    n += 1
                _, _, valid, ready, address, length = await ctx.tick().sample(
                    axi.arvalid, axi.arready, axi.araddr, axi.arlen)
                if valid and ready:
                    assert address % 64 == 0
                    self.asked[unit].append((cycle, address // 64, length + 1))
                    pending += [(cycle + self.latency + i, address // 64 + i, i == length) for i in range(length + 1)]
                cycle += 1

        return process

    def _watch(self, steps, drain):
        async def process(ctx):
            cycle, dut = 0, self.dut
            while True:
                _, _, take, drained, *units = await ctx.tick().sample(
                    steps.take, drain.step_drained, dut.rd.start, dut.rd.done, dut.rd.error, dut.rd.error_code,
                    dut.mx.start, dut.mx.done, dut.mx.error, dut.mx.error_code)
                if take:
                    self.takes.append(cycle)
                if drained:
                    self.drained.append(cycle)
                for name, (start, done, error, code) in (("rd", units[:4]), ("mx", units[4:])):
                    if start:
                        self.starts[name].append(cycle)
                    if done:
                        self.dones[name].append(cycle)
                    if error:
                        self.errors.setdefault(name, Error(code))
                cycle += 1

        return process


class Workload:
    """Random channels, operands and instructions, and what NumPy says of them."""

    def __init__(self, config, shapes, seed):
        """shapes: (mode, fmt, n_rows, kb, ob, n_outer) of each instruction; n_outer divides the beats (RAW)."""
        self.config = config
        rng = self.rng = np.random.default_rng(seed)
        self.operands = rng.integers(-128, 128, (config.ob_blocks, 16)).astype(np.int8)
        self.expected = np.zeros((config.ab_granules, 16), np.int64)
        self.rd, self.mx, self.headers = [], [], []
        streams = [[np.zeros(64 * 5, np.uint8)] for _ in range(config.units)]
        at, dst = 5, 0
        for shape in shapes:
            at, dst = self._instruction(streams, at, dst, *shape)
        self.channels = [np.concatenate(parts) for parts in streams]

    def _instruction(self, streams, at, dst, mode, fmt, n_rows, kb, ob, n_outer):
        config, rng = self.config, self.rng
        n = config.units
        weights = rng.integers(-127, 128, (n, ob, kb, 16, 16)).astype(np.int8)
        gap = rng.integers(0, 256, (64 * 3,)).astype(np.uint8)
        run = ob * kb * 4 // n_outer
        for unit in range(n):
            if fmt == STREAM:
                streams[unit].append(np.frombuffer(header(ob * kb), np.uint8))
            body = weights[unit].view(np.uint8).reshape(n_outer, -1)
            for outer in range(n_outer):
                streams[unit] += [body[outer], gap]
        inner = run + (fmt == STREAM)
        assert fmt == RAW or n_outer == 1
        self.rd.append(Rd(at, n_outer, inner, run + 3, fmt))
        self.headers += self.rd[-1].headers

        unit_blocks = kb * (n if mode == SPLIT_K else 1)
        act_stride = -(-unit_blocks // n) * n + n * (mode == SPLIT_K)
        act = int(rng.integers(0, 8)) * n if mode == SPLIT_K else int(rng.integers(0, 30))
        act_stride = act_stride if mode == SPLIT_K else unit_blocks + 1
        granules = ob * (1 if mode == SPLIT_K else n)
        per_word = config.granules_per_word
        dst_stride = granules + 1 if mode == SPLIT_K else -(-granules // per_word) * per_word + per_word
        if mode == SPLIT_N:
            dst = -(-dst // per_word) * per_word
        self.mx.append(Mx(act, act_stride, n_rows, kb, ob, dst, dst_stride, mode))
        for r in range(n_rows):
            for j in range(ob):
                for k in range(kb):
                    for u in range(n):
                        block = act + r * act_stride + (k * n + u if mode == SPLIT_K else k)
                        granule = dst + r * dst_stride + (j if mode == SPLIT_K else j * n + u)
                        operand = self.operands[block].astype(np.int64)
                        self.expected[granule] += weights[u, j, k].astype(np.int64) @ operand
        return at + inner + (n_outer - 1) * (run + 3) + 3, dst + n_rows * dst_stride


SHAPES = [
    (SPLIT_N, STREAM, 1, 3, 4, 1), (SPLIT_K, RAW, 1, 2, 5, 2), (SPLIT_N, RAW, 5, 2, 3, 3),
    (SPLIT_K, STREAM, 3, 3, 2, 1), (SPLIT_N, STREAM, 2, 1, 6, 1), (SPLIT_K, RAW, 1, 1, 6, 1),
    (SPLIT_N, RAW, 1, 1, 5, 1), (SPLIT_N, STREAM, 2, 12, 1, 1),
]


def check_run(config, shapes, seed, stall, latency, gaps=0):
    load = Workload(config, shapes, seed)
    bench = Bench(config, load.channels, seed=seed, stall=stall, latency=latency)
    got = bench.run(load.rd, load.mx, operands=load.operands, reads=config.ab_granules, gaps=gaps)
    np.testing.assert_array_equal(got, load.expected)
    assert not bench.errors

    fronts = [FrontModel(arrivals, load.headers) for arrivals in bench.arrived]
    times = mx_times(config, bench.starts["mx"], load.mx, fronts)
    assert bench.takes == [take for each in times for take in each.takes]
    assert bench.drained == [end for each in times for _, end in each.drains]
    assert bench.dones["mx"] == [each.done for each in times]
    for unit, front in enumerate(fronts):
        asked = address_times(config, bench.starts["rd"], load.rd, front.pops,
                              lambda t, unit=unit: bench.ready[unit, t])
        assert bench.asked[unit] == asked
    n_bursts, ends = 0, []
    for rd in load.rd:
        n_bursts += len(list(rd.bursts()))
        ends.append(max(asked[n_bursts - 1][0] for asked in bench.asked) + 1)
    assert bench.dones["rd"] == ends
    return bench


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_results_and_cycles(name, stall):
    check_run(CONFIGS[name], SHAPES, seed=len(name), stall=stall, latency=20, gaps=9 if stall else 0)


def failing(rd=None, mx=None, fault=None, spoil=None):
    load = Workload(SMALL, SHAPES[:1], 3)
    for field, value in (rd or {}).items():
        setattr(load.rd[0], field, value)
    for field, value in (mx or {}).items():
        setattr(load.mx[0], field, value)
    if spoil is not None:
        load.channels[0][64 * 5 + spoil] ^= 1
    bench = Bench(SMALL, load.channels, fault=fault)
    bench.run(load.rd, load.mx, operands=load.operands, reads=0, stop_on_error=True)
    assert sum(n for *_, n in bench.asked[0]) == len(bench.arrived[0])
    assert not bench.dones["mx"]
    return bench.errors


@pytest.mark.parametrize("field, value, error", [
    ("n_rows", 0, Error.ILLEGAL_DESCRIPTOR), ("n_rows", 17, Error.ILLEGAL_DESCRIPTOR),
    ("kb", 0, Error.ILLEGAL_DESCRIPTOR),
    ("ob", 0, Error.ILLEGAL_DESCRIPTOR), ("mode", 2, Error.ILLEGAL_DESCRIPTOR),
    ("act", 254, Error.BUFFER_RANGE), ("dst", 250, Error.BUFFER_RANGE), ("act", 2**32 - 1, Error.BUFFER_RANGE),
])
def test_mx_errors(field, value, error):
    assert failing(mx={field: value}) == {"mx": error}


def test_rd_errors():
    assert failing(rd={"n_inner": 0}) == {"rd": Error.ILLEGAL_DESCRIPTOR}
    assert failing(rd={"fmt": 2}) == {"rd": Error.ILLEGAL_DESCRIPTOR}
    assert failing(fault=(1, 20)) == {"rd": Error.BUS_READ}
    for byte in range(3):
        assert failing(spoil=byte) == {"rd": Error.STREAM_HEADER}


def test_a_block_every_four_cycles():
    """Decode: one row, one pass; the memory's rate is the machine's."""
    bench = check_run(CONFIGS["fast"], [(SPLIT_N, RAW, 1, 16, 2, 1)], seed=1, stall=0.0, latency=20)
    assert np.diff(bench.takes).tolist() == [4] * 31
