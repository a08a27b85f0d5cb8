"""The budget: it agrees with what Yosys maps, and a card refuses what is above it."""

import random
from dataclasses import replace

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from hw.accelerator import Accelerator
from hw.buffer_memory import BufferMemory
from hw.spec import cards
from hw.spec.config import CONFIGS, ConfigError, get
from hw.spec.resources import KIND, Memory, Store, columns, crossing_wires, dsp_total, memories
from hw.synth import synthesise, tally
from hw.synth_units import synthesise_units
from hw.verilog_writer import convert
from sim.rtl.accelerator import synthesisable


@pytest.mark.slow
def test_tiny_takes_what_the_budget_says():
    counted = synthesise_units(synthesisable("tiny"), logic=False).table()
    expected = {KIND[store]: sum(m.primitives for m in memories(get("tiny")) if m.store is store) for store in Store}
    assert {kind: counted[kind] for kind in expected} == expected
    assert counted["DSP48E2"] == dsp_total(get("tiny"))


class Buffer(wiring.Component):
    """A buffer memory with ports of its own."""

    def __init__(self, memory: Memory):
        self.inner = BufferMemory(memory)
        super().__init__(
            {
                name: In(member.shape) if member.flow is In else Out(member.shape)
                for name, member in self.inner.signature.members.items()
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.inner = self.inner
        wiring.connect(m, wiring.flipped(self), self.inner)
        return m


@pytest.mark.parametrize(
    "memory",
    [
        Memory("one writer", 160, 2 * 4096 + 1, Store.ULTRA),
        Memory("by parts", 256, 5000, Store.ULTRA, parts=2),
        Memory("columns of two parts", 1024, 4096, Store.ULTRA, parts=2),
        Memory("blocks", 160, 1536, Store.BLOCK),
        Memory("blocks by parts", 128, 200, Store.BLOCK, parts=2),
    ],
    ids=lambda memory: memory.name,
)
def test_a_memory_takes_what_it_says(memory):
    assert tally(synthesise(convert(Buffer(memory), "top"), "top")["top"])[KIND[memory.store]] == memory.primitives


def test_columns():
    def widths(*of):
        return [column.bits for column in columns(*of)]

    assert widths(160, 1, Store.BLOCK) == [72, 72, 16] and widths(160, 2, Store.BLOCK) == [72, 8] * 2
    assert widths(160, 1, Store.ULTRA) == [54, 53, 53] and widths(160, 2, Store.ULTRA) == [72, 8 + 7 * 9, 17]
    shared = [column for column in columns(2048, 4, Store.ULTRA) if len(dict(column.parts)) > 1]
    assert len(columns(2048, 4, Store.ULTRA)) == 29 and len(shared) == 3


@pytest.mark.parametrize("store", Store)
@pytest.mark.parametrize("bits, parts", [(160, 2), (512, 4), (2048, 4), (100, 1)])
def test_columns_hold_every_bit_of_a_word_once_and_in_order(bits, parts, store):
    pieces = [piece for column in columns(bits, parts, store) for piece in column.parts]
    assert [part for part, n in pieces for _ in range(n)] == [at // (bits // parts) for at in range(bits)]


@pytest.mark.parametrize("seed", range(3))
def test_parts_of_a_word_are_written_singly(seed):
    """A memory whose columns are shared between parts against a list of words."""
    rng, memory = random.Random(seed), Memory("by parts", 512, 16, Store.ULTRA, parts=4)
    assert any(len(dict(column.parts)) > 1 for column in columns(512, 4, Store.ULTRA))
    dut, words = Buffer(memory), [0] * 16

    async def bench(ctx):
        for _ in range(300):
            at, data, enables = rng.randrange(16), rng.getrandbits(512), rng.getrandbits(4)
            read = rng.randrange(16)
            want = words[read]
            for name, value in (
                ("write_en", enables),
                ("write_addr", at),
                ("write_data", data),
                ("read_en", 1),
                ("read_addr", read),
            ):
                ctx.set(getattr(dut, name), value)
            for part in range(4):
                if enables >> part & 1:
                    mask = (1 << 128) - 1 << 128 * part
                    words[at] = words[at] & ~mask | data & mask
            await ctx.tick()
            assert ctx.get(dut.read_data) == want

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize("name", cards.CARDS)
def test_every_card_has_room_for_its_configuration(name):
    rows = cards.get(name).budget(get(name))
    assert [row.kind for row in rows] == ["URAM", "BRAM36", "DSP48E2", "chain DSP48E2", "SLR crossing"]
    assert all(row.used <= row.limit for row in rows)
    share = {row.kind: row.used / row.limit for row in rows}
    assert share["URAM"] <= 0.85 and share["BRAM36"] <= 0.85


def test_what_the_platform_leaves():
    """The sum of the dies of U280's region; a row above it is told, not refused. Of wires the fullest boundary."""
    card = cards.get("u280")
    assert card.region.resources == {
        "LUT": 1135680, "FF": 2271360, "BRAM36": 1776, "URAM": 960, "DSP48E2": 8304
    }  # fmt: skip
    rows = {row.kind: row for row in card.budget(get("u280"))}
    assert rows["URAM"].platform_limit == 960 and rows["URAM"].platform_share == rows["URAM"].used / 960
    crossing = rows["SLR crossing"]
    lower, upper = crossing.parts.values()
    assert crossing.platform_share == max(lower / 16797, upper / 18773) > 1 > crossing.used / crossing.limit
    card.check(get("u280"))
    assert cards.get("u50").region is None
    assert all(row.platform_share is None for row in cards.get("u50").budget(get("u50")))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"ab_granules": 393216}, r"needs 1108 UltraRAMs, the limit is 960"),
        ({"acc_rows": 1024}, r"needs 2430.5 block RAMs of 36 Kb, the limit is 2016"),
        ({"lanes": 256}, r"needs 8201 DSPs, the limit is 6500"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_exceeds_a_card_is_refused(change, message):
    with pytest.raises(ConfigError, match=message) as raised:
        convert(Accelerator(replace(get("u280"), **change)), "top")
    assert "\n" not in str(raised.value)


def test_wires_between_dies():
    """By hand: one unit on each of two dies, the core beside the memory, then away from it."""
    read, own, shared = 591, 512 + 128 + 16, 64 + 32 * 5 + 7 * 128
    assert crossing_wires({0: [0], 1: [1]}, core=0) == [read + own + shared]
    assert crossing_wires({0: [0], 1: [1]}, core=1) == [read + own + shared + read + 640 + 8 * 3]


@pytest.mark.parametrize("core", [0, 1])
def test_wires_between_dies_where_memory_is_behind_a_network(core):
    """By hand: nothing that is read crosses; writes cross to the one unit beyond, on either side of the core."""
    own, shared, write = 512 + 128 + 16, 64 + 32 * 5 + 7 * 128, 64 + 512 + 64 + 8
    assert crossing_wires({0: [0], 1: [1]}, core=core, noc=True) == [own + shared + write]
    assert crossing_wires({0: [0], 1: []}, core=0, noc=True) == [0]


def test_without_a_card_nothing_is_counted_and_nothing_refused():
    assert cards.GENERIC.budget(get("u280")) == [] and cards.GENERIC.floorplan(get("u280")) == {}
    cards.GENERIC.check(replace(get("u280"), units=256))


def test_the_v80_is_the_sum_of_its_dies():
    """The totals are those of Vivado's report."""
    assert cards.get("v80").resources == {
        "LUT": 2574208, "FF": 5148416, "BRAM36": 3741, "URAM": 1925, "DSP48E2": 10848
    }  # fmt: skip


def test_small_configurations_fit_the_largest_card():
    for config in CONFIGS.values():
        cards.card_of(config).check(config)


@pytest.mark.parametrize("name", cards.CARDS)
def test_dies_are_as_full_as_one_another(name):
    """With the core counted; SLR0, where the shell is, is the least full."""
    card, config = cards.get(name), get(name)
    floorplan = card.floorplan(config)
    assert sorted(unit for units in floorplan.values() for unit in units) == list(range(config.units))
    loads = {slr: len(units) + cards.CORE_UNITS * (slr == card.core_slr) for slr, units in floorplan.items()}
    assert max(loads.values()) - min(loads.values()) <= 1 and loads[0] == min(loads.values())
