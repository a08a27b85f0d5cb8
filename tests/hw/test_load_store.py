"""LD and ST alone, under random back-pressure: every beat in its place, and the end in its cycle."""

import random
from dataclasses import replace

import pytest
from amaranth.sim import Simulator

from hw.buffer_memory import READ_LATENCY
from hw.load_unit import LoadUnit
from hw.spec import config as configurations
from hw.spec.isa import Error, LdKind, StKind, StMode
from hw.spec.timing import ST_END, ST_PIPE, burst_length
from hw.store_unit import StoreUnit

CONFIG = configurations.get("tiny")
WIDE = replace(CONFIG, name="wide", lanes=32)
LIMIT = 4000


def simulate(dut, *benches):
    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    for bench, background in benches:
        simulator.add_testbench(bench, background=background)
    simulator.run()


def bursts(desc):
    """(beat address, beats) of every AR of a load."""
    for row in range(desc["n_outer"]):
        at, left = desc["addr"] + row * desc["stride"], desc["n_inner"]
        while left:
            n = burst_length(at, left)
            yield at, n
            at, left = at + n, left - n


@pytest.mark.parametrize("config", [CONFIG, WIDE], ids=lambda c: c.name)
@pytest.mark.parametrize("seed", range(6))
def test_load(seed, config):
    rng = random.Random(seed)
    stalls = seed % 2
    desc = {
        "addr": rng.randrange(200),
        "n_outer": rng.randint(1, 5),
        "n_inner": rng.randint(1, 40),
        "stride": rng.randrange(90),
        "dst": rng.randrange(50),
        "dst_stride": rng.choice([41, 64]),
    }
    dut = LoadUnit(config)
    asked, queue, times = [], [], {}

    async def memory(ctx):
        cycle = 0
        while True:
            if ctx.get(dut.bus.rvalid):
                times["last"] = cycle
            ready = not stalls or rng.random() < 0.5
            ctx.set(dut.bus.arready, ready)
            if ctx.get(dut.bus.arvalid) and ready:
                at, n = ctx.get(dut.bus.araddr) // 64, ctx.get(dut.bus.arlen) + 1
                asked.append((at, n))
                times.setdefault("asked", []).append(cycle)
                queue.extend((at + i, cycle + 5) for i in range(n))
            if ctx.get(dut.unit.start):
                times["start"] = cycle
            if ctx.get(dut.unit.done):
                times["done"] = cycle
            await ctx.tick()
            cycle += 1
            send = bool(queue) and queue[0][1] <= cycle and (not stalls or rng.random() < 0.7)
            ctx.set(dut.bus.rvalid, send)
            ctx.set(dut.bus.rdata, queue.pop(0)[0] * 0x1_0000_0001 if send else 0)

    async def drive(ctx):
        await ctx.tick()
        for name, value in desc.items():
            ctx.set(dut.unit.desc[name], value)
        ctx.set(dut.unit.start, 1)
        await ctx.tick()
        ctx.set(dut.unit.start, 0)
        for _ in range(LIMIT):
            assert not ctx.get(dut.unit.error)
            if ctx.get(dut.unit.done):
                break
            await ctx.tick()
        await ctx.tick()
        assert not ctx.get(dut.unit.done)
        ctx.set(dut.buffer.en, 1)
        for row in range(desc["n_outer"]):
            for i in range(desc["n_inner"]):
                word, part = divmod(desc["dst"] + row * desc["dst_stride"] + i, config.granules_per_word)
                ctx.set(dut.buffer.addr, word)
                await ctx.tick().repeat(READ_LATENCY)
                assert ctx.get(dut.buffer.data[16 * part]) == desc["addr"] + row * desc["stride"] + i, (row, i)

    simulate(dut, (drive, False), (memory, True))
    assert asked == list(bursts(desc))
    assert times["done"] == times["last"] + 1
    if not stalls:
        assert times["asked"] == [times["start"] + 1 + j for j in range(len(asked))]


def store_beats(desc, granule):
    """(port, beat address, strobes, the strobed bytes) in order."""
    units = CONFIG.units
    for t in range(desc["n_tok"]):
        for h in range(desc["n_head"]):
            for g in range(desc["n_gran"]):
                row = granule(desc["src"] + t * desc["src_tok"] + h * desc["src_head"] + g)
                key, head = desc["pos"] + t, desc["addr"] + h * desc["stride_head"]
                k, unit, slot = key & 15, (key >> 4) % units, (key >> 4) // units
                cached = head + slot * desc["stride_slot"] + g * desc["stride_gran"]
                match desc["mode"]:
                    case StMode.LIN:
                        yield (
                            units,
                            head + t * desc["stride_tok"] + g,
                            dict(enumerate(b"".join(v.to_bytes(4, "little") for v in row))),
                        )
                    case StMode.K:
                        yield unit, cached + (k >> 2), {(k & 3) * 16 + i: v & 255 for i, v in enumerate(row)}
                    case StMode.V:
                        for i in range(4):
                            yield unit, cached + i, {j * 16 + k: row[4 * i + j] & 255 for j in range(4)}
                    case StMode.SC:
                        scalar = enumerate(row[0].to_bytes(4, "little"))
                        yield units, head + (key >> 4), {k * 4 + i: v for i, v in scalar}


