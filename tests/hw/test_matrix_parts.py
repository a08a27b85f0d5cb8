"""Parts of the matrix units alone: windows and entries of the operand buffer, accumulators, the queue of rounds."""

import random
from dataclasses import replace

import numpy as np
import pytest
from amaranth.sim import Simulator

from hw.accumulator import Accumulators
from hw.operand_buffer import OperandBuffer
from hw.round import ROUND_KIND
from hw.round_queue import RoundQueue
from hw.spec import config as cfg
from hw.spec.timing import LOAD_INTERVAL, WEIGHT_BUFFER_ROUNDS
from hw.spec.weights import TABLE_ENTRIES

TINY = replace(cfg.get("tiny"), ob_blocks=64, acc_rows=4)
WRAP = 1 << 32


def simulate(dut, *testbenches):
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    for testbench in testbenches:
        sim.add_testbench(testbench)
    sim.run()


async def write_blocks(ctx, dut, blocks):
    per_word = dut.config.granules_per_word
    ctx.set(dut.write.en, 1)
    for word in range(len(blocks) // per_word):
        value = sum(block << 128 * i for i, block in enumerate(blocks[word * per_word : (word + 1) * per_word]))
        ctx.set(dut.write.addr, word)
        ctx.set(dut.write.data.as_value(), value)
        await ctx.tick()
    ctx.set(dut.write.en, 0)


@pytest.mark.parametrize(("units", "lanes"), [(1, 16), (2, 16), (2, 32), (4, 16), (8, 32), (16, 64), (32, 64)])
def test_operand_windows(units, lanes):
    """Windows from every block on, wrapping, and split reads from every multiple of units, mixed at random."""
    config = replace(TINY, units=units, lanes=lanes)
    dut, rng = OperandBuffer(config), random.Random(units)
    blocks = [rng.getrandbits(128) for _ in range(config.ob_blocks)]
    reads = [(address, 0) for address in range(config.ob_blocks)]
    reads += [(address, 1) for address in range(0, config.ob_blocks, units)]
    rng.shuffle(reads)
    got = []

    async def drive(ctx):
        await write_blocks(ctx, dut, blocks)
        for cycle in range(len(reads) + dut.latency):
            ctx.set(dut.en, cycle < len(reads))
            address, split = reads[cycle % len(reads)]
            ctx.set(dut.addr, address)
            ctx.set(dut.split, split)
            if cycle >= dut.latency:
                got.append((ctx.get(dut.window.as_value()), [ctx.get(dut.own[unit]) for unit in range(units)]))
            await ctx.tick()

    simulate(dut, drive)
    for (address, split), (window, own) in zip(reads, got, strict=True):

        def block(i, address=address):
            return blocks[(address + i) % len(blocks)]

        assert window == sum(block(i) << 128 * i for i in range(8)), (address, split)
        assert own == [block(unit * split) for unit in range(units)], (address, split)


def test_operand_entries():
    """Pairs of windows one after the other go out input by input, each block's entry in its low bits; then a window."""
    dut, rng = OperandBuffer(TINY), random.Random(3)
    blocks = [rng.getrandbits(128) for _ in range(TINY.ob_blocks)]
    pairs = [(rng.randrange(TINY.ob_blocks), rng.randrange(TINY.ob_blocks)) for _ in range(6)]
    got = []

    async def drive(ctx):
        await write_blocks(ctx, dut, blocks)
        for pair in [*pairs, None]:
            for cycle in range(LOAD_INTERVAL):
                ctx.set(dut.en, (cycle < 2) if pair else (cycle == 2))
                ctx.set(dut.first, bool(pair) and cycle == 0)
                ctx.set(dut.second, bool(pair) and cycle == 1)
                ctx.set(dut.addr, pair[cycle % 2] if pair else 5)
                got.append(ctx.get(dut.window.as_value()))
                await ctx.tick()

    simulate(dut, drive)

    def byte(address, place, i):
        return blocks[(address + place) % len(blocks)] >> 8 * i & 255

    for number, (one, other) in enumerate(pairs):
        for i in range(TABLE_ENTRIES):
            window = got[LOAD_INTERVAL * number + dut.latency + 1 + i]
            entries = [window >> 128 * place & 0xFFFF for place in range(8)]
            assert entries == [byte(one, place, i) | byte(other, place, i) << 8 for place in range(8)], (number, i)
    plain = got[LOAD_INTERVAL * len(pairs) + 2 + dut.latency]
    assert plain == sum(blocks[5 + place] << 128 * place for place in range(8))


@pytest.mark.parametrize("units", [1, 4])
def test_rounds_are_lined_up(units):
    """``arrived`` counts a round ``latency`` cycles after the last unit is done with it, whatever the others do; its
    entry is there from then on, until WEIGHT_BUFFER_ROUNDS rounds later."""
    dut, rng = RoundQueue(replace(TINY, units=units)), random.Random(units)
    n_rounds = 150
    rounds = [[rng.getrandbits(ROUND_KIND.size)] * units for _ in range(n_rounds)]
    for each in rng.sample(rounds, 40):
        each[rng.randrange(units)] ^= 1 << rng.randrange(ROUND_KIND.size)
    dones = [[] for _ in range(units)]
    arrived, freed = [], 0

    async def drive(ctx):
        nonlocal freed
        for cycle in range(3000):
            done, before = 0, len(arrived)
            for unit in range(units):
                number = len(dones[unit])
                if number < min(n_rounds, freed + WEIGHT_BUFFER_ROUNDS) and rng.random() < (0.9, 0.5, 0.7, 0.6)[unit]:
                    done |= 1 << unit
                    dones[unit].append(cycle)
                    ctx.set(dut.kinds[unit].as_value(), rounds[number][unit])
                else:
                    ctx.set(dut.kinds[unit].as_value(), rng.getrandbits(ROUND_KIND.size))
            ctx.set(dut.done, done)
            arrived.extend([cycle] * ((ctx.get(dut.arrived) - before) % (2 * WEIGHT_BUFFER_ROUNDS)))
            if freed < len(arrived):
                numbers = [rng.randrange(freed, len(arrived)) for _ in range(2)]
                for port, number in enumerate(numbers):
                    ctx.set(dut.at[port], number % WEIGHT_BUFFER_ROUNDS)
                for port, number in enumerate(numbers):
                    entry = ctx.get(dut.o[port].as_value())
                    agree = len(set(rounds[number])) == 1
                    assert entry == rounds[number][0] | agree << ROUND_KIND.size, (number, cycle)
                freed += rng.random() < 0.6
            if freed == n_rounds:
                return
            await ctx.tick()

    simulate(dut, drive)
    assert arrived == [max(cycles) + dut.latency for cycles in zip(*dones, strict=True)]


@pytest.mark.parametrize("chains", [1, 2, 8])
def test_accumulators_at_every_distance(chains):
    """Random steps on few rows, so that the same comes again after 1, 2, 3 and more cycles; bubbles; then drained."""
    config = replace(TINY, chains=chains)
    dut, rng = Accumulators(config), random.Random(chains)
    expected = np.zeros((2 * config.acc_rows, 16), np.int64)
    expected[:] = 0
    schedule, again = [], set()
    last = {}
    for cycle in range(1500):
        step = {
            "row": rng.randrange(6) if rng.random() < 0.5 else 0,
            "pass_": rng.randrange(config.passes) // 4,
            "first": int(rng.random() < 0.1),
            "sparse": 0,
            "token": 0,
        }
        sums = [rng.choice((rng.randrange(-(2**19), 2**19), 2**19 - 1)) for _ in range(2 * chains)]
        scales = [rng.choice((rng.randrange(-32, 32), 1, -32)) for _ in range(2 * chains)]
        valid = int(rng.random() < 0.8)
        schedule.append((step, sums, scales, valid))
        if valid:
            place = step["row"], step["pass_"]
            again.add(cycle - last.get(place, -99))
            last[place] = cycle
            part = expected[step["row"], step["pass_"] * 2 * chains :][: 2 * chains]
            part[:] = part * (not step["first"]) + np.array(sums) * scales
    assert {1, 2, 3, 4, 5} <= again
    rows = []

    async def drive(ctx):
        for cycle in range(len(schedule) + dut.latency + 1):
            step, _, _, valid = schedule[cycle] if cycle < len(schedule) else (schedule[0][0], None, None, 0)
            ctx.set(dut.i, step)
            ctx.set(dut.i_valid, valid)
            if 0 < cycle <= len(schedule):
                ctx.set(dut.sums, schedule[cycle - 1][1])
                ctx.set(dut.scales, schedule[cycle - 1][2])
            await ctx.tick()
        for row in range(2 * config.acc_rows):
            ctx.set(dut.drain, row)
            ctx.set(dut.drain_valid, 1)
            await ctx.tick().repeat(2)
            rows.append([ctx.get(dut.o[i]) for i in range(16)])

    simulate(dut, drive)
    wrapped = (expected + WRAP // 2) % WRAP - WRAP // 2
    np.testing.assert_array_equal(np.array(rows).reshape(wrapped.shape), wrapped)
