"""The weight front against a plain decoder of the stream format, and against docs/machine.md cycle for cycle."""

import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from amaranth.sim import Simulator

from hw.spec.config import BEAT_BYTES, get
from hw.spec.isa import StreamFormat
from hw.spec.timing import WEIGHT_BUFFER_ROUNDS
from hw.spec.weights import BITS, NONZEROS, Run, round_blocks
from hw.weight_front import WeightFront
from hw.weight_reader import WeightReader
from tests.hw.stream_model import decode_raw, decode_stream, encode_raw, encode_stream, random_round, random_run

READ_DELAY = 3
SETTLE = 3


class Beats:
    """RD instructions one after the other: beats with their tags, and the rounds they hold."""

    def __init__(self):
        self.beats, self.rounds = [], []

    def stream(self, *contents, per_header=4):
        return self.stream_bytes(encode_stream(contents, per_header))

    def stream_bytes(self, data):
        return self._add(data, decode_stream(data), raw=0)

    def raw(self, *blocks):
        data = encode_raw(blocks)
        return self._add(data, decode_raw(data), raw=1)

    def _add(self, data, rounds, raw):
        self.rounds += [replace(each, beat=each.beat + len(self.beats)) for each in rounds]
        for at in range(0, len(data), BEAT_BYTES):
            value = int.from_bytes(data[at : at + BEAT_BYTES], "little")
            self.beats.append({"data": value, "first": int(at == 0 and not raw), "raw": raw})
        return self


bench = None


@cache
def simulator():
    """One for all tests (it takes seconds to build), which runs what `bench` is."""
    dut = WeightFront()
    sim = Simulator(dut)
    sim.add_clock(1e-6)

    async def process(ctx):
        await bench.process(ctx, dut)

    sim.add_testbench(process)
    return sim


class Bench:
    """Offers beats with gaps, takes and reads with delays; records every pop, take, stall and round."""

    def __init__(self, beats, seed=0, gaps=0.0, lazy=0.0, delay=(READ_DELAY, READ_DELAY)):
        """lazy: chance that a full round is not taken, or whether by cycle; delay: cycles from a take to its read."""
        self.beats, self.lazy, self.gaps, self.delay = beats, lazy, gaps, delay
        self.rng = random.Random(seed)
        self.offered, self.pops, self.stalls, self.fulls, self.takes, self.reads = [], [], [], [], [], []
        self.kinds, self.rounds = [], []
        self.error_at = None

    def run(self, n_rounds, extra=0):
        """Until that many rounds are read and all beats popped, and for some more cycles."""
        global bench
        sim = simulator()
        if bench is not None:
            sim.reset()
        bench, self.n_rounds, self.extra = self, n_rounds, extra
        sim.run()
        return self

    async def process(self, ctx, dut, limit=2000):
        self.dut = dut
        for cycle in range(limit):
            await self._cycle(ctx, cycle)
            if len(self.pops) == len(self.beats) and len(self.rounds) >= self.n_rounds:
                self.extra -= 1
                if self.extra < 0:
                    return
        raise AssertionError(f"{len(self.pops)} of {len(self.beats)} beats popped, {len(self.rounds)} rounds")

    async def _cycle(self, ctx, cycle):
        dut, rng = self.dut, self.rng
        left = len(self.pops) < len(self.beats)
        valid = left and (rng.random() >= self.gaps or self._waiting(cycle))
        ctx.set(dut.i_valid, valid)
        if valid:
            ctx.set(dut.i, self.beats[len(self.pops)])
            self.offered.append(cycle)
        full = ctx.get(dut.full)
        lazy = self.lazy(cycle) if callable(self.lazy) else rng.random() < self.lazy
        take = full and not lazy
        if take:
            self.kinds.append({name: ctx.get(dut.round[name]) for name in ("sparse", "raw", "last", "window")})
            earliest = self.reads[-1] + 1 if self.reads else 0
            self.reads.append(max(earliest, cycle + rng.randint(*self.delay)))
            self.takes.append(cycle)
        if full:
            self.fulls.append(cycle)
        ctx.set(dut.take, take)
        if self.reads and cycle - 1 in self.reads[-20:]:
            self.rounds.append(None)
        self._compare(ctx)
        ctx.set(dut.read, cycle in self.reads[-20:])
        if ctx.get(dut.stall):
            self.stalls.append(cycle)
        if self.error_at is None and ctx.get(dut.error):
            self.error_at = cycle
        if ctx.get(dut.pop):
            self.pops.append(cycle)
        await ctx.tick()

    def _waiting(self, cycle):
        """The beat was offered in the last cycle and not popped: a FIFO goes on offering it."""
        return bool(self.offered) and self.offered[-1] == cycle - 1 and cycle - 1 not in self.pops[-1:]

    def _compare(self, ctx):
        """``o`` keeps its round: looked at in every cycle."""
        if self.rounds:
            now = ctx.get(self.dut.o.as_value())
            assert self.rounds[-1] in (None, now), "o changed without a read"
            self.rounds[-1] = now


