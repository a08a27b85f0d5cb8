"""Compressed models: bit for bit the golden model's results, exact sizes, and what a program knows of compression."""

from dataclasses import replace

import numpy as np
import pytest

from alula.runtime.images import container_image, model_image
from alula.runtime.session import Session
from alula.runtime.work import text_macs, vision_macs
from compiler import container, ir, stream
from compiler.pipeline import compile_model
from compiler.sizes import Sizes
from hw.spec import config
from hw.spec.errors import InternalError, UserError
from ref_model.checkpoints import open_synthetic
from ref_model.compress import Compression, MixedPlan, UniformPlan
from ref_model.config import named_config
from ref_model.golden import GoldenText, GoldenVision
from ref_model.quantise import fixed, quantise
from sim.registry import backend


@pytest.fixture(scope="module")
def mixed():
    """(compiled for tiny, quantised): llava-tiny with random precisions and non-zeros everywhere."""
    checkpoint = open_synthetic("llava-tiny")
    compressor = Compression.parse("mixed", "mixed", "plain").compressor(checkpoint)
    compiled = compile_model(checkpoint.config, config.get("tiny"), plan=compressor.plan)
    return compiled, quantise(checkpoint, compression=compressor)


def test_the_program_knows_which_layers_are_sparse_and_nothing_more():
    """Precisions and lengths of streams are data; groups of output blocks (of sparse layers only) are instructions."""
    model, machine = named_config("llava-1.5-7b"), config.get("u280")
    program = {
        plan: compile_model(model, machine, n_layers=2, plan=plan).program
        for plan in (None, UniformPlan(4), UniformPlan(8, 8), UniformPlan(3, 2), MixedPlan(1), MixedPlan(2))
    }
    assert program[None] == program[UniformPlan(4)]
    assert program[UniformPlan(8, 8)] == program[UniformPlan(3, 2)]  # the language model's
    assert program[MixedPlan(1)] == program[MixedPlan(2)]  # the tower's too
    assert program[None] != program[UniformPlan(8, 8)] != program[MixedPlan(1)]


@pytest.mark.parametrize(
    "machine",
    [
        config.get("tiny"),
        replace(config.get("tiny"), name="wide", units=4, chains=4),
        replace(config.get("tiny"), name="single", units=1, ob_blocks=8192),
    ],
    ids=lambda machine: machine.name,
)
def test_mixed_equals_golden(mixed, machine):
    quant = mixed[1]
    compiled = compile_model(quant.config, machine, plan=MixedPlan())
    run, golden = Session(compiled, model_image(compiled, quant), backend("functional")), GoldenText(quant)
    patches = np.random.default_rng(3).standard_normal((16, 588))
    features = GoldenVision(quant).forward(patches)
    np.testing.assert_array_equal(run.encode_image(fixed(patches)), features)
    image = quant.config.image_token_index
    ids = [1, *[image] * 16, *range(20)]
    want = golden.logits(golden.forward(golden.embed(ids, features))[-1:])[0]
    np.testing.assert_array_equal(run.prefill(run.prompt_rows(ids, image)), want)
    want = golden.logits(golden.forward(golden.embed([9])))[0]
    np.testing.assert_array_equal(run.decode(9), want)


def test_any_range_of_compressed_layers(mixed):
    compiled, quant = mixed
    run = Session(compiled, model_image(compiled, quant), backend("functional"), layers=1, first_layer=1)
    golden = GoldenText(quant, layers=1, first=1)
    want = golden.logits(golden.forward(golden.embed([1, 2, 3]))[-1:])[0]
    np.testing.assert_array_equal(run.prefill(run.prompt_rows([1, 2, 3])), want)


def test_a_model_quantised_otherwise_is_refused(tiny, mixed):
    with pytest.raises(InternalError, match="not quantised as it was compiled for"):
        model_image(tiny[0], mixed[1])
    with pytest.raises(InternalError, match="not quantised as it was compiled for"):
        model_image(mixed[0], tiny[1])


def test_round_trip_through_a_container(tmp_path, mixed):
    compiled, quant = mixed
    manifest = container.save(tmp_path / "m.alula", compiled, quant)
    assert manifest["weight_bytes"] == compiled.layout.weight_bytes
    assert 0 < manifest["average_bits"] < 8 and 0 < manifest["nonzeros"] < 1
    ours, theirs = model_image(compiled, quant), container_image(container.load(tmp_path / "m.alula"), compiled.config)
    for (port, at, data), (port2, at2, data2) in zip(ours.contents(), theirs.contents(), strict=True):
        assert (port, at) == (port2, at2)
        np.testing.assert_array_equal(data, data2)


@pytest.mark.slow
def test_13b_fits_at_4_bits():
    model, machine = named_config("llava-1.5-13b"), config.get("u280")
    with pytest.raises(UserError, match="each channel's memory"):
        compile_model(model, machine, context=2048)
    layout = compile_model(model, machine, context=2048, plan=UniformPlan(4)).layout
    assert layout.sizes.average_bits == 4 and layout.sizes.nonzeros == 1
    assert layout.weight_bytes < 7.1e9


def test_sparse_macs_are_those_with_weights_in_the_streams():
    model, machine = named_config("llava-1.5-7b"), config.get("u280")
    layout = compile_model(model, machine, n_layers=2, plan=UniformPlan(4, 8)).layout
    attention = 2 * 2 * 4096 * 10 * 11 // 2
    assert text_macs(layout, 10, sparse=True) - attention == (text_macs(layout, 10) - attention) // 2
    assert vision_macs(layout, sparse=True) == vision_macs(layout)  # the tower stays dense


@pytest.mark.parametrize("grouped", [False, True])
def test_sections_have_the_beats_of_their_rows(grouped):
    op, plan, units, steps = ir.Linear("lm_head", 256, 500), MixedPlan(), 2, 4 * (5,)
    bits, nonzeros = plan.blocks("lm_head", 500, 256)
    rows = [slice(10 * i, 10 * i + 10) for i in range(4)]
    sizes = [160, 160, 160, 20]
    assert Sizes(units, plan).sections([("lm_head", op)], steps, grouped) == [
        stream.lengths((n, 256), (bits[r], nonzeros[r]), units, 5, grouped)[0] for r, n in zip(rows, sizes, strict=True)
    ]
    dense = [stream.lengths((n, 256), None, units, 5, grouped)[0] for n in sizes]
    assert Sizes(units).sections([("lm_head", op)], steps, grouped) == dense
    if not grouped:
        assert dense == [stream.dense_beats((160, 256), units)] * 4
