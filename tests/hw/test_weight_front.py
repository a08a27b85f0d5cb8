"""The weight front against a plain decoder of the stream format, and against its docstrings cycle for cycle."""

import random
from dataclasses import replace
from functools import cache
from itertools import chain

import numpy as np
import pytest
from amaranth.sim import Simulator

from hw.chain import CASCADE_GROUPS, N_GROUPS, skew
from hw.round import ROUND, ROUND_KIND
from hw.spec.config import BEAT_BYTES, get
from hw.spec.isa import StreamFormat
from hw.spec.timing import WEIGHT_BUFFER_ROUNDS
from hw.spec.weights import BITS, BLOCK, MAX_BUNDLE, NONZEROS, RUN_BYTES, RUN_FIELDS, Run, round_blocks
from hw.weight_buffer import READ_LATENCY
from hw.weight_front import FREE_LATE, WeightFront
from hw.weight_reader import WeightReader
from tests.hw.stream_model import (
    decode_raw,
    decode_stream,
    encode_header,
    encode_raw,
    encode_stream,
    random_bundle,
    random_round,
    random_run,
)

READABLE = 4
"""Cycles from the pop of a round's last beat to the first read of the round."""
KIND = [name for name, _ in ROUND_KIND]


def _bits(part, width, slots):
    """The bits of `o` that hold these slots of every row of a part."""
    at = ROUND[part].offset
    return sum(((1 << width) - 1) << at + width * (BLOCK * row + slot) for row in range(BLOCK) for slot in slots)


def _mask(part):
    return ((1 << ROUND[part].width) - 1) << ROUND[part].offset


PARTS = {part: (READ_LATENCY, _mask(part)) for part in ("blocks", "scales")} | {
    f"group {group}": (
        READ_LATENCY + skew(group, CASCADE_GROUPS),
        _bits("weights", 8, (2 * group, 2 * group + 1)) | _bits("indices", 4, (2 * group, 2 * group + 1)),
    )
    for group in range(N_GROUPS)
}
"""Parts of `o`: cycles from a read to the part, and its bits."""


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
        self.beats += tagged(data, raw)
        return self


