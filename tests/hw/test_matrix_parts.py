"""The matrix unit's memories alone: windows of the operand buffer, accumulators at every distance."""

import random
from dataclasses import replace

import numpy as np
import pytest
from amaranth.sim import Simulator

from hw.accumulator import Accumulators
from hw.operand_buffer import OperandBuffer
from hw.spec import config as cfg

TINY = replace(cfg.get("tiny"), ob_blocks=64, acc_rows=4)
WRAP = 1 << 32


def simulate(dut, *testbenches):
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    for testbench in testbenches:
        sim.add_testbench(testbench)
    sim.run()


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
        per_word = config.granules_per_word
        ctx.set(dut.write.en, 1)
        for word in range(config.ob_blocks // per_word):
            value = sum(block << 128 * i for i, block in enumerate(blocks[word * per_word : (word + 1) * per_word]))
            ctx.set(dut.write.addr, word)
            ctx.set(dut.write.data.as_value(), value)
            await ctx.tick()
        ctx.set(dut.write.en, 0)
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
