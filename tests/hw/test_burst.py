"""Burst lengths in gates against their rule."""

import pytest
from amaranth.hdl import Module, Signal
from amaranth.sim import Simulator

from hw.burst import next_burst
from hw.spec.timing import BURST_BEATS, burst_length


@pytest.mark.parametrize("far", [0, 1 << 6, 0x3FF_FFC0])
def test_every_place_in_a_page_and_every_remainder(far):
    address, remaining, length = Signal(26), Signal(32), Signal(5)
    m = Module()
    m.d.comb += length.eq(next_burst(address, remaining))
    counts = [*range(1, 2 * BURST_BEATS + 2), 64, 1 << 16, (1 << 32) - 1, 1 << 31]

    async def check(ctx):
        for place in range(64):
            for left in counts:
                ctx.set(address, far + place)
                ctx.set(remaining, left)
                assert ctx.get(length) == burst_length(far + place, left), (place, left)

    sim = Simulator(m)
    sim.add_testbench(check)
    sim.run()
