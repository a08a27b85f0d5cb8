"""Vision layers in a pipeline: the same bits whatever the tiles, and matrix units that hardly wait."""

from dataclasses import replace

import numpy as np
import pytest

from alula.runtime.images import model_image
from alula.runtime.session import Session
from alula.session import open_flow
from alula.verification import synthetic_patches
from compiler.kernels import encoder
from compiler.kernels.encoder import pipelined, plan
from compiler.pipeline import compile_model
from hw.spec import config
from hw.spec.isa import Unit
from hw.spec.memory import MemoryModel
from ref_model.checkpoints import open_synthetic
from ref_model.golden import GoldenVision
from ref_model.quantise import fixed, quantise
from sim.registry import backend


@pytest.fixture(scope="module")
def model():
    return quantise(open_synthetic("llava-tiny", 3))


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((16, 3 * 14 * 14))


CONFIGS = {
    "one tile": {},
    "two tiles": {"acc_rows": 32},
    "five tiles": {"acc_rows": 8},
    "keys behind the last": {"units": 8, "acc_rows": 16, "lanes": 16},
}


def machine_of(model, name: str) -> tuple[Session, int]:
    machine = replace(config.get("tiny"), name="tiles", imem_instructions=16384, **CONFIGS[name])
    compiled = compile_model(model.config, machine)
    planned = plan(compiled.layout)
    assert planned is not None and compiled.program.entries["vision"]["pipelined"]
    return Session(compiled, model_image(compiled, model), backend("functional")), planned.count


@pytest.mark.parametrize("keep", [None, 5])
@pytest.mark.parametrize(
    "name, tiles", [("one tile", 1), ("two tiles", 2), ("five tiles", 5), ("keys behind the last", 3)]
)
def test_golden_bits_in_any_number_of_tiles(model, name, tiles, keep):
    machine, count = machine_of(model, name)
    assert count == tiles
    golden = GoldenVision(model)
    for seed in (1, 2):  # nothing of the first image is left in the second one
        found = machine.encode_image(fixed(noise(seed)), keep=keep)
        np.testing.assert_array_equal(found, golden.forward(noise(seed), keep))


def test_fewer_layers_are_the_same_layers(model):
    machine, _ = machine_of(model, "two tiles")
    every = machine.encode_image(fixed(noise(1)))
    assert not np.array_equal(machine.encode_image(fixed(noise(1)), layers=1), every)
    np.testing.assert_array_equal(machine.encode_image(fixed(noise(1)), layers=2), every)


@pytest.mark.parametrize(
    "changes, fits", [({"acc_rows": 8, "imem_instructions": 5504}, True), ({"ob_blocks": 64}, False)]
)
def test_layers_that_do_not_fit_go_tile_by_tile(model, changes, fits):
    """An instruction memory too small for many tiles, a buffer too small for all tokens at once."""
    compiled = compile_model(model.config, replace(config.get("tiny"), name="tiles", **changes), 64)
    assert (plan(compiled.layout) is not None) == fits
    assert compiled.program.entries["vision"]["pipelined"] is False
    machine, golden = Session(compiled, model_image(compiled, model), backend("functional")), GoldenVision(model)
    for keep in (None, 5):
        np.testing.assert_array_equal(machine.encode_image(fixed(noise(1)), keep=keep), golden.forward(noise(1), keep))


def test_order_of_a_pipeline():
    found: list[tuple[str, int]] = []
    pipelined(3, (0, lambda i: found.append(("a", i))), (2, lambda i: found.append(("b", i))))
    assert found == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1), ("b", 2)]


def test_matrix_units_of_u280_hardly_wait():
    """Of a layer of CLIP ViT-L/14 at 336 pixels at most 3 % of the cycles are without a matrix instruction."""
    flow = open_flow("llava-1.5-7b", "u280", layers=1, timing_only=True)
    runs = []
    for layers in (1, 2):
        machine = flow.machine(backend("cycle", with_data=False, model=MemoryModel.of(flow.config, "hbm")))
        machine.encode_image(synthetic_patches(flow), layers=layers)
        result = machine.results[-1][1]
        busy = sum(event.end - event.start for event in result.trace if event.unit == Unit.MX)
        runs.append((result.cycles, busy))
    cycles, busy = (second - first for first, second in zip(*runs, strict=True))
    assert busy > 0.97 * cycles
    print(cycles, busy / cycles)


def test_plan_of_u280():
    flow = open_flow("llava-1.5-7b", "u280", layers=1, timing_only=True)
    planned = plan(flow.layout)
    assert planned is not None
    assert planned.count <= encoder.LARGEST_TILES
    assert 2 * planned.tile <= flow.config.acc_rows