def tagged(data, raw=0):
    """The beats of one RD instruction."""
    return [
        {"data": int.from_bytes(data[at : at + BEAT_BYTES], "little"), "first": int(at == 0 and not raw), "raw": raw}
        for at in range(0, len(data), BEAT_BYTES)
    ]


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
    """Offers beats with gaps; reads rounds that are there in any order, again and again, each at least once, and frees
    the oldest. Records every pop, stall and free, and what was read when."""

    def __init__(self, beats, seed=0, gaps=0.0, lazy=0.0, hurry=0.5, eager=0.9):
        """gaps: chance that no beat is offered; lazy: that nothing is freed; hurry: that the read is that of the oldest
        round not read yet; eager: that any is read."""
        self.beats, self.gaps, self.lazy, self.hurry, self.eager = beats, gaps, lazy, hurry, eager
        self.rng = random.Random(seed)
        self.offered, self.pops, self.stalls, self.frees, self.dones = [], [], [], [], []
        self.kinds, self.seen, self.seen_blocks = [], {}, []
        self.n_read = 0
        self.reading = self.loading = None
        self.reads, self.last_read, self.parts = {}, {}, {}
        """Cycle -> round of every read; round -> cycle of its latest; what each part of `o` shows."""
        self.error_at = None

    def run(self, n_rounds, extra=0):
        """Until that many rounds are freed and all beats popped, and for some more cycles."""
        global bench
        sim = simulator()
        if bench is not None:
            sim.reset()
        bench, self.n_rounds, self.extra = self, n_rounds, extra
        sim.run()
        return self

    async def process(self, ctx, dut, limit=4000):
        self.dut = dut
        for cycle in range(limit):
            await self._cycle(ctx, cycle)
            if len(self.pops) == len(self.beats) and len(self.frees) >= self.n_rounds:
                self.extra -= 1
                if self.extra < 0:
                    return
        raise AssertionError(f"{len(self.pops)} of {len(self.beats)} beats popped, {len(self.frees)} rounds freed")

    async def _cycle(self, ctx, cycle):
        dut, rng = self.dut, self.rng
        valid = len(self.pops) < len(self.beats) and (rng.random() >= self.gaps or self._waiting(cycle))
        ctx.set(dut.i_valid, valid)
        if valid:
            ctx.set(dut.i, self.beats[len(self.pops)])
            self.offered.append(cycle)
        self._compare(ctx, cycle)
        self._use(ctx, cycle)
        if ctx.get(dut.stall):
            self.stalls.append(cycle)
        if self.error_at is None and ctx.get(dut.error):
            self.error_at = cycle
        if ctx.get(dut.done):
            self.dones.append(cycle)
            self.kinds.append({name: ctx.get(dut.kind[name]) for name in KIND})
        if ctx.get(dut.pop):
            self.pops.append(cycle)
        await ctx.tick()

    def _waiting(self, cycle):
        """The beat was offered in the last cycle and not popped: a FIFO goes on offering it."""
        return bool(self.offered) and self.offered[-1] == cycle - 1 and cycle - 1 not in self.pops[-1:]

    def _use(self, ctx, cycle):
        """Reads a round, or its blocks, and frees the oldest once it has been read."""
        dut, rng = self.dut, self.rng
        there = range(len(self.frees), sum(done + READABLE <= cycle for done in self.dones))
        self.reading = self.loading = None
        # The oldest is read again now and then only: it is not freed before it has rested.
        again = there if rng.random() < 0.2 else [number for number in there if number > len(self.frees)]
        if self.n_read in there and (rng.random() < self.hurry or not again):
            again = [self.n_read]
        if again and rng.random() < self.eager:
            self.reading = rng.choice(again)
            self.n_read += self.reading == self.n_read
            self.reads[cycle] = self.reading
            self.last_read[self.reading] = cycle
            ctx.set(dut.at, self.reading % WEIGHT_BUFFER_ROUNDS)
        if there and rng.random() < 0.5:
            self.loading = rng.choice(there)
            ctx.set(dut.load_at, self.loading % WEIGHT_BUFFER_ROUNDS)
        oldest = len(self.frees)
        free = self.n_read > oldest and cycle - self.last_read[oldest] >= FREE_LATE and rng.random() >= self.lazy
        if free:
            self.frees.append(cycle)
        ctx.set(dut.read, self.reading is not None)
        ctx.set(dut.load, self.loading is not None)
        ctx.set(dut.free, free)

    def _compare(self, ctx, cycle):
        """Every part of ``o`` keeps what was read last, as late as its group: looked at in every cycle."""
        o = ctx.get(self.dut.o.as_value())
        for part, (late, mask) in PARTS.items():
            if (number := self.reads.get(cycle - late)) is not None:
                self.parts[part] = o & mask
                assert o & mask == self.seen.setdefault((number, part), o & mask), f"round {number}: {part} differs"
            assert o & mask == self.parts.get(part, o & mask), f"{part} changed without a read"
        if self.loading is not None:
            self.seen_blocks.append((self.loading, [ctx.get(self.dut.blocks[group]) for group in range(8)]))


def fields(value):
    """(int8[16, 16], uint4[16, 16], blocks, int6[16] scales) of `o` as an integer."""
    parts = {name: value >> field.offset & (1 << field.width) - 1 for name, field in ROUND}
    indices = np.frombuffer(parts["indices"].to_bytes(128, "little"), np.uint8)
    return (
        np.frombuffer(parts["weights"].to_bytes(256, "little"), np.int8).reshape(BLOCK, BLOCK),
        np.stack([indices & 15, indices >> 4], 1).reshape(BLOCK, BLOCK),
        [parts["blocks"] >> 3 * group & 7 for group in range(8)],
        tuple((parts["scales"] >> 6 * row & 63 ^ 32) - 32 for row in range(BLOCK)),
    )


