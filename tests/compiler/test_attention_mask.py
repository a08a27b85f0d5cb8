"""Block-sparse attention: one program for every mask, bit for bit the golden model's, and no absent key is read."""

from dataclasses import replace

import numpy as np
import pytest

from alula.runtime.images import model_image
from alula.runtime.session import Session
from alula.runtime.work import text_macs
from compiler.pipeline import compile_model
from hw.spec import config, weights
from hw.spec.errors import UserError
from ref_model.config import named_config
from ref_model.golden import GoldenText
from ref_model.golden.operators import attend
from ref_model.mask import BlockMask
from sim.registry import backend

TILE, TILES = 32, 8
"""Keys of a slot on `tiny`, slots of llava-tiny's context."""


def random_mask(seed: int, share: float = 0.4) -> BlockMask:
    present = np.random.default_rng(seed).random((TILES, TILES)) < share
    np.fill_diagonal(present, True)
    return BlockMask(TILE, present)


MASKS = {
    "causal": BlockMask.causal(TILE, TILES),
    "sink and own tile": BlockMask.window(TILE, TILES, 1),
    "window": BlockMask.window(TILE, TILES, 64),
    "own tile": BlockMask(TILE, np.eye(TILES, dtype=bool)),
    "random": random_mask(1),
    "sparse": random_mask(2, 0.2),
}


def session(tiny, name: str = "functional", **options) -> Session:
    compiled, quant = tiny
    return Session(compiled, model_image(compiled, quant), backend(name), **options)


def ids_of(n: int) -> list[int]:
    return np.random.default_rng(n).integers(0, 256, n).tolist()


def golden_logits(golden: GoldenText, ids: list[int], mask: BlockMask | None = None) -> np.ndarray:
    return golden.logits(golden.forward(golden.embed(ids), mask=mask)[-1:])[0]


def external_state(machine: Session) -> list[np.ndarray]:
    """Cache, scales and logits."""
    layout, units = machine.layout, machine.compiled.config.units
    places = [(unit, layout.channel["text.cache"]) for unit in range(units)]
    places += [(units, layout.aux[name]) for name in ("text.scales", "logits")]
    return [machine.memory.read(port, section.base * 64, section.beats * 64) for port, section in places]


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("n", [1, 33, 64, 150, 250])
def test_prefill_and_decode_equal_golden(tiny, name, n):
    machine, golden = session(tiny), GoldenText(tiny[1])
    want = golden_logits(golden, ids_of(n), MASKS[name])
    np.testing.assert_array_equal(machine.prefill(machine.prompt_rows(ids_of(n)), mask=MASKS[name]), want)
    np.testing.assert_array_equal(machine.decode(7), golden_logits(golden, [7]))


def test_a_prefill_behind_a_cache_counts_places_from_its_start(tiny):
    machine, golden = session(tiny), GoldenText(tiny[1])
    for n, mask in ((50, None), (90, MASKS["sparse"]), (1, MASKS["own tile"]), (20, MASKS["random"])):
        want = golden_logits(golden, ids_of(n), mask)
        np.testing.assert_array_equal(machine.prefill(machine.prompt_rows(ids_of(n)), mask=mask), want)


