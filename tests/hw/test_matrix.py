"""Matrix against NumPy and against a slow machine of its docstrings, cycle for cycle, with random memory stalls."""

import random
import sys
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from amaranth.sim import Simulator

import hw.matrix
from hw.buffer_memory import READ_LATENCY
from hw.matrix import Matrix
from hw.spec import config as cfg
from hw.spec.config import BEAT_BYTES, BLOCK
from hw.spec.isa import FIELDS, Error, Unit
from hw.spec.memory import MemoryModel
from hw.spec.timing import RD_DONE, UNIT_START, WEIGHT_BUFFER_ROUNDS
from hw.spec.weights import BITS, NONZEROS
from sim.cycle_streams import NEVER, Streams
from sim.functional_matrix import plans_of
from sim.memory_image import MemoryImage
from tests.compiler.test_stream import random_matrix, uniform
from tests.hw.matrix_model import MatrixModel, address_times
from tests.hw.matrix_workload import RAW, SPLIT_K, SPLIT_N, STREAM, Encoded, Product, Workload

SMALL = replace(cfg.get("tiny"), ob_blocks=256, ab_granules=256, acc_rows=16)
CONFIGS = {
    "tiny": SMALL,
    "one": replace(SMALL, units=1, chains=1),
    "wide": replace(SMALL, units=4, chains=4, lanes=32, fifo_beats=48, ab_granules=512),
    "fast": replace(SMALL, units=2, chains=8, lanes=32, fifo_beats=128),
}
ONE = CONFIGS["one"]
QUICK = replace(ONE, chains=8, fifo_beats=128)
STALLS = ("weight_stall", "drain_stall", "unpack_stall")
MAX_CYCLES = 10_000
SLOW = pytest.mark.slow


