"""The sparse chain against a dot product, with bubbles, in every sparsity; its latency is measured."""

import random

import numpy as np
import pytest
from amaranth.hdl import ResetInserter, Signal
from amaranth.sim import Simulator

from hw.chain import CHAIN_LATENCY, DENSE_BREAKS, N_GROUPS, STEP, SUMS, TABLES, TAPS, SparseChain, chain_latency
from hw.dsp_group import HALVES
from hw.spec.config import BLOCK


def draw(rng, n_nonzero, extreme=False):
    """One step, and the entries that come with it in half of the cycles. ``n_nonzero`` 0 is dense. Rows of N non-zeros
    lie one after the other, as the compiler places them."""
    weight = lambda: rng.choice((-127, 127)) if extreme else rng.randint(-127, 127)  # noqa: E731
    act = lambda: rng.choice((-128, 127)) if extreme else rng.randint(-128, 127)  # noqa: E731
    groups_a_row = min(n_nonzero or 8, 8) // 2
    return {
        "acts": [act() for _ in range(16)],
        "weights": [[weight() for _ in range(16)] for _ in range(2)],
        "indices": [rng.randrange(16) for _ in range(16)],
        "sparse": int(n_nonzero > 0),
        "half": rng.randrange(2),
        "row": rng.randrange(2),
        "breaks": sum(1 << group for group in range(0, 8, groups_a_row)),
    }


def draw_entries(rng):
    """Entries for every group's tables, which come in half of the cycles."""
    return {
        "entries": [[rng.choice((-128, 127, rng.randint(-128, 127))) for _ in range(2)] for _ in range(N_GROUPS)],
        "write": {"en": rng.randrange(2), "half": rng.randrange(2), "at": rng.randrange(BLOCK)},
    }


def oracle(step, tables):
    """(lo, hi) of every tap: dot products since the last break. tables: int[half, group, input, token]."""
    acts, weights = np.array(step["acts"]), np.array(step["weights"])
    groups = np.arange(16) // 2
    if step["sparse"]:
        products = tables[step["half"], groups, step["indices"]].T * weights[step["row"]]
    else:
        products = acts * weights
    taps, first = [], 0
    for group in range(8):
        if step["breaks"] >> group & 1:
            first = group
        lo, hi = products[:, 2 * first : 2 * group + 2].sum(axis=1)
        taps.append((int(lo), int(hi)))
    return taps


def tables_of(entries):
    """The tables that a step of each cycle reads: what was written before it."""
    tables = np.zeros((HALVES, N_GROUPS, BLOCK, 2), int)
    for entry in entries:
        yield tables.copy()
        write = entry["write"]
        if write["en"]:
            tables[write["half"], :, write["at"]] = entry["entries"]


def run(dut, schedule, entries):
    """Offers one step a cycle, or None for a bubble, and entries. Returns {cycle: taps} and {cycle: (sum0, sum1)}."""
    taps, sums = {}, {}

    async def drive(ctx):
        noise = random.Random(0)
        for step, entry in zip(schedule, entries, strict=True):
            ctx.set(dut.tables, TABLES.const(entry))
            ctx.set(dut.i.valid, step is not None)
            ctx.set(dut.i.payload, STEP.const(step) if step else STEP.from_bits(noise.getrandbits(STEP.size)))
            await ctx.tick()
        ctx.set(dut.i.valid, 0)

    async def watch(ctx):
        for cycle in range(len(schedule) + 24):
            sample = ctx.tick().sample(
                dut.o.valid, dut.o.payload.as_value(), dut.o_sums.valid, dut.o_sums.payload.as_value()
            )
            _, _, taps_valid, raw_taps, sums_valid, raw_sums = await sample
            if taps_valid:
                taps[cycle] = [(tap.lo, tap.hi) for tap in (TAPS.from_bits(raw_taps)[g] for g in range(8))]
            if sums_valid:
                both = SUMS.from_bits(raw_sums)
                sums[cycle] = (both.sum0, both.sum1)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(drive)
    sim.add_testbench(watch)
    sim.run()
    return taps, sums


def compare(dut, schedule):
    """Every step comes out exactly ``latency`` cycles later, right, and nothing else does."""
    rng = random.Random(len(schedule))
    entries = [draw_entries(rng) for _ in schedule]
    taps, sums = run(dut, schedule, entries)
    tables = list(tables_of(entries))
    sent = {cycle: step for cycle, step in enumerate(schedule) if step is not None}
    assert sorted(taps) == [cycle + dut.latency for cycle in sent]
    assert sorted(sums) == [cycle + dut.sums_latency for cycle in sent]
    for cycle, step in sent.items():
        expected = oracle(step, tables[cycle])
        for group, (got, want) in enumerate(zip(taps[cycle + dut.latency], expected, strict=True)):
            assert got == want, f"tap {group} (lo, hi): got {got}, expected {want}, step of cycle {cycle}"
        want = tuple(a + b for a, b in zip(expected[3], expected[7], strict=True))
        got = sums[cycle + dut.sums_latency]
        assert got == want, f"(sum0, sum1): got {got}, expected {want}, step of cycle {cycle}"