def fields(value):
    """(int8[16, 16], uint4[16, 16], blocks, (sparse, single), int6[16] scales) of `o` as an integer."""
    data = np.frombuffer(value.to_bytes(400, "little"), np.uint8)
    nibbles = np.stack([data[256:384] & 15, data[256:384] >> 4], 1)
    tail = value >> 8 * 384
    return (
        data[:256].view(np.int8).reshape(16, 16),
        nibbles.reshape(16, 16),
        [tail >> 3 * g & 7 for g in range(8)],
        (tail >> 24 & 1, tail >> 25 & 1),
        tuple(((tail >> 26 + 6 * row & 63) ^ 32) - 32 for row in range(16)),
    )


def check_contents(bench, rounds):
    assert bench.kinds == [each.kind for each in rounds]
    assert len(bench.rounds) == len(rounds)
    for number, (got, expected) in enumerate(zip(bench.rounds, rounds, strict=True)):
        weights, indices, blocks, form, scales = fields(got)
        np.testing.assert_array_equal(weights, expected.weights, err_msg=f"round {number}")
        assert (form, scales) == ((expected.kind["sparse"], expected.single), tuple(expected.scales))
        if expected.kind["sparse"]:
            for row, used in enumerate(expected.used):
                np.testing.assert_array_equal(indices[row, used], np.array(expected.indices)[row, used])
        assert [got for got, block in zip(blocks, expected.blocks, strict=True) if block is not None] == [
            block for block in expected.blocks if block is not None
        ]


def check_timing(bench, rounds):
    """Pops, stalls and full cycles are those of docs/machine.md for these offers and takes."""
    completions, takes = {each.beat for each in rounds}, set(bench.takes)
    held, pops, stalls, fulls = 0, [], [], []
    offered = set(bench.offered)
    for cycle in range(max(bench.offered[-1], bench.fulls[-1]) + 1):
        if held:
            fulls.append(cycle)
        change = -(cycle in takes)
        if cycle in offered:
            if held < WEIGHT_BUFFER_ROUNDS:
                change += len(pops) in completions
                pops.append(cycle)
            else:
                stalls.append(cycle)
        held += change
    assert (bench.pops, bench.stalls, bench.fulls) == (pops, stalls, fulls)


def check(beats, seed, **options):
    print("seed", seed, options)
    bench = Bench(beats.beats, seed, **options).run(len(beats.rounds), extra=SETTLE)
    check_contents(bench, beats.rounds)
    check_timing(bench, beats.rounds)
    assert bench.error_at is None
    return bench


def mixed_run(rng, **options):
    kind = {
        "bits": rng.choice(BITS),
        "nonzeros": rng.choice(NONZEROS),
        "window": rng.randrange(512),
        "blocks": rng.randrange(1, 256),
        "last": rng.random() < 0.5,
    }
    return random_run(rng, **(kind | options))