class Bench:
    """A Matrix in the simulator between scripted dispatchers and random memories; records when what happened."""

    def __init__(self, config, channels, *, seed=0, stall=0.0, latency=20, fault=None):
        self.config, self.channels, self.latency, self.fault = config, channels, latency, fault
        self.stall = stall
        rng = np.random.default_rng(seed)
        self.ready = rng.random((config.units, 2 * MAX_CYCLES)) >= stall
        self.gap = rng.random((config.units, 2 * MAX_CYCLES)) < stall
        self.cycle = 0
        self.asked = [[] for _ in range(config.units)]
        self.arrived = [[] for _ in range(config.units)]
        self.takes, self.drained, self.errors, self.reads = [], [], {}, {}
        self.stalls = dict.fromkeys(STALLS, 0)
        self.starts, self.dones = {"rd": [], "mx": []}, {"rd": [], "mx": []}

    def run(self, rd, mx, *, operands, reads, max_cycles=MAX_CYCLES, gaps=0, stop_on_error=False):
        """Results: int32[granule, 16] of the first ``reads`` granules, read when everything is done."""
        built = _built(self.config)
        built.bench, self.dut, self.controls = self, built.dut, built.controls
        self.programs, self.gaps, self.result = {"rd": rd, "mx": mx}, gaps, None
        self.written = False

        async def main(ctx):
            await self._write(ctx, operands)
            self.written = True
            for _ in range(max_cycles):
                if len(self.dones["mx"]) == len(mx) and len(self.dones["rd"]) == len(rd):
                    break
                if stop_on_error and self.errors:
                    while not ctx.get(self.dut.bus_idle):
                        await ctx.tick()
                    await ctx.tick().repeat(40)
                    self.result = np.zeros((0, 16))
                    return
                await ctx.tick()
            else:
                raise AssertionError(
                    f"not done after {max_cycles} cycles: starts {self.starts}, dones {self.dones}, "
                    f"takes {self.takes}, errors {self.errors}"
                )
            await self._read(ctx, reads)

        self.main = main
        built.run()
        return self.result

    async def _write(self, ctx, operands):
        """operands: int8[blocks, 16]."""
        per_word = self.config.granules_per_word
        for word in range(len(operands) // per_word):
            port = self.dut.operands
            ctx.set(port.en, 1)
            ctx.set(port.addr, word)
            ctx.set(port.data, [int(x) for x in operands[word * per_word : (word + 1) * per_word].ravel()])
            await ctx.tick()
        ctx.set(self.dut.operands.en, 0)

    async def _read(self, ctx, granules):
        rows, port = [], self.dut.results
        ctx.set(port.en, 1)
        for word in range(granules // self.config.granules_per_word):
            ctx.set(port.addr, word)
            await ctx.tick().repeat(READ_LATENCY)
            rows.append([ctx.get(port.data[lane]) for lane in range(self.config.lanes)])
        self.result = np.array(rows, np.int64).reshape(-1, 16)

    async def dispatch(self, ctx, name):
        """MX waits for its operands, and now and then for nothing."""
        port, rng, is_mx = getattr(self.dut, name), random.Random(1), name == "mx"
        await ctx.tick().repeat(3)
        for instruction in self.programs[name]:
            while is_mx and not self.written:
                await ctx.tick()
            if is_mx and self.gaps:
                await ctx.tick().repeat(1 + rng.randrange(self.gaps))
            for field in FIELDS[Unit[name.upper()]]:
                ctx.set(getattr(port.desc, field), int(getattr(instruction, field)))
            ctx.set(port.start, 1)
            await ctx.tick()
            ctx.set(port.start, 0)
            while True:
                _, _, done = await ctx.tick().sample(port.done)
                if done:
                    break

    async def memory(self, ctx, unit):
        axi, contents = self.dut.axi[unit], self.channels[unit]
        pending, cycle, n = [], 0, 0
        while True:
            ctx.set(axi.arready, int(self.ready[unit, cycle]))
            show = bool(pending) and pending[0][0] <= cycle and not self.gap[unit, cycle]
            ctx.set(axi.rvalid, show)
            if show:
                _, beat, last = pending.pop(0)
                ctx.set(axi.rdata, int.from_bytes(contents[beat * 64 : beat * 64 + 64].tobytes(), "little"))
                ctx.set(axi.rlast, last)
                ctx.set(axi.rresp, 2 * (self.fault == (unit, n)))
                self.arrived[unit].append(cycle)
                n += 1
            _, _, valid, ready, address, length = await ctx.tick().sample(
                axi.arvalid, axi.arready, axi.araddr, axi.arlen
            )
            if valid and ready:
                assert address % 64 == 0
                self.asked[unit].append((cycle, address // 64, length + 1))
                pending += [(cycle + self.latency + i, address // 64 + i, i == length) for i in range(length + 1)]
            cycle += 1

    async def watch(self, ctx):
        cycle, dut, (orders, steps, drain) = 0, self.dut, self.controls
        operands = (steps.act_valid, steps.act, orders.read | orders.second, orders.act)
        stalls = [getattr(dut, name) for name in STALLS]
        while True:
            _, _, take, drained, *found = await ctx.tick().sample(
                steps.read,
                drain.step_drained,
                *operands,
                *stalls,
                dut.rd.start,
                dut.rd.done,
                dut.rd.error,
                dut.rd.error_code,
                dut.mx.start,
                dut.mx.done,
                dut.mx.error,
                dut.mx.error_code,
            )
            (dense, act, load, load_act), counts, units = found[:4], found[4:7], found[7:]
            for name, stall in zip(STALLS, counts, strict=True):
                self.stalls[name] += stall
            if take:
                self.takes.append(cycle - 1)
            if drained:
                self.drained.append(cycle)
            if dense or load:
                assert not (dense and load), f"two reads of the operand buffer in cycle {cycle}"
                self.reads[cycle] = act if dense else load_act
            for name, (start, done, error, code) in (("rd", units[:4]), ("mx", units[4:])):
                if start:
                    self.starts[name].append(cycle - UNIT_START + 1)
                if done:
                    self.dones[name].append(cycle)
                if error:
                    self.errors.setdefault(name, Error(code))
            cycle += 1


class Built:
    """A Matrix in a simulator, which is long in the making and serves one bench after another."""

    def __init__(self, config):
        self.bench, self.controls, self.used = None, [], False
        self.dut = Matrix(config)
        kept = {name: getattr(hw.matrix, name) for name in ("OrderControl", "StepControl", "DrainControl")}
        for name, control in kept.items():
            setattr(hw.matrix, name, self._noted(control))
        try:
            # The unpacker's expressions nest deeper than Python compiles by default.
            sys.setrecursionlimit(max(sys.getrecursionlimit(), 20_000))
            self.sim = Simulator(self.dut)
        finally:
            for name, control in kept.items():
                setattr(hw.matrix, name, control)
        self.sim.add_clock(1e-6)
        for unit in range(config.units):
            self.sim.add_process(self._follow("memory", unit))
        self.sim.add_process(self._follow("watch"))
        for name in ("rd", "mx"):
            self.sim.add_process(self._follow("dispatch", name))
        self.sim.add_testbench(self._follow("main"))

    def _noted(self, control):
        """Makes the block, and keeps it among the controls."""

        def make(config):
            self.controls.append(control(config))
            return self.controls[-1]

        return make

    def run(self):
        """From reset to the end of the bench's `main`."""
        if self.used:
            self.sim.reset()
        self.used = True
        self.sim.run()

    def _follow(self, part, *arguments):
        """A process that does what the bench of the day does."""

        async def process(ctx):
            await getattr(self.bench, part)(ctx, *arguments)

        return process


@lru_cache(maxsize=2)
def _built(config):
    return Built(config)


SHAPES = [
    [Product(SPLIT_N, STREAM, n_rows=1, kb=3, ob=3)],
    [Product(SPLIT_K, RAW, n_rows=1, kb=2, ob=5, n_outer=2)],
    [Product(SPLIT_N, RAW, n_rows=5, kb=2, ob=3, n_outer=3)],
    [Product(SPLIT_N, STREAM, n_rows=n_rows, kb=20, ob=1) for n_rows in (3, 2)],
    [Product(SPLIT_K, RAW, n_rows=3, kb=1, ob=4)],
    [Product(SPLIT_N, STREAM, n_rows=1, kb=8, ob=5, n_outer=3)],
    [Product(SPLIT_N, RAW, n_rows=1, kb=1, ob=5)],
    [Product(SPLIT_K, RAW, n_rows=2, kb=1, ob=3, times=3)],
    [Product(SPLIT_N, RAW, n_rows=2, kb=2, ob=1, times=3)],
    [Product(SPLIT_N, STREAM, n_rows=1, kb=8, ob=1, times=2, rounds=1)],
]
GROUPS = [
    [Product(SPLIT_N, STREAM, n_rows=3, kb=10, ob=4, group=4, rounds=2, nonzeros=(8, 4))],
    [Product(SPLIT_N, STREAM, n_rows=2, kb=8, ob=7, group=3, bundles=2, n_outer=2)],
    [Product(SPLIT_N, STREAM, n_rows=4, kb=8, ob=3, group=2, bundles=1, times=3, n_last=1)],
    [Product(SPLIT_N, STREAM, n_rows=1, kb=20, ob=9, group=9, bundles=1, nonzeros=(2, 1), rounds=1)],
    [Product(SPLIT_N, RAW, n_rows=4, kb=2, ob=2, times=2, n_last=2)],
]
"""Bundles of several steps, more steps than a group has, several turns, fewer rows in the last."""


def model_of(config, bench, load) -> MatrixModel:
    model = MatrixModel(
        config, [s + UNIT_START - 1 for s in bench.starts["mx"]], load.mx, load.kinds, bench.arrived, load.completes
    )
    model.run()
    return model


def check_run(config, shapes, seed, stall, latency, gaps=0):
    return check_load(config, Workload(config, shapes, seed), seed, stall, latency, gaps)


def check_load(config, load, seed, stall, latency, gaps=0):
    bench = Bench(config, load.channels, seed=seed, stall=stall, latency=latency)
    got = bench.run(load.rd, load.mx, operands=load.operands, reads=config.ab_granules, gaps=gaps)
    assert not bench.errors

    model = model_of(config, bench, load)
    for name in ("takes", "drained", "reads"):
        assert getattr(bench, name) == getattr(model, name), name
    assert bench.dones["mx"] == model.dones
    stalls = {"weight_stall": model.weight_stall, "drain_stall": model.drain_stall}
    assert bench.stalls == stalls | {"unpack_stall": model.units[0].stalls}
    np.testing.assert_array_equal(got, load.expected)
    check_addresses(config, bench, load, model)
    if not stall:
        check_simulator(config, bench, load)
    return bench


def check_addresses(config, bench, load, model):
    n_bursts, left = 0, []
    for unit, front in enumerate(model.units):
        asked, leave = address_times(
            config, bench.starts["rd"], load.rd, front.pops, lambda t, unit=unit: bench.ready[unit, t]
        )
        assert bench.asked[unit] == asked
        left.append(leave)
    ends = []
    for rd in load.rd:
        n_bursts += len(list(rd.bursts()))
        ends.append(max(leave[n_bursts - 1] for leave in left) + 1 + RD_DONE)
    assert bench.dones["rd"] == ends


def check_simulator(config, bench, load):
    """The cycle simulator's recurrences tell the same ends and stalls for a memory of fixed latency."""
    memory = MemoryImage(config)
    for unit, contents in enumerate(load.channels):
        memory.attach(unit, 0, contents)
    streams = Streams(config, MemoryModel(bench.latency, 0))
    events = [(start, name, i) for name in ("rd", "mx") for i, start in enumerate(bench.starts[name])]
    ends = {"rd": [], "mx": []}
    for start, name, i in sorted(events):
        if i:
            ends[name].append(streams.read_end() if name == "rd" else streams.multiply_end())
        fields = {key: int(value) for key, value in vars(getattr(load, name)[i]).items()}
        if name == "rd":
            streams.start_read(start, fields, plans_of(memory, fields), None, NEVER)
        else:
            streams.start_multiply(start + UNIT_START - 1, fields)
    ends["rd"].append(streams.read_end())
    ends["mx"].append(streams.multiply_end())
    assert ends == bench.dones
    counters = streams.counters(max(bench.dones["mx"]))
    assert counters == {name if name == "unpack_stall" else f"mx_{name}": n for name, n in bench.stalls.items()}


@pytest.mark.parametrize(
    ("name", "stall"),
    [
        ("tiny", 0.4),
        pytest.param("one", 0.0, marks=SLOW),
        pytest.param("tiny", 0.0, marks=SLOW),
        pytest.param("fast", 0.4, marks=SLOW),
        pytest.param("fast", 0.0, marks=SLOW),
        pytest.param("one", 0.4, marks=SLOW),
        pytest.param("wide", 0.0, marks=SLOW),
        pytest.param("wide", 0.4, marks=SLOW),
    ],
)
def test_results_and_cycles(name, stall):
    check_run(CONFIGS[name], SHAPES, seed=len(name), stall=stall, latency=20, gaps=9 if stall else 0)


@pytest.mark.parametrize(
    ("name", "stall"),
    [
        ("one", 0.0),
        ("one", 0.9),
        ("tiny", 0.4),
        pytest.param("tiny", 0.0, marks=SLOW),
        pytest.param("fast", 0.0, marks=SLOW),
        pytest.param("fast", 0.4, marks=SLOW),
        pytest.param("wide", 0.4, marks=SLOW),
    ],
)
def test_groups_of_steps(name, stall):
    """With 0.9, rounds come more slowly than they are multiplied, so that batches wait inside."""
    check_run(CONFIGS[name], GROUPS, seed=len(name), stall=stall, latency=20, gaps=9 if stall else 0)


@pytest.mark.parametrize("bits", [pytest.param(bits, marks=SLOW if bits in (3, 4) else ()) for bits in BITS])
def test_every_sparsity(bits):
    """Each alone, where nothing hides a wrong round: rows that do not come in pairs, and those that do."""
    shapes = [
        [
            Product(SPLIT_N, STREAM, n_rows=n_rows, kb=12, ob=1, bits=(bits,), nonzeros=(nonzeros,), rounds=3)
            for n_rows in (1, 2, 3)
        ]
        for nonzeros in NONZEROS
    ]
    check_run(ONE, shapes, seed=bits, stall=0.0, latency=20)


ENCODED = replace(QUICK, acc_rows=32)


def check_encoded(config, shape, bits, nonzeros, seed, stall=0.0):
    """Two turns, of three rows and of two, of a matrix as the compiler writes it."""
    weight, fmt = random_matrix(shape, bits, nonzeros, seed)
    check_load(config, Encoded(config, weight, fmt, 3, 2, 2, seed), seed, stall, latency=20)


@SLOW
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("nonzeros", NONZEROS)
def test_what_the_compiler_writes_in_one_format(bits, nonzeros):
    """Nine steps, all in one group if blocks are sparse; nine input blocks, so that the second window has one."""
    shape = (9 * BLOCK, 9 * BLOCK)
    check_encoded(ENCODED, shape, *uniform(shape, bits, nonzeros), seed=16 * nonzeros + bits)


@pytest.mark.parametrize(("name", "stall"), [("one", 0.0), pytest.param("fast", 0.3, marks=SLOW)])
def test_what_the_compiler_writes_of_mixed_blocks(name, stall):
    """Every block has a format of its own, or none; output blocks are no multiple of the units."""
    shape, rng = (5 * BLOCK - 3, 10 * BLOCK), np.random.default_rng(7)
    blocks = (5, 10)
    bits, nonzeros = rng.choice(BITS, blocks).astype(np.uint8), rng.choice([0, *NONZEROS], blocks).astype(np.uint8)
    check_encoded(CONFIGS[name], shape, bits, nonzeros, seed=7, stall=stall)


def failing(rd=None, mx=None, fault=None, change=None, product=SHAPES[0][0], config=ONE):
    """The error of each unit, with a descriptor or a bit of unit 0's first header changed."""
    load = Workload(config, [[product]], 3)
    for field, value in (rd or {}).items():
        setattr(load.rd[0], field, value)
    for field, value in (mx or {}).items():
        setattr(load.mx[0], field, value)
    if change is not None:
        byte, mask = change
        load.channels[0][BEAT_BYTES * load.rd[0].addr + byte] ^= mask
    bench = Bench(config, load.channels, fault=fault)
    bench.run(load.rd, load.mx, operands=load.operands, reads=0, stop_on_error=True)
    assert sum(n for *_, n in bench.asked[0]) == len(bench.arrived[0])
    assert not bench.dones["mx"]
    return bench.errors


@pytest.mark.parametrize(
    "field, value, error",
    [
        ("n_rows", 0, Error.ILLEGAL_DESCRIPTOR),
        ("n_rows", 17, Error.ILLEGAL_DESCRIPTOR),
        ("kb", 0, Error.ILLEGAL_DESCRIPTOR),
        ("ob", 0, Error.ILLEGAL_DESCRIPTOR),
        ("n_outer", 0, Error.ILLEGAL_DESCRIPTOR),
        ("mode", 2, Error.ILLEGAL_DESCRIPTOR),
        ("n_last", 2, Error.ILLEGAL_DESCRIPTOR),
        ("group", 17, Error.ILLEGAL_DESCRIPTOR),
        ("group", 1 << 31, Error.ILLEGAL_DESCRIPTOR),
        ("act", 256, Error.BUFFER_RANGE),
        ("dst", 254, Error.BUFFER_RANGE),
        ("act", 2**32 - 1, Error.BUFFER_RANGE),
    ],
)
def test_mx_errors(field, value, error):
    assert failing(mx={field: value}) == {"mx": error}


def test_windows_wrap_around_the_buffer_and_the_row_behind_an_odd_one_is_not_read():
    """That row's address may be beyond the buffer; a real one's may not."""
    wrapping = Product(SPLIT_N, STREAM, n_rows=3, kb=8, ob=2, act=253, act_stride=1)
    check_run(ONE, [[wrapping]], seed=1, stall=0.0, latency=20)
    assert failing(product=replace(wrapping, nonzeros=(4,)), mx={"act": 254}) == {"mx": Error.BUFFER_RANGE}


@pytest.mark.parametrize(
    ("case", "error"),
    [
        ({"rd": {"n_inner": 0}}, Error.ILLEGAL_DESCRIPTOR),
        ({"rd": {"fmt": 2}}, Error.ILLEGAL_DESCRIPTOR),
        ({"fault": (0, 12)}, Error.BUS_READ),
        ({"change": (0, 1)}, Error.STREAM_HEADER),
        ({"change": (3, 0x80)}, Error.STREAM_HEADER),
    ],
)
def test_rd_errors(case, error):
    assert failing(**case) == {"rd": error}


WIDE = Product(SPLIT_N, STREAM, n_rows=1, kb=9, ob=2, bits=(8,), nonzeros=(16,), bundles=1, rounds=1)


@pytest.mark.parametrize("change", [(1, 4), (2, 1), (1, 2)], ids=["window", "far window", "last"])
def test_units_that_disagree(change):
    """Unit 0's first run is of another window, or ends the step when the others' does not."""
    assert failing(product=WIDE, change=change, config=SMALL) == {"mx": Error.STREAM_HEADER}


STEPS = Product(SPLIT_N, STREAM, n_rows=3, kb=8, ob=4, group=4, nonzeros=(4,), bundles=1, rounds=1)
"""Four steps in a group, of three rows."""


@pytest.mark.parametrize(
    ("rows", "group", "fits"), [(3, 8, True), (3, 9, False), (4, 8, True), (5, 5, False), (16, 2, True), (16, 3, False)]
)
def test_a_group_must_fit_the_accumulators(rows, group, fits):
    """They hold 32 rows, and a step takes as many as the next power of two. The stream is of another group."""
    found = failing(product=STEPS, mx={"n_rows": rows, "group": group, "act_stride": 0, "ob": 16})
    assert found == {"mx": Error.STREAM_HEADER if fits else Error.ILLEGAL_DESCRIPTOR}


def test_groups_that_are_not_the_streams():
    """Of fewer steps: a round is of none of them. Of more: the last round ends the group before all steps have one."""
    for group in (0, 2, 3, 5):
        assert failing(product=STEPS, mx={"group": group, "ob": 8}) == {"mx": Error.STREAM_HEADER}, group
    raw = Product(SPLIT_N, RAW, n_rows=1, kb=2, ob=4)
    assert failing(product=raw, mx={"group": 2}) == {"mx": Error.STREAM_HEADER}


def test_streams_that_do_not_fit_the_instruction():
    assert failing(product=replace(WIDE, kb=20), mx={"kb": 8}) == {"mx": Error.STREAM_HEADER}
    assert failing(mx={"mode": SPLIT_K, "act": 0, "act_stride": 0}) == {"mx": Error.STREAM_HEADER}


def test_a_raw_block_every_four_cycles():
    """Decode: one row, one pass; the memory's rate is the machine's."""
    bench = check_run(QUICK, [[Product(SPLIT_N, RAW, n_rows=1, kb=32, ob=2)]], seed=1, stall=0.0, latency=20)
    # What RD read ahead while the operands were written lies ready: as many rounds as the weight buffer holds.
    assert np.diff(bench.takes).tolist()[WEIGHT_BUFFER_ROUNDS + 10 :] == [4] * (63 - WEIGHT_BUFFER_ROUNDS - 10)


def test_a_round_every_cycle():
    """Decode at 2 bits: a round is a beat, so the same sums come again in the next cycle."""
    product = Product(SPLIT_N, STREAM, n_rows=1, kb=16, ob=2, bits=(2,), nonzeros=(16,), rounds=8)
    bench = check_run(QUICK, [[product]], seed=1, stall=0.0, latency=20)
    assert np.diff(bench.takes).tolist().count(1) > len(bench.takes) // 2
