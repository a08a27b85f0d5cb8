"""The encoded program against the golden model, bit for bit, and its properties."""

from dataclasses import replace

import numpy as np
import pytest

from alula.runtime.images import model_image
from alula.runtime.session import Session
from alula.runtime.work import text_macs, vision_macs
from compiler.pipeline import compile_model
from hw.spec import config
from hw.spec.errors import UserError
from ref_model.config import named_config
from ref_model.golden import GoldenText, GoldenVision
from ref_model.quantise import fixed
from sim.registry import backend


def session(tiny, **options) -> Session:
    compiled, quant = tiny
    return Session(compiled, model_image(compiled, quant), backend("functional"), **options)


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 33, 100])
def test_prefill_and_decode_equal_golden(tiny, n):
    machine, golden = session(tiny), GoldenText(tiny[1])
    ids = np.random.default_rng(n).integers(0, 256, n).tolist()
    want = golden.logits(golden.forward(golden.embed(ids))[-1:])[0]
    np.testing.assert_array_equal(machine.prefill(machine.prompt_rows(ids)), want)
    for token in (7, 255):
        want = golden.logits(golden.forward(golden.embed([token])))[0]
        np.testing.assert_array_equal(machine.decode(token), want)


@pytest.mark.parametrize("layers, first", [(1, 0), (1, 1), (2, 0)])
def test_any_range_of_layers(tiny, layers, first):
    machine = session(tiny, layers=layers, first_layer=first)
    golden = GoldenText(tiny[1], layers=layers, first=first)
    ids = [1, 2, 3, 4, 5]
    want = golden.logits(golden.forward(golden.embed(ids))[-1:])[0]
    np.testing.assert_array_equal(machine.prefill(machine.prompt_rows(ids)), want)


def test_positions_are_explicit(tiny):
    """Pruned tokens keep their positions: the cache index and the RoPE position differ."""
    machine, golden = session(tiny), GoldenText(tiny[1])
    ids, positions = [9, 8, 7], [0, 40, 199]
    want = golden.logits(golden.forward(golden.embed(ids), positions)[-1:])[0]
    np.testing.assert_array_equal(machine.prefill(machine.prompt_rows(ids), positions), want)


def test_image_and_prompt_equal_golden(tiny):
    machine, quant = session(tiny), tiny[1]
    patches = np.random.default_rng(3).standard_normal((16, 588))
    features = GoldenVision(quant).forward(patches)
    np.testing.assert_array_equal(machine.encode_image(fixed(patches)), features)
    image = quant.config.image_token_index
    ids = [1, *[image] * 16, 2, 3]
    golden = GoldenText(quant)
    want = golden.logits(golden.forward(golden.embed(ids, features))[-1:])[0]
    np.testing.assert_array_equal(machine.prefill(machine.prompt_rows(ids, image)), want)


def test_one_layer_of_the_tower(tiny):
    patches = np.random.default_rng(4).standard_normal((16, 588))
    golden = GoldenVision(tiny[1], layers=1).forward(patches)
    np.testing.assert_array_equal(session(tiny).encode_image(fixed(patches), layers=1), golden)


def test_bits_do_not_depend_on_chunk_or_units(tiny):
    """Another unit count, smaller accumulators: other tiles, the same logits."""
    quant = tiny[1]
    machine = config.get("tiny")
    ids = list(range(40))
    want = session(tiny).prefill(session(tiny).prompt_rows(ids))
    for other in (
        replace(machine, name="narrow", acc_rows=8),
        replace(machine, name="wide", units=4, chains=4),
        replace(machine, name="single", units=1, ob_blocks=8192),
    ):
        compiled = compile_model(quant.config, other)
        run = Session(compiled, model_image(compiled, quant), backend("functional"))
        np.testing.assert_array_equal(run.prefill(run.prompt_rows(ids)), want)


def test_too_long_a_prompt_is_refused(tiny):
    machine = session(tiny)
    with pytest.raises(UserError, match="context of 256 tokens"):
        machine.prefill([0] * 257)


@pytest.mark.slow
def test_13b_is_refused_before_anything_is_written():
    with pytest.raises(UserError, match="each channel's memory"):
        compile_model(named_config("llava-1.5-13b"), config.get("u280"))


def test_7b_fits_with_a_program_of_kilobytes():
    compiled = compile_model(named_config("llava-1.5-7b"), config.get("u280"))
    assert len(compiled.program.words) <= config.get("u280").imem_instructions  # 64 KiB
    one = compile_model(named_config("llava-1.5-7b"), config.get("u280"), n_layers=1)
    assert len(one.program.words) == len(compiled.program.words)


def test_macs_are_the_published_ones():
    layout = compile_model(named_config("llava-1.5-7b"), config.get("u280")).layout
    d, ffn, n = 4096, 11008, 616
    text = 32 * (n * (4 * d * d + 3 * d * ffn) + n * (n + 1) * d)
    assert text_macs(layout, n) == text + d * 32064
    width, tokens, patches = 1024, 577, 576
    tower = 23 * (12 * tokens * width**2 + 2 * tokens**2 * width) + patches * 588 * width
    assert text_macs(layout, n, head=False) + vision_macs(layout) == text + tower + patches * (width * d + d * d)