def check_blocks(got, expected, number):
    for group, (block, wanted) in enumerate(zip(got, expected.blocks, strict=True)):
        assert wanted in (None, block), f"round {number}, group {group}: got block {block}, expected {wanted}"


def check_contents(bench, rounds):
    assert bench.kinds == [each.kind for each in rounds]
    assert set(bench.seen) == {(number, part) for number in range(len(rounds)) for part in PARTS}
    for number, expected in enumerate(rounds):
        weights, indices, blocks, scales = fields(sum(bench.seen[number, part] for part in PARTS))
        np.testing.assert_array_equal(weights, expected.weights, err_msg=f"round {number}")
        assert scales == tuple(expected.scales), f"round {number}"
        check_blocks(blocks, expected, number)
        if expected.kind["sparse"]:
            for row, used in enumerate(expected.used):
                np.testing.assert_array_equal(indices[row, used], np.array(expected.indices)[row, used])
    for number, blocks in bench.seen_blocks:
        check_blocks(blocks, rounds[number], number)


def check_timing(bench, rounds):
    """Pops, stalls and completions are those of the docstrings for these offers and frees."""
    completions, frees, offered = {each.beat for each in rounds}, set(bench.frees), set(bench.offered)
    held, pops, stalls, dones = 0, [], [], []
    for cycle in range(bench.offered[-1] + 1):
        change = -(cycle in frees)
        if cycle in offered:
            if held < WEIGHT_BUFFER_ROUNDS:
                if len(pops) in completions:
                    dones.append(cycle)
                    change += 1
                pops.append(cycle)
            else:
                stalls.append(cycle)
        held += change
    assert (bench.pops, bench.stalls, bench.dones) == (pops, stalls, dones)


def check(beats, seed, **options):
    print("seed", seed, options)
    bench = Bench(beats.beats, seed, **options).run(len(beats.rounds), extra=12)
    check_contents(bench, beats.rounds)
    check_timing(bench, beats.rounds)
    assert bench.error_at is None
    return bench


def mixed_run(rng, **options):
    return random_run(rng, **(_mixed(rng, NONZEROS) | {"bits": rng.choice(BITS)} | options))


def mixed_bundle(rng, n_runs, **options):
    steps = sorted(rng.sample(range(MAX_BUNDLE), n_runs))
    return random_bundle(rng, steps, **(_mixed(rng, NONZEROS[1:]) | options))


def _mixed(rng, nonzeros):
    return {
        "nonzeros": rng.choice(nonzeros),
        "window": rng.randrange(512),
        "blocks": rng.randrange(1, 256),
        "last": rng.random() < 0.5,
    }


@pytest.mark.parametrize("nonzeros", NONZEROS)
@pytest.mark.parametrize("bits", BITS)
def test_every_format(bits, nonzeros):
    """Whole windows, partial rounds and single blocks of one format, alone and in bundles, as fast as it goes."""
    seed = 100 * bits + nonzeros
    rng = random.Random(seed)
    each = round_blocks(nonzeros)
    partial = [rng.sample(range(8), min(n, 8)) for n in (each + 1, 2 * each - 1, 1, 3)]
    masks = [0xFF] + [sum(1 << i for i in blocks) for blocks in partial]
    if nonzeros == 16:
        masks = [0xFF, 0b10, 0b1011]
    runs = [mixed_run(rng, bits=bits, nonzeros=nonzeros, blocks=blocks) for blocks in masks]
    if nonzeros < 16:
        runs += [
            run
            for n_runs, blocks in zip((2, 3), masks, strict=False)
            for run in mixed_bundle(rng, n_runs, bits=(bits,), nonzeros=nonzeros, blocks=blocks)
        ]
    bench = check(Beats().stream(*runs, per_header=16), seed)
    assert bench.pops == list(range(len(bench.beats)))
    assert not bench.stalls