@pytest.mark.parametrize("nonzeros", NONZEROS)
@pytest.mark.parametrize("bits", BITS)
def test_every_format(bits, nonzeros):
    """Whole windows, partial rounds and single blocks of one format, as fast as it goes."""
    seed = 100 * bits + nonzeros
    rng = random.Random(seed)
    each = round_blocks(nonzeros)
    partial = [rng.sample(range(8), min(n, 8)) for n in (each + 1, 2 * each - 1, 1, 3)]
    masks = [0xFF] + [sum(1 << i for i in blocks) for blocks in partial]
    if nonzeros == 16:
        masks = [0xFF, 0b10, 0b1011]
    runs = [mixed_run(rng, bits=bits, nonzeros=nonzeros, blocks=blocks) for blocks in masks]
    bench = check(Beats().stream(*runs), seed)
    assert bench.pops == list(range(len(bench.beats)))
    assert not bench.stalls


@pytest.mark.parametrize("seed", range(4))
def test_mixed_runs(seed):
    """Instructions of mixed runs, short and padding headers and RAW blocks, with gaps, late takes and reads."""
    rng = random.Random(seed)
    beats = Beats()
    for _ in range(3):
        runs = [mixed_run(rng) for _ in range(rng.randint(2, 6))]
        for at in sorted(rng.sample(range(len(runs) + 1), 2), reverse=True):
            runs[at:at] = [None] * rng.randint(1, 2)
        beats.stream(*runs).raw(*(random_round(rng) for _ in range(rng.randint(0, 3))))
    options = [
        {"gaps": 0.3},
        {"lazy": 0.7},
        {"gaps": 0.2, "lazy": 0.5, "delay": (3, 6)},
        {"lazy": 0.9, "delay": (3, 5)},
    ]
    check(beats, seed, **options[seed])


def test_buffer_fills():
    """A round of one beat a cycle: eight are held, then a beat is popped after every take."""
    rng = random.Random(5)
    runs = [random_run(rng, 2, 16, window=i, last=i % 2 == 1) for i in range(12)]
    bench = check(Beats().stream(*runs), 5, lazy=0.85, delay=(3, 4))
    assert len(bench.stalls) > 300


def test_takes_in_every_cycle():
    """Eight rounds held, then taken back to back and read late: none is overwritten."""
    rng = random.Random(6)
    beats = Beats().stream(*(random_run(rng, 2, 16, window=i) for i in range(6)))
    bench = check(beats, 6, delay=(6, 6), lazy=lambda cycle: cycle % 24 < 14)
    assert 8 * [1] in [np.diff(bench.takes)[i : i + 8].tolist() for i in range(40)]


def test_masks_with_other_counts():
    """Fewer bits than slots: `mask_inputs`; more: the first eight."""
    rng = random.Random(7)
    run = random_run(rng, 2, 8)
    masks = [
        rng.choice((rng.getrandbits(16), rng.getrandbits(16) & rng.getrandbits(16), 0, 0xFFFF, 1 << 15))
        for _ in range(4 * 2 * 16)
    ]
    run.masks = np.array(masks, np.uint16).reshape(4, 2, 16)
    check(Beats().stream(run, random_run(rng, 2, 8)), 7)


def test_scales_of_the_whole_range():
    """No encoder writes all of them."""
    rng = random.Random(8)
    data = bytearray()
    for bits in BITS[1:]:
        part = bytearray(encode_stream([random_run(rng, bits, 16, blocks=0b101)]))
        part[4:16] = rng.randbytes(12)
        data += part
    check(Beats().stream_bytes(bytes(data)), 8)


def test_eight_bits_ignore_scales():
    rng = random.Random(9)
    data = bytearray(encode_stream([random_run(rng, 8, 1), random_run(rng, 8, 16, blocks=1)]))
    data[4:16] = data[20:32] = rng.randbytes(12)
    check(Beats().stream_bytes(bytes(data)), 9)


def test_header_ends_at_a_zero_slot():
    """What lies behind it is not looked at, not even after a RAW block."""
    rng = random.Random(10)
    run = random_run(rng, 4, 4)
    data = bytearray(encode_stream([run]))
    data[32:64] = rng.randbytes(32)
    check(Beats().stream_bytes(bytes(data)).raw(random_round(rng)).stream_bytes(bytes(data)), 10)


# Errors: (what is wrong, header slot, byte, value) of the second of two runs
BAD_SLOTS = [("magic", 0, 0x0B), ("magic", 0, 0x00), ("nonzeros", 1, 0x01), ("zero", 3, 0x80), ("zero", 3, 0x08)]


