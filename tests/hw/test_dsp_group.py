"""A group of two multipliers against a plain sum of products."""

import random

import pytest
from amaranth.hdl import Module
from amaranth.sim import Simulator

from hw.dsp_group import ACTS, GROUP_LATENCY, DSPGroup, indices_layout, weights_layout
from hw.spec.weights import UNREACHED


def draw(rng):
    weight = lambda: rng.choice((-127, 127, rng.randint(-127, 127)))  # noqa: E731
    act = lambda: rng.choice((-128, 127, rng.randint(-128, 127)))  # noqa: E731
    return {
        "acts": [[act() for _ in range(16)] for _ in range(2)],
        "weights": [[weight() for _ in range(2)] for _ in range(2)],
        "indices": [rng.randrange(16) for _ in range(2)],
        "sparse": rng.randrange(2),
        "row": rng.randrange(2),
        "single": rng.randrange(2),
        "break_": rng.randrange(2),
        "pcin": rng.randint(-(1 << 40), 1 << 40),
    }


def lanes(step, first_position):
    """(hi, lo) of one step's two multipliers, in plain integers."""
    acts, weights = step["acts"], step["weights"]
    if step["sparse"]:
        chosen = [[token[index] for index in step["indices"]] for token in acts]
        used = [
            w * (step["single"] or index != place)
            for w, index, place in zip(weights[step["row"]], step["indices"], UNREACHED, strict=True)
        ]
        return tuple(sum(a * w for a, w in zip(chosen[token], used, strict=True)) for token in (1, 0))
    own = acts[0][first_position : first_position + 2]
    return tuple(sum(a * w for a, w in zip(own, weights[row], strict=True)) for row in (1, 0))


@pytest.mark.parametrize(("first_position", "skew_cycles"), [(0, 0), (6, 6), (14, 14)])
def test_group_sums_and_latency(first_position, skew_cycles):
    rng = random.Random(first_position)
    dut = DSPGroup(first_position=first_position, skew_cycles=skew_cycles)
    steps = [draw(rng) for _ in range(600)]
    layouts = {"acts": ACTS, "weights": weights_layout(2), "indices": indices_layout(2)}
    latency = skew_cycles + GROUP_LATENCY

    async def drive(ctx):
        for step in steps:
            for name, value in step.items():
                ctx.set(getattr(dut, name), layouts[name].const(value) if name in layouts else value)
            await ctx.tick()

    async def check(ctx):
        for cycle in range(len(steps)):
            _, _, p, pcout = await ctx.tick().sample(dut.p, dut.pcout)
            if cycle < latency:
                continue
            step = steps[cycle - latency]
            hi, lo = lanes(step, first_position)
            cascaded = 0 if step["break_"] else steps[cycle - GROUP_LATENCY + 2]["pcin"]
            expected = (hi << 18) + lo + cascaded
            assert p == pcout == expected, f"p: got {p}, expected {expected}, cycle {cycle}"

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(drive)
    sim.add_testbench(check)
    sim.run()


def test_group_beyond_its_block_is_refused():
    with pytest.raises(ValueError, match=r"first_position=15: .* 0 to 14"):
        DSPGroup(first_position=15)


@pytest.mark.parametrize("singles", [(False, True), (True, False), (False, False)])
def test_a_multiplier_without_singles_finds_its_weight_among_the_activations(singles):
    """Given the places of the weights in dense steps; those that it lacks count as zero."""
    rng = random.Random(4)
    wide, narrow = DSPGroup(first_position=4), DSPGroup(first_position=4, singles=singles)
    layouts = {"acts": ACTS, "weights": weights_layout(2), "indices": indices_layout(2)}
    m = Module()
    m.submodules.wide, m.submodules.narrow = wide, narrow

    async def drive(ctx):
        for _ in range(800):
            step = draw(rng)
            if not step["sparse"]:
                step["indices"] = list(UNREACHED)
            for number, (single, place) in enumerate(zip(singles, UNREACHED, strict=True)):
                if step["single"] and not single and step["indices"][number] == place:
                    step["weights"][step["row"]][number] = 0  # empty slots of N = 1
            for dut in (wide, narrow):
                for name, value in step.items():
                    ctx.set(getattr(dut, name), layouts[name].const(value) if name in layouts else value)
            await ctx.tick()
            assert ctx.get(wide.p) == ctx.get(narrow.p)

    sim = Simulator(m)
    sim.add_clock(1e-6)
    sim.add_testbench(drive)
    sim.run()