def with_bubbles(rng, steps):
    for step in steps:
        while rng.random() < 0.3:
            yield None
        yield step


@pytest.mark.parametrize("cascade_groups", [8, 4])
@pytest.mark.parametrize("n_nonzero", [0, 2, 4, 8, 16])
def test_rows_of_one_sparsity(n_nonzero, cascade_groups):
    rng = random.Random(n_nonzero)
    steps = [draw(rng, n_nonzero, extreme=rng.random() < 0.2) for _ in range(150)]
    compare(SparseChain(cascade_groups=cascade_groups), list(with_bubbles(rng, steps)))


@pytest.mark.parametrize("cascade_groups", [8, 4])
def test_sparsity_changes_every_step_without_bubbles(cascade_groups):
    rng = random.Random(7)
    schedule = [draw(rng, rng.choice((0, 2, 4, 8, 16))) for _ in range(250)]
    compare(SparseChain(cascade_groups=cascade_groups), schedule)


def test_breaks_anywhere():
    """Sums may cross the middle of the chain: any breaks that leave at most 4 groups together."""
    rng = random.Random(11)
    schedule = []
    for _ in range(200):
        starts, group = 1, 0
        while group < 8:
            group += rng.randint(1, 4)
            starts |= 1 << group
        schedule.append(draw(rng, 16) | {"breaks": starts & 0xFF})
    compare(SparseChain(), schedule)


@pytest.mark.parametrize(("weight", "act"), [(-127, -128), (127, -128), (-127, 127), (127, 127)])
def test_full_lanes_at_the_extremes(weight, act):
    dense = {"acts": [act] * 16, "indices": list(range(16)), "sparse": 0, "breaks": DENSE_BREAKS}
    rows = [[weight] * 16, [-weight] * 16]
    compare(SparseChain(), [dense | {"weights": list(pair)} for pair in ((rows[0], rows[1]), (rows[1], rows[0]))])


def test_latency_constants():
    assert (CHAIN_LATENCY, chain_latency(8), chain_latency(4)) == (18, 18, 10)


def test_nine_products_are_too_many():
    """What the contract forbids does go wrong: a ninth product of one sign overflows the lower lane."""
    step = {"acts": [-128] * 16, "weights": [[-127] * 16] * 2, "indices": [0] * 16, "sparse": 0, "breaks": 1}
    taps, _ = run(SparseChain(), [step], [draw_entries(random.Random(0))])
    (got,), expected = taps.values(), oracle(step, None)
    assert got[:4] == expected[:4] and got[4] != expected[4]


def test_reset_drops_the_steps_in_flight():
    reset = Signal()
    dut = SparseChain()
    sim = Simulator(ResetInserter(reset)(dut))
    sim.add_clock(1e-6)
    valid_after = []

    async def drive(ctx):
        ctx.set(dut.i.valid, 1)
        await ctx.tick().repeat(CHAIN_LATENCY // 2)
        ctx.set(dut.i.valid, 0)
        ctx.set(reset, 1)
        await ctx.tick()
        ctx.set(reset, 0)
        for _ in range(CHAIN_LATENCY + 2):
            valid_after.append(ctx.get(dut.o.valid) | ctx.get(dut.o_sums.valid))
            await ctx.tick()

    sim.add_testbench(drive)
    sim.run()
    assert not any(valid_after)


def test_broken_chains_are_caught(monkeypatch):
    """The comparison above notices a lane that forgets its borrow, and a skew of the wrong length."""
    import hw.chain as chain

    right_unpack, right_skew = chain.unpack_lanes, chain.skew
    rng = random.Random(3)
    schedule = [draw(rng, rng.choice((0, 4, 16))) for _ in range(30)]

    def no_borrow(p):
        return right_unpack(p) | {"hi": p[18:37].as_signed()}

    def short_skew(group, cascade_groups):
        return max(right_skew(group, cascade_groups) - 1, 0)

    compare(SparseChain(), schedule)
    for name, broken in (("unpack_lanes", no_borrow), ("skew", short_skew)):
        with monkeypatch.context() as patch:
            patch.setattr(chain, name, broken)
            with pytest.raises(AssertionError, match=r"got .* expected"):
                compare(SparseChain(), schedule)


def test_unsupported_cascade_is_refused():
    with pytest.raises(ValueError, match=r"cascade_groups=3: .* 4 or 8"):
        SparseChain(cascade_groups=3)