@pytest.mark.parametrize("config", [CONFIG, WIDE], ids=lambda c: c.name)
@pytest.mark.parametrize("stalls", [0, 1])
@pytest.mark.parametrize("mode", list(StMode))
def test_store(mode, stalls, config):
    rng = random.Random(mode * 2 + stalls)
    desc = {
        "mode": mode,
        "addr": 1000,
        "src": 3,
        "src_tok": 9,
        "src_head": 3,
        "pos": rng.randrange(100),
        "n_tok": 4,
        "n_head": 2,
        "n_gran": 3,
        "stride_tok": 64,
        "stride_head": 300,
        "stride_slot": 12345,
        "stride_gran": 1 << 20,
    }
    memory = [[rng.getrandbits(32) for _ in range(16)] for _ in range(64)]
    expected = list(store_beats(desc, memory.__getitem__))
    dut = StoreUnit(config)
    times, heads, beats = {}, [], []

    async def port(ctx, index, bus):
        owed, cycle, sent = [], 0, {"aw": 0, "w": 0}
        while True:
            for name in ("aw", "w"):
                ready = not stalls or rng.random() < 0.4
                ctx.set(getattr(bus, f"{name}ready"), ready)
                if ctx.get(getattr(bus, f"{name}valid")) and ready:
                    sent[name] += 1
                    if name == "aw":
                        heads.append((index, ctx.get(bus.awaddr) // 64, cycle))
                    else:
                        strobes, value = ctx.get(bus.wstrb), ctx.get(bus.wdata)
                        beats.append({i: value >> 8 * i & 255 for i in range(64) if strobes >> i & 1})
                    if len(owed) < min(sent.values()):
                        owed.append(cycle + 6)
            if index == CONFIG.units:
                for event in ("start", "done"):
                    if ctx.get(getattr(dut.unit, event)):
                        times[event] = cycle
            await ctx.tick()
            cycle += 1
            answered = sum(1 for x in owed if x == 0)
            due = answered < len(owed) and owed[answered] <= cycle
            ctx.set(bus.bvalid, due)
            if due:
                owed[answered] = 0
                times["last"] = max(times.get("last", 0), cycle)

    async def drive(ctx):
        ctx.set(dut.run, 1)
        ctx.set(dut.buffer.en, 1)
        for i, row in enumerate(memory):
            word, part = divmod(i, config.granules_per_word)
            ctx.set(dut.buffer.addr, word)
            for lane, value in enumerate(row):
                ctx.set(dut.buffer.data[16 * part + lane], value - (value >> 31 << 32))
            await ctx.tick()
        ctx.set(dut.buffer.en, 0)
        for name, value in desc.items():
            ctx.set(dut.unit.desc[name], value)
        ctx.set(dut.unit.start, 1)
        await ctx.tick()
        ctx.set(dut.unit.start, 0)
        for _ in range(LIMIT):
            assert not ctx.get(dut.unit.error)
            if ctx.get(dut.unit.done):
                break
            await ctx.tick()
        await ctx.tick()

    def bench(index, bus):
        async def run(ctx):
            await port(ctx, index, bus)

        return run

    simulate(dut, (drive, False), *((bench(i, bus), True) for i, bus in enumerate(dut.buses)))
    assert [(p, a) for p, a, _ in heads] == [(p, a) for p, a, _ in expected]
    assert beats == [data for *_, data in expected]
    assert times["done"] == times["last"] + ST_END
    if not stalls:
        assert [c for *_, c in heads] == [times["start"] + 1 + k + ST_PIPE for k in range(len(expected))]


@pytest.mark.parametrize(
    ("dut", "fields", "code"),
    [
        (LoadUnit, {"n_outer": 1, "n_inner": 0}, Error.ILLEGAL_DESCRIPTOR),
        (LoadUnit, {"n_outer": 0, "n_inner": 1}, Error.ILLEGAL_DESCRIPTOR),
        (LoadUnit, {"n_outer": 1, "n_inner": 1, "kind": len(LdKind)}, Error.ILLEGAL_DESCRIPTOR),
        (LoadUnit, {"n_outer": 1, "n_inner": 1, "kind": 1 << 31}, Error.ILLEGAL_DESCRIPTOR),
        (StoreUnit, {"n_tok": 1, "n_head": 1, "n_gran": 1, "kind": len(StKind)}, Error.ILLEGAL_DESCRIPTOR),
        (StoreUnit, {"n_tok": 1, "n_head": 1, "n_gran": 0}, Error.ILLEGAL_DESCRIPTOR),
        (StoreUnit, {"n_tok": 1, "n_head": 1, "n_gran": 1, "mode": 4}, Error.ILLEGAL_DESCRIPTOR),
        (StoreUnit, {"n_tok": 1, "n_head": 1, "n_gran": 1, "src": 1 << 31}, Error.BUFFER_RANGE),
    ],
)
def test_refused(dut, fields, code):
    """The cycle after the start reports it, and nothing goes out."""
    dut = dut(CONFIG)

    async def drive(ctx):
        if hasattr(dut, "run"):
            ctx.set(dut.run, 1)
        for name, value in fields.items():
            ctx.set(dut.unit.desc[name], value)
        ctx.set(dut.unit.start, 1)
        await ctx.tick()
        ctx.set(dut.unit.start, 0)
        assert ctx.get(dut.unit.error) and ctx.get(dut.unit.error_code) == code
        if hasattr(dut, "bus"):
            assert not ctx.get(dut.bus.arvalid)

    simulate(dut, (drive, False))
