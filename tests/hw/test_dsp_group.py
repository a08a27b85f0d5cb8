"""A group of two multipliers against a plain sum of products."""

import random

import pytest
from amaranth.hdl import signed
from amaranth.lib import data
from amaranth.sim import Simulator

from hw.dsp_group import ENTRY, GROUP_LATENCY, HALVES, LANE_BITS, WRITE, DSPGroup, indices_layout, weights_layout
from hw.spec.config import BLOCK

LAYOUTS = {
    "acts": data.ArrayLayout(signed(8), 2),
    "entry": ENTRY,
    "write": WRITE,
    "weights": weights_layout(2),
    "indices": indices_layout(2),
}


def draw(rng):
    """A step, and an entry that comes with it in half of the cycles."""
    weight = lambda: rng.choice((-127, 127, rng.randint(-127, 127)))  # noqa: E731
    act = lambda: rng.choice((-128, 127, rng.randint(-128, 127)))  # noqa: E731
    return {
        "acts": [act() for _ in range(2)],
        "entry": [act() for _ in range(2)],
        "write": {"en": rng.randrange(2), "half": rng.randrange(2), "at": rng.randrange(BLOCK)},
        "weights": [[weight() for _ in range(2)] for _ in range(2)],
        "indices": [rng.randrange(BLOCK) for _ in range(2)],
        "sparse": rng.randrange(2),
        "half": rng.randrange(2),
        "row": rng.randrange(2),
        "break_": rng.randrange(2),
        "pcin": rng.randint(-(1 << 40), 1 << 40),
    }


def lanes(step, tables):
    """(lo, hi) of one step's two multipliers, in plain integers. tables: both tokens' activations [half][input]."""
    weights = step["weights"]
    if step["sparse"]:
        found = [tables[step["half"]][index] for index in step["indices"]]
        return tuple(sum(a[token] * w for a, w in zip(found, weights[step["row"]], strict=True)) for token in (0, 1))
    return tuple(sum(a * w for a, w in zip(step["acts"], row, strict=True)) for row in weights)


def packed_sums(steps):
    """What each step adds up, with the entries that were written before it."""
    tables = [[(0, 0)] * BLOCK for _ in range(HALVES)]
    for step in steps:
        lo, hi = lanes(step, tables)
        yield (hi << LANE_BITS) + lo
        if step["write"]["en"]:
            tables[step["write"]["half"]][step["write"]["at"]] = step["entry"]


@pytest.mark.parametrize("seed", range(3))
def test_group_sums_and_latency(seed):
    """An entry written in t is read from t + 1 on, ``p`` follows every step after exactly GROUP_LATENCY."""
    rng = random.Random(seed)
    dut = DSPGroup()
    steps = [draw(rng) for _ in range(600)]
    own = list(packed_sums(steps))
    latency = GROUP_LATENCY

    async def drive(ctx):
        for step in steps:
            for name, value in step.items():
                ctx.set(getattr(dut, name), LAYOUTS[name].const(value) if name in LAYOUTS else value)
            await ctx.tick()

    async def check(ctx):
        for cycle in range(len(steps)):
            _, _, p, pcout = await ctx.tick().sample(dut.p, dut.pcout)
            if cycle < latency:
                continue
            cascaded = 0 if steps[cycle - latency]["break_"] else steps[cycle - GROUP_LATENCY + 2]["pcin"]
            expected = own[cycle - latency] + cascaded
            assert p == pcout == expected, f"p: got {p}, expected {expected}, cycle {cycle}"

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(drive)
    sim.add_testbench(check)
    sim.run()