@pytest.mark.parametrize("n", [1, 32, 100])
def test_causal_is_no_mask_in_every_bit(tiny, n):
    dense, masked = session(tiny), session(tiny)
    dense.prefill(dense.prompt_rows(ids_of(n)))
    masked.prefill(masked.prompt_rows(ids_of(n)), mask=MASKS["causal"])
    for a, b in zip(external_state(dense), external_state(masked), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rows", [8, 16, 64])
def test_bits_do_not_depend_on_the_chunk(tiny, rows):
    """Chunks of 2, 4 and 16 tokens."""
    quant = tiny[1]
    compiled = compile_model(quant.config, replace(config.get("tiny"), name="chunks", acc_rows=rows))
    machine = Session(compiled, model_image(compiled, quant), backend("functional"))
    want = golden_logits(GoldenText(quant), ids_of(110), MASKS["sparse"])
    np.testing.assert_array_equal(machine.prefill(machine.prompt_rows(ids_of(110)), mask=MASKS["sparse"]), want)


@pytest.mark.parametrize("name", ["causal", "window", "own tile", "sparse"])
def test_exactly_the_present_beats_are_read(tiny, name):
    n, mask, layout = 150, MASKS[name], tiny[0].layout
    machine = session(tiny, "cycle")
    machine.prefill(machine.prompt_rows(ids_of(n)), mask=mask)
    counters = machine.results[-1][1].counters
    text, units, chunk = tiny[1].config.text, layout.config.units, tiny[0].program.entries["lm"]["tile"]
    starts = [at for tile in range(0, n, TILE) for at in range(tile, min(tile + TILE, n), chunk)]
    slots = sum(len(mask.slots(at // TILE)) for at in starts)
    values = slots * text.kv_heads * text.head_dim // 16 * weights.BLOCK_BEATS
    streams = len(starts) * layout.streams["text"].beats
    head = sum(layout.head.streams)
    assert counters["read_beats_channels"] == units * (2 * text.layers * values + streams + head)


def test_absent_tiles_save_time_and_the_program_is_one(tiny):
    cycles = {}
    for name in ("causal", "own tile"):
        machine = session(tiny, "cycle")
        machine.prefill(machine.prompt_rows(ids_of(250)), mask=MASKS[name])
        cycles[name] = machine.results[-1][1].cycles
    assert cycles["own tile"] < cycles["causal"]


def test_macs_count_present_pairs(tiny):
    layout = tiny[0].layout
    assert text_macs(layout, 100, 30, mask=MASKS["causal"]) == text_macs(layout, 100, 30)
    assert text_macs(layout, 100, mask=MASKS["own tile"]) < text_macs(layout, 100)
    assert MASKS["own tile"].pairs(0, 40) == 32 * 33 // 2 + 8 * 9 // 2


def test_absent_keys_do_not_exist_for_the_golden_model():
    """Masked attention is attention over the remaining keys, whatever the others hold."""
    rng = np.random.default_rng(5)
    q, k, v = (rng.integers(-127, 128, (n, 16), dtype=np.int8) for n in (6, 40, 40))
    raw, words, v_raw = (rng.integers(1 << 15, 1 << 18, n) for n in (6, 40, 40))
    keep = rng.random(40) < 0.5
    limit = np.full((6, 1), 40)
    full = attend(q, raw[:, None], (k, words), (v, v_raw), limit, np.broadcast_to(keep, (6, 40)))
    few = attend(q, raw[:, None], (k[keep], words[keep]), (v[keep], v_raw[keep]), limit)
    np.testing.assert_array_equal(full, few)


@pytest.mark.parametrize("tokens", [1, 2, 31, 32, 33, 64, 65, 100, 300])
def test_a_window_keeps_every_tile_with_a_key_of_it(tokens):
    mask = BlockMask.window(TILE, TILES, tokens)
    places = np.arange(TILE * TILES)
    distance = places[:, None] - places[None, :]
    seen = ((distance >= 0) & (distance < tokens)).reshape(TILES, TILE, TILES, TILE).any(axis=(1, 3))
    seen[:, 0] = True
    np.testing.assert_array_equal(np.tril(mask.present), np.tril(seen))


@pytest.mark.parametrize(
    "mask, words",
    [
        (np.ones((8, 7), bool), "no square array of bool"),
        (np.ones((8, 8), np.int8), "no square array of bool"),
        (np.ones(8, bool), "no square array of bool"),
        (np.tri(8, k=-1, dtype=bool), "leaves out tile 0"),
    ],
)
def test_bad_masks_are_refused(mask, words):
    with pytest.raises(UserError, match=words):
        BlockMask(TILE, mask)


@pytest.mark.parametrize("mask", [BlockMask.causal(64, 8), BlockMask.causal(TILE, 2)])
def test_masks_of_other_machines_are_refused(tiny, mask):
    machine = session(tiny)
    with pytest.raises(UserError, match="does not cover 65 tokens in the tiles of 32"):
        machine.prefill([0] * 65, mask=mask)


@pytest.mark.parametrize(
    "name, machine",
    [("smollm2-135m", "small"), ("smollm2-135m", "u280"), pytest.param("llava-1.5-7b", "u280", marks=pytest.mark.slow)],
)
def test_registers_suffice(name, machine):
    """Grouped queries and wide vector words need most."""
    compile_model(named_config(name), config.get(machine), 512, n_layers=1)