@pytest.mark.parametrize("nonzeros", NONZEROS[1:])
def test_bundles_of_mixed_precisions(nonzeros):
    """Of every size, under headers of one to four beats; high bits of 3-bit rounds are shared across steps."""
    rng = random.Random(nonzeros)
    for n_runs in (16, 2, 5, 4, 8, 13, 3, 9):
        blocks = rng.choice((1 << rng.randrange(8), rng.randrange(1, 256)))
        bits = rng.choice((BITS, (3,), (3, 8), (3, 2)))
        beats = Beats().stream(*mixed_bundle(rng, n_runs, nonzeros=nonzeros, blocks=blocks, bits=bits), per_header=16)
        bench = check(beats, n_runs)
        assert bench.pops == list(range(len(bench.beats)))


@pytest.mark.parametrize("seed", range(4))
def test_mixed_runs(seed):
    """Runs and bundles under headers of one to four beats, padding and RAW blocks, with gaps and late frees."""
    rng = random.Random(seed)
    beats = Beats()
    for _ in range(3):
        runs = [[mixed_run(rng)] if rng.random() < 0.5 else mixed_bundle(rng, rng.randint(2, 7)) for _ in range(4)]
        for at in sorted(rng.sample(range(len(runs) + 1), 2), reverse=True):
            runs[at:at] = [[None] * rng.randint(1, 2)]
        beats.stream(*chain.from_iterable(runs), per_header=rng.choice((4, 7, 16)))
        beats.raw(*(random_round(rng) for _ in range(rng.randint(0, 3))))
    options = [{"gaps": 0.3}, {"lazy": 0.8}, {"gaps": 0.2, "lazy": 0.7}, {"lazy": 0.95, "hurry": 0.05}]
    check(beats, seed, **options[seed])


def test_buffer_fills():
    """A round of one beat a cycle: WEIGHT_BUFFER_ROUNDS are held, then a beat is popped behind every free."""
    rng = random.Random(5)
    runs = [random_run(rng, 2, 16, window=i, last=i % 2 == 1) for i in range(12)]
    bench = check(Beats().stream(*runs), 5, lazy=0.85)
    assert len(bench.stalls) > 200


def test_a_place_is_written_when_its_round_has_just_been_read():
    """The buffer is full and rounds are read slowly: each is freed as soon as it may be, and a beat waits."""
    rng = random.Random(8)
    runs = [random_run(rng, 2, 16, window=i, last=i % 2 == 1) for i in range(12)]
    bench = check(Beats().stream(*runs), 8, hurry=1.0, eager=0.3)
    late = [free - max(at for at, number in bench.reads.items() if number == i) for i, free in enumerate(bench.frees)]
    assert late.count(FREE_LATE) > 50 and len(bench.stalls) > 50


def test_single_rounds_of_one_beat():
    """The shortest runs there are: the next slot is there in the next cycle."""
    rng = random.Random(6)
    runs = [random_run(rng, 2, 16, window=i, blocks=1 << i % 8) for i in range(8)]
    bench = check(Beats().stream(*runs, *mixed_bundle(rng, 3, bits=(2,), nonzeros=1), *runs), 6)
    assert bench.pops == list(range(len(bench.beats)))


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
    """What lies behind it is not looked at, not even after a RAW block; `more` there does not prolong the header."""
    rng = random.Random(10)
    run = random_run(rng, 4, 4)
    data = bytearray(encode_stream([run]))
    data[32:64] = rng.randbytes(32)
    data[51] |= 0x80
    data[63] |= 0x80
    check(Beats().stream_bytes(bytes(data)).raw(random_round(rng)).stream_bytes(bytes(data)), 10)


# Errors


def errors(beats, cycles=20):
    """The cycle after the pop of which beat `error` rises, or None; the front goes on taking beats."""
    bench = Bench(beats).run(0, extra=cycles)
    assert bench.pops == list(range(len(beats)))
    return None if bench.error_at is None else bench.error_at - 1


def changed(data, slot, **values):
    """The bytes with fields of a slot's descriptor changed."""
    at, size = RUN_BYTES * slot, 4
    word, bit = int.from_bytes(data[at : at + size], "little"), 0
    for name, width in RUN_FIELDS:
        if name in values:
            word = word & ~((1 << width) - 1 << bit) | values[name] << bit
        bit += width
    return data[:at] + word.to_bytes(size, "little") + data[at + size :]


