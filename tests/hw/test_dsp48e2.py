"""The DSP48E2 slice in Amaranth's simulator, against arithmetic on its delayed inputs."""

import random

import numpy as np
import pytest
from amaranth.sim import Simulator

from hw.dsp48e2 import DSP48E2, MultiplyAccumulate


def wrap(value, bits):
    return (value + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)


def signed_draw(rng, bits):
    """Extremes are as likely as all the rest."""
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    return rng.choice((low, high, rng.randint(low, high), rng.randint(low, high)))


def simulate(dut, inputs):
    """Drives one dict of member values a cycle; returns ``p`` as each cycle's clock edge sees it."""
    seen = []

    async def drive(ctx):
        for values in inputs:
            for name, value in values.items():
                ctx.set(getattr(dut, name), value)
            await ctx.tick()

    async def watch(ctx):
        outputs = [getattr(dut, name) for name in ("p", "pcout") if hasattr(dut, name)]
        for _ in inputs:
            _, _, p, *copies = await ctx.tick().sample(*outputs)
            assert all(copy == p for copy in copies)
            seen.append(p)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(drive)
    sim.add_testbench(watch)
    sim.run()
    return seen


@pytest.mark.parametrize("stages", [1, 2])
def test_product_latency_and_wrapping(stages):
    rng = random.Random(stages)
    dut = DSP48E2(stages=stages)
    assert dut.latency == stages + 2
    widths = {"a": 27, "d": 27, "b": 18, "pcin": 48}
    inputs = [
        {name: signed_draw(rng, bits) for name, bits in widths.items()} | {"cascade": rng.randrange(2)}
        for _ in range(2000)
    ]
    seen = simulate(dut, inputs)
    for cycle in range(dut.latency, len(inputs)):
        operands = inputs[cycle - dut.latency]
        product = wrap(operands["a"] + operands["d"], 27) * operands["b"]
        cascade = inputs[cycle - dut.latency + dut.cascade_delay]["cascade"]
        expected = wrap(product + (inputs[cycle - 1]["pcin"] if cascade else 0), 48)
        assert seen[cycle] == expected, f"p: got {seen[cycle]}, expected {expected}, cycle {cycle}"


@pytest.mark.parametrize("stages", [1, 2])
def test_enable_freezes_and_clear_wins(stages):
    work = {"a": 3 << 18, "d": -5, "b": 7, "en": 1, "clear": 0}
    total = 7 * ((3 << 18) - 5)
    frozen = simulate(DSP48E2(stages=stages), [work] * 6 + [work | {"b": 1, "en": 0}] * 10)
    assert frozen[-10:] == [total] * 10
    cleared = simulate(DSP48E2(stages=stages), [work] * 6 + [work | {"en": 0, "clear": 1}] + [work] * 6)
    assert cleared[6] == total and cleared[7] == 0 and cleared[-1] == total


def test_unsupported_stages_are_refused():
    with pytest.raises(ValueError, match="stages=3"):
        DSP48E2(stages=3)


def test_packed_operand_is_two_products_for_every_int8_triple():
    """All 2**24 (x1, x0, y): one slice's 27-bit pre-adder and its multiplier lose nothing."""
    int8 = np.arange(-128, 128, dtype=np.int64)
    x1, x0, y = int8[:, None, None], int8[None, :, None], int8[None, None, :]
    packed = (x1 << 18) + x0
    assert packed.min() >= -(1 << 26) and packed.max() < 1 << 26
    assert np.array_equal(packed * y, (x1 * y) * (1 << 18) + x0 * y)


def test_multiply_accumulate():
    """Products added to zero, to c and to the last p, whatever came before; p wraps."""
    rng = random.Random(3)
    dut = MultiplyAccumulate()
    inputs = [
        {
            "a": signed_draw(rng, 27),
            "b": signed_draw(rng, 18),
            "c": signed_draw(rng, 48),
            "addend": rng.choice((dut.ZERO, dut.LAST, dut.LAST, dut.C)),
        }
        for _ in range(3000)
    ]
    seen = simulate(dut, inputs)
    for cycle in range(dut.latency, len(inputs)):
        product = inputs[cycle - dut.latency]["a"] * inputs[cycle - dut.latency]["b"]
        then = inputs[cycle - dut.latency + 1]
        added = {dut.ZERO: 0, dut.LAST: seen[cycle - 1], dut.C: then["c"]}[then["addend"]]
        assert seen[cycle] == wrap(product + added, 48), f"cycle {cycle}"
