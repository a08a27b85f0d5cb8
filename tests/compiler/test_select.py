"""Visual tokens chosen on the machine by the class token's attention, bit for bit the golden model's choice."""

from dataclasses import replace

import numpy as np
import pytest

from alula.runtime.images import model_image
from alula.runtime.session import Session
from compiler.kernels.allocate import largest_tile, vision_regions
from compiler.kernels.builder import Builder
from compiler.kernels.context import Context
from compiler.kernels.select import Survivors
from compiler.layout import Layout
from compiler.pack import row_words, selection_tables
from compiler.pipeline import compile_model
from hw.spec import config
from hw.spec.errors import UserError
from hw.spec.run import Invocation
from ref_model.config import named_config
from ref_model.golden import GoldenText, GoldenVision
from ref_model.golden.selection import strongest, survivors
from ref_model.quantise import fixed
from ref_model.selection import grid_side
from sim.memory_image import MemoryImage
from sim.registry import backend

PATCHES, SIDE = 16, 4
"""llava-tiny's image."""


def session(tiny, name: str = "functional") -> Session:
    compiled, quant = tiny
    return Session(compiled, model_image(compiled, quant), backend(name))


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((PATCHES, 588))


@pytest.mark.parametrize("strategy", ["rank", "row"])
@pytest.mark.parametrize("keep", [1, 2, 4, 7, 8, 13, 15, 16])
def test_survivors_and_features_equal_golden(tiny, keep, strategy):
    if strategy == "row" and keep < SIDE:
        pytest.skip("less than a row")
    machine, golden = session(tiny), GoldenVision(tiny[1])
    want = golden.forward(noise(keep), keep, strategy)
    found = machine.encode_image(fixed(noise(keep)), keep=keep, strategy=strategy)
    assert machine.survivors == golden.survivors
    assert len(want) == (keep if strategy == "rank" else keep // SIDE * SIDE)
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_last_layer_that_runs_decides(tiny, layers):
    machine, golden = session(tiny), GoldenVision(tiny[1], layers)
    want = golden.forward(noise(3), 5)
    np.testing.assert_array_equal(machine.encode_image(fixed(noise(3)), layers, keep=5), want)
    assert machine.survivors == golden.survivors


# --- the kernel alone ------------------------------------------------------------------------------------


def kernel(layout: Layout, saliency: np.ndarray, keep: int, by_rows: bool, name: str = "functional"):
    """(survivors, result) of the selection by given values, the class token's own first."""
    tokens, b, units = layout.tower.n_patches + 1, Builder(layout.config), layout.config.units
    _, regions = largest_tile(layout, layout.tower.layer, vision_regions, tokens)
    ctx = Context(b, layout.geo, regions, layout.tower.layer_width)
    Survivors(ctx, layout, tokens, grid_side(tokens - 1)).select(b.argument(1), b.argument(2), b.reg())
    b.halt()
    memory, at, record = MemoryImage(layout.config), layout.aux["selection"].base, layout.selection
    memory.attach(units, 0, np.array(b.words(), np.uint64).view(np.uint8))
    for beat, data in selection_tables(layout):
        memory.attach(units, beat * 64, data)
    memory.write(units, (at + record["saliency"]) * 64, row_words(saliency, layout.geo.granules(tokens)))
    options = {"with_data": True} if name == "cycle" else {}
    result = backend(name, **options).run(layout.config, memory, Invocation(0, len(b.program), 0, (keep, int(by_rows))))
    assert result.ok
    data = memory.read(units, (at + record["kept"]) * 64, record.sizes["kept"] * 64)
    return np.array(data).view(np.uint32).tolist(), result


VALUES = {
    "all equal": np.full(PATCHES, 7),
    "zeros": np.zeros(PATCHES, np.int64),
    "two values": np.arange(PATCHES) % 2 * 5,
    "ties in the middle": np.array([9, 5, 5, 1, 5, 9, 5, 2, 2, 5, 8, 5, 0, 0, 5, 3]),
    "neighbours": (1 << 24) + np.arange(PATCHES)[::-1],
    "around bit 15": (1 << 15) + np.arange(PATCHES) % 3 - 1,
    "large": (1 << 30) - np.arange(PATCHES) % 5,
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("keep", [1, 5, 8, PATCHES - 1, PATCHES])
def test_ties(tiny, name, keep):
    for first in (0, (1 << 30) - 1):  # the class token's own value does not count
        found, _ = kernel(tiny[0].layout, np.concatenate([[first], VALUES[name]]), keep, False)
        assert found[:keep] == survivors(VALUES[name], keep, "rank")
        assert not any(found[keep:])


@pytest.mark.parametrize("name", ["all equal", "two values", "ties in the middle", "neighbours"])
@pytest.mark.parametrize("rows", [1, 3, 4])
def test_ties_of_rows(tiny, name, rows):
    found, _ = kernel(tiny[0].layout, np.concatenate([[3], VALUES[name]]), rows, True)
    assert found[: rows * SIDE] == survivors(VALUES[name], rows * SIDE, "row")


@pytest.mark.parametrize(
    "keep, strategy",
    [pytest.param(288, "rank", marks=pytest.mark.slow), pytest.param(29, "rank", marks=pytest.mark.slow), (144, "row")],
)
def test_576_patches_take_less_than_60k_cycles_on_u280(keep, strategy):
    layout = compile_model(named_config("llava-1.5-7b"), config.get("u280"), 512, n_layers=1).layout
    values = np.random.default_rng(keep).integers(0, 1 << 20, 577)
    items = keep if strategy == "rank" else keep // 24
    found, result = kernel(layout, values, items, strategy == "row", "cycle")
    assert found[:keep] == survivors(values[1:], keep, strategy)
    assert result.cycles < 60_000
    print(keep, strategy, result.cycles)


# --- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keep, strategy, words",
    [
        (0, "rank", "0 visual tokens to keep is outside 1..16"),
        (17, "rank", "17 visual tokens to keep is outside 1..16"),
        (-1, "row", "outside 1..16"),
        (3, "row", "less than a row of 4 patches"),
        (8, "column", "choose rank or row"),
    ],
)
def test_impossible_choices_are_refused(tiny, keep, strategy, words):
    with pytest.raises(UserError, match=words):
        session(tiny).encode_image(fixed(noise(1)), keep=keep, strategy=strategy)


def test_strongest_keeps_order():
    assert strongest(np.array([3, 9, 9, 1, 9]), 2) == [1, 2]


def test_survivors_go_into_the_prompt(tiny):
    """Positions are contiguous behind the selection, as for any prompt of that many tokens."""
    machine, quant, image = session(tiny), tiny[1], tiny[1].config.image_token_index
    machine.encode_image(fixed(noise(5)), keep=6)
    features = GoldenVision(quant).forward(noise(5), 6)
    ids, golden = [1, *[image] * 6, 2, 3], GoldenText(quant)
    want = golden.logits(golden.forward(golden.embed(ids, features))[-1:])[0]
    np.testing.assert_array_equal(machine.prefill(machine.prompt_rows(ids, image)), want)


def test_one_program_serves_every_choice(tiny):
    """With and without: the same features where the same tokens are kept; smaller tiles of tokens too."""
    quant = tiny[1]
    compiled = compile_model(quant.config, replace(config.get("tiny"), name="tiles", acc_rows=16))
    machine = Session(compiled, model_image(compiled, quant), backend("functional"))
    every = machine.encode_image(fixed(noise(2)))
    for keep, strategy in ((5, "rank"), (12, "row"), (16, "rank")):
        found = machine.encode_image(fixed(noise(2)), keep=keep, strategy=strategy)
        np.testing.assert_array_equal(found, every[machine.survivors])
    np.testing.assert_array_equal(machine.encode_image(fixed(noise(2))), every)


def test_cycle_counts_the_selection(tiny):
    cycles = {}
    for keep in (None, 4, 16):
        machine = session(tiny, "cycle")
        machine.encode_image(fixed(noise(2)), keep=keep)
        cycles[keep] = cycles_of(machine)
    assert cycles[4] < cycles[16]


def test_timing_only_runs_take_a_choice_of_that_size(tiny):
    """No data moves: what was written before the run stands for the machine's own choice."""
    compiled, quant = tiny
    exact = Session(compiled, model_image(compiled, quant), backend("cycle", with_data=True))
    cycles = session(tiny, "cycle")
    for machine in (exact, cycles):
        machine.encode_image(fixed(noise(2)), keep=7)
    found, want = cycles_of(cycles), cycles_of(exact)
    assert abs(found - want) < 0.02 * want
    assert exact.survivors == survivors_of(tiny, 7)


def cycles_of(machine: Session) -> int:
    cycles = machine.results[-1][1].cycles
    assert cycles is not None
    return cycles


def survivors_of(tiny, keep: int) -> list[int]:
    golden = GoldenVision(tiny[1])
    golden.forward(noise(2), keep)
    return golden.survivors