DENSE = [random_run(random.Random(11), 4, 16, blocks=1) for _ in range(4)]
BUNDLE = random_bundle(random.Random(12), range(0, 12, 2), nonzeros=4, window=3, blocks=5)
"""Six runs: a header of two beats."""


@pytest.mark.parametrize("fault", [{"magic": 0xB}, {"magic": 0}, {"nonzeros": 5}, {"blocks": 0}, {"more": 1}], ids=str)
@pytest.mark.parametrize("slot", range(4))
def test_bad_slots(fault, slot):
    data = changed(encode_stream(DENSE), slot, **fault)
    with pytest.raises(ValueError):
        Run.decode(data[RUN_BYTES * slot : RUN_BYTES * (slot + 1)])
    assert errors(tagged(data)) == 0


@pytest.mark.parametrize("fault", [{"nonzeros": 3}, {"last": 1}, {"window": 2}, {"blocks": 4}, {"step": 1}], ids=str)
@pytest.mark.parametrize("slot", range(1, 6))
def test_slots_that_are_not_of_their_bundle(fault, slot):
    """A field that all runs share, or a step that does not ascend: known with the beat that has the slot."""
    fault = {"step": 2 * slot - 2} if "step" in fault else fault
    data = encode_stream(BUNDLE)
    assert errors(tagged(data)) is None
    assert errors(tagged(changed(data, slot, **fault))) == slot // 4


def test_bundles_that_do_not_end():
    data = encode_stream(BUNDLE)
    for slot in range(1, 6):
        zero = data[: RUN_BYTES * slot] + bytes(RUN_BYTES) + data[RUN_BYTES * (slot + 1) :]
        assert errors(tagged(zero)) == slot // 4, slot
    assert errors(tagged(changed(data, 5, more=1))) == 1  # a zero slot follows
    assert errors(tagged(data[:BEAT_BYTES] + bytes(BEAT_BYTES))) == 1


def test_a_header_has_at_most_sixteen_slots():
    """More are an error with the fourth beat, whose last slot says `more`."""
    bundle = random_bundle(random.Random(13), range(16), nonzeros=1, blocks=1)
    header = encode_header([each.run for each in bundle])
    assert errors(tagged(encode_stream(bundle, per_header=16))) is None
    assert errors(tagged(changed(header, 15, more=1) + bytes(BEAT_BYTES))) == 3
    pairs = [replace(bundle[i % 2].run, step=i % 2, more=i % 2 == 0) for i in range(16)]
    shifted = [replace(bundle[2].run, more=False), *pairs[:15]]
    assert errors(tagged(encode_header(shifted) + bytes(BEAT_BYTES))) == 3


def test_a_slot_without_blocks():
    word = int.from_bytes(encode_stream(DENSE)[:BEAT_BYTES], "little")
    assert errors([{"data": word & ~(0xFF << 19), "first": 1, "raw": 0}]) == 0
    assert errors([{"data": 1 << 127, "first": 1, "raw": 0}]) == 0
    assert errors([{"data": 1 << 255, "first": 1, "raw": 0}]) is None


def test_beats_out_of_place():
    rng = random.Random(14)
    stream = Beats().stream(random_run(rng, 8, 16, blocks=3)).beats
    bundle = tagged(encode_stream(BUNDLE))
    raw = Beats().raw(random_round(rng)).beats
    stray = {"data": 0, "first": 0, "raw": 0}
    assert errors(stream + raw + stream) is None
    assert errors(stream[:3] + stream) == 3  # an instruction starts inside a run
    assert errors(stream[:3] + raw) == 3  # RAW inside a run
    assert errors(stream[:1] + raw) == 1
    assert errors(bundle[:1] + bundle[:1]) == 1  # an instruction starts inside a header
    assert errors(bundle[:1] + raw) == 1  # RAW inside a header
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