def errors(beats, cycles=20):
    """The cycle after the pop of which beat `error` rises, or None; the front goes on taking beats."""
    bench = Bench(beats).run(0, extra=cycles)
    assert bench.pops == list(range(len(beats)))
    return None if bench.error_at is None else bench.error_at - 1


@pytest.mark.parametrize("name, byte, value", BAD_SLOTS)
@pytest.mark.parametrize("slot", range(4))
def test_bad_slots(name, byte, value, slot):
    rng = random.Random(11)
    data = bytearray(encode_stream([random_run(rng, 4, 16, blocks=1) for _ in range(4)]))
    at = 16 * slot + byte
    data[at] = value if name == "magic" else data[at] | {"nonzeros": 0x01, "zero": value}[name]
    if name == "nonzeros":
        data[16 * slot] |= 0x40  # code 5
    with pytest.raises(ValueError):
        Run.decode(bytes(data[16 * slot : 16 * slot + 16]))
    beats = [{"data": int.from_bytes(data[i : i + 64], "little"), "first": i == 0, "raw": 0} for i in range(0, 576, 64)]
    assert errors(beats) == 0


def test_a_slot_without_blocks():
    word = int.from_bytes(encode_stream([random_run(random.Random(12), 4, 16, blocks=1)])[:64], "little")
    assert errors([{"data": word & ~(0xFF << 19), "first": 1, "raw": 0}]) == 0
    assert errors([{"data": 1 << 127, "first": 1, "raw": 0}]) == 0
    assert errors([{"data": 1 << 255, "first": 1, "raw": 0}]) is None


def test_beats_out_of_place():
    rng = random.Random(13)
    stream = Beats().stream(random_run(rng, 8, 16, blocks=3)).beats
    raw = Beats().raw(random_round(rng)).beats
    stray = {"data": 0, "first": 0, "raw": 0}
    assert errors(stream + raw + stream) is None
    assert errors(stream[:3] + stream) == 3  # an instruction starts inside a run
    assert errors(stream[:3] + raw) == 3  # RAW inside a run
    assert errors(stream[:1] + raw) == 1
    assert errors(raw[:3] + stream) == 3  # an instruction starts inside a RAW block
    assert errors([*raw[:1], stray]) == 1  # not RAW, inside a RAW block
    assert errors([*raw, stray]) is None  # padding


# Tags


def test_reader_tags():
    """Only the first beat of a STREAM instruction is `first`, all beats of a RAW one are `raw`."""
    instructions = [(StreamFormat.STREAM, 2, 40), (StreamFormat.RAW, 3, 5), (StreamFormat.STREAM, 1, 3)]
    expected = [
        (int(fmt == StreamFormat.STREAM and i == 0), int(fmt == StreamFormat.RAW))
        for fmt, n_outer, n_inner in instructions
        for i in range(n_outer * n_inner)
    ]
    dut = WeightReader(get("small"))
    tags = []

    async def dispatch(ctx):
        for fmt, n_outer, n_inner in instructions:
            for name, value in {"addr": 50, "stride": 64, "n_outer": n_outer, "n_inner": n_inner, "fmt": fmt}.items():
                ctx.set(dut.desc[name], value)
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            await ctx.tick().until(~dut.active)

    async def answer(ctx):
        pending = []
        ctx.set(dut.axi.arready, 1)
        while True:
            ctx.set(dut.axi.rvalid, bool(pending))
            ctx.set(dut.axi.rlast, pending.pop(0) if pending else 0)
            _, _, valid, length = await ctx.tick().sample(dut.axi.arvalid, dut.axi.arlen)
            if valid:
                pending += [i == length for i in range(length + 1)]

    async def collect(ctx):
        ctx.set(dut.pop, 1)
        while len(tags) < len(expected):
            _, _, valid, first, raw = await ctx.tick().sample(dut.o_valid, dut.o.first, dut.o.raw)
            if valid:
                tags.append((first, raw))

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    for process, background in ((dispatch, False), (collect, False), (answer, True)):
        sim.add_testbench(process, background=background)
    sim.run()
    assert tags == expected
