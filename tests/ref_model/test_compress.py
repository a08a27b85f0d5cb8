"""Compression: format invariants, GPTQ against rounding, the allocator's budget, plans, settings and the model hook."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.perplexity import TEXT
from hw.spec.weights import BITS, MAX_SCALE, NONZEROS, WINDOW
from ref_model.calibrate import calibration_ids, smoothed_layer
from ref_model.checkpoints import open_synthetic
from ref_model.checkpoints.base import Checkpoint
from ref_model.compress import BlockFormat, Compression, MixedPlan, UniformPlan
from ref_model.compress.allocate import allocate, block_counts, sensitivity, spread
from ref_model.compress.format import group_blocks
from ref_model.compress.gptq import gptq, output_error
from ref_model.compress.plan import AllocatedPlan, linear_shapes
from ref_model.compress.prune import balanced_nonzeros, keep_mask, scores
from ref_model.compress.recipe import named
from ref_model.compress.rounding import round_matrix
from ref_model.compress.scaling import input_rms, scaled_layer
from ref_model.compress.sequential import CORRECTION, _correction
from ref_model.compress.statistics import Importance, importance
from ref_model.compress.tune import Levels, rounded_rows
from ref_model.golden import GoldenText
from ref_model.modules import LlavaModel
from ref_model.quantise import quantise

LEVELS = {2: (-3, -1, 1, 3), 3: tuple(range(-7, 8, 2)), 4: tuple(range(-8, 8)), 8: tuple(range(-127, 128))}


def check_format(weight: np.ndarray, division: BlockFormat) -> None:
    """Everything a stream relies on, block by block."""
    n_out, n_in = weight.shape
    padded = np.zeros((len(division.bits) * 16, division.bits.shape[1] * 16), np.int64)
    padded[:n_out, :n_in] = weight
    shared: dict[tuple, np.ndarray] = {}
    for (i, j), bits in np.ndenumerate(division.bits):
        n, rows = int(division.nonzeros[i, j]), slice(16 * i, 16 * i + 16)
        block, scale = padded[rows, 16 * j : 16 * j + 16], division.scales[rows, j].astype(int)
        real = np.arange(16 * i, 16 * i + 16) < n_out
        if not n:
            assert not block.any()
            continue
        assert ((block != 0).sum(1) <= n).all()
        if bits == 8:
            assert not scale.any()
            continue
        assert np.abs(scale).max() <= MAX_SCALE[bits]
        if bits < 4:
            assert ((block != 0).sum(1) == np.where(real & (scale != 0), n, 0)).all()
        for row, s in zip(block, scale, strict=True):
            assert set(row.tolist()) <= {0} | {level * s for level in LEVELS[bits]}
        group = shared.setdefault((i, j // WINDOW, bits, n, j % WINDOW // group_blocks(bits, n)), scale)
        assert (group == scale).all()


def matrix(seed: int, n_out: int, n_in: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n_out, n_in)) * np.exp(rng.standard_normal(n_in))).astype(np.float32)


def hessian(seed: int, n_in: int) -> torch.Tensor:
    """Second moments of correlated inputs."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * n_in, n_in // 4)) @ rng.standard_normal((n_in // 4, n_in))
    x = x + 0.3 * rng.standard_normal(x.shape)
    return torch.from_numpy((x.T @ x / len(x)).astype(np.float32))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 70), st.integers(1, 20), st.booleans())
def test_random_divisions_are_representable(seed: int, n_out: int, in_blocks: int, feedback: bool) -> None:
    n_in = 16 * in_blocks
    bits, nonzeros = MixedPlan(seed).blocks("lm_head", n_out, n_in)
    weight = matrix(seed, n_out, n_in)
    mask = keep_mask(scores(weight), nonzeros)
    if feedback:
        packed = gptq(weight, hessian(seed, n_in), bits, nonzeros, mask)
    else:
        packed = round_matrix(weight, bits, nonzeros, mask)
    check_format(packed[0], packed[2])
    assert packed[0].dtype == np.int8 and np.abs(packed[0].astype(int)).max() <= 127 and (packed[1] > 0).all()
    assert mask is None or not packed[0][~mask].any()


@pytest.mark.parametrize(("bits", "limit"), [(8, 2e-4), (4, 0.015), (3, 0.06), (2, 0.25)])
def test_rounding_error_is_what_the_bits_allow(bits: int, limit: float) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    blocks = UniformPlan(bits).blocks("lm_head", *weight.shape)
    q, c, division = round_matrix(weight, *blocks)
    check_format(q, division)
    assert np.square(weight - q * c[:, None]).mean() < limit
    assert division.average_bits == bits


def test_rounding_a_large_matrix_is_quick_and_sound() -> None:
    weight = np.random.default_rng(0).standard_normal((2064, 4096), dtype=np.float32)
    q, c, division = round_matrix(weight, *UniformPlan(4).blocks("lm_head", *weight.shape))
    corner = BlockFormat(division.bits[:2, :16], division.nonzeros[:2, :16], division.scales[:32, :16])
    check_format(q[:32, :256], corner)
    assert np.square(weight - q * c[:, None]).mean() < 0.02


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("nonzeros", [16, 8])
def test_gptq_beats_rounding_to_nearest(bits: int, nonzeros: int) -> None:
    weight, h = matrix(1, 48, 256), hessian(1, 256)
    blocks = UniformPlan(bits, nonzeros).blocks("lm_head", *weight.shape)
    energy = h.diagonal().numpy()
    mask = keep_mask(scores(weight, energy), blocks[1])
    q, c, division = gptq(weight, h, *blocks, mask)
    check_format(q, division)
    nearest = round_matrix(weight, *blocks, mask, energy)
    assert output_error(weight, q, c, h) < 0.7 * output_error(weight, nearest[0], nearest[1], h)


@pytest.mark.parametrize(("bits", "nonzeros"), [(4, 16), (3, 16), (8, 8), (4, 8)])
def test_coordinate_descent_lowers_the_output_error(bits: int, nonzeros: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, h = matrix(1, 48, 256), hessian(1, 256)
    blocks = UniformPlan(bits, nonzeros).blocks("lm_head", *weight.shape)
    mask = keep_mask(scores(weight, h.diagonal().numpy()), blocks[1])
    errors = []
    for passes in (0, 1, 3):
        monkeypatch.setattr("ref_model.compress.gptq.PASSES", passes)
        q, c, division = gptq(weight, h, *blocks, mask)
        check_format(q, division)
        errors.append(output_error(weight, q, c, h))
    assert errors[2] <= errors[1] * 1.001 and errors[1] < errors[0]


def test_correction_makes_up_for_half_of_an_input_error() -> None:
    """Inputs that are the wanted ones through a known mixture: weights move half the way to the mixture's inverse."""
    rng = np.random.default_rng(0)
    wanted = torch.from_numpy(rng.standard_normal((4000, 24)).astype(np.float32))
    mixture = torch.eye(24) + 0.05 * torch.from_numpy(rng.standard_normal((24, 24)).astype(np.float32))
    inputs = wanted @ mixture
    found = _correction(inputs.T @ inputs / 4000, wanted.T @ inputs / 4000)
    expected = CORRECTION * (torch.linalg.inv(mixture).T - torch.eye(24))
    assert (found - expected).norm() < 0.25 * expected.norm()


@pytest.mark.parametrize(("bits", "nonzeros"), [(4, 16), (3, 16), (2, 16), (8, 8), (4, 4), (None, None)])
def test_levels_in_training_keep_the_format(bits: int | None, nonzeros: int | None) -> None:
    """Untouched they give back the integers; after steps other ones of the same format, pruned weights still zero."""
    weight = matrix(5, 48, 256)
    blocks = (MixedPlan(1) if bits is None else UniformPlan(bits, nonzeros)).blocks("lm_head", *weight.shape)
    q, c, division = round_matrix(weight, *blocks, keep_mask(scores(weight), blocks[1]))
    order = np.random.default_rng(5).permutation(48)
    stored = np.empty_like(weight)
    stored[order] = weight
    levels = Levels(q, c, division, stored, order)
    assert (levels.integers().numpy() == q).all()
    assert np.allclose(levels.weight().numpy()[order], q * c[:, None], rtol=1e-5)
    gradient = torch.from_numpy(np.random.default_rng(6).standard_normal(weight.shape).astype(np.float32))
    for number in range(3):
        levels.step(gradient, 0.1, number + 1)
    moved = levels.integers().numpy()
    check_format(moved.astype(np.int8), division)
    sparse = np.repeat(np.repeat(division.nonzeros, 16, 0), 16, 1)[:48] < 16
    assert (moved != q)[q != 0].mean() > 0.1 and not moved[sparse & (q == 0)].any()


def test_weighted_rounding_beats_unweighted_on_weighted_error() -> None:
    weight, energy = matrix(2, 64, 256), np.exp(np.random.default_rng(2).standard_normal(256) * 2).astype(np.float32)
    blocks = UniformPlan(3).blocks("lm_head", *weight.shape)

    def error(packed) -> float:
        return float((np.square(weight - packed[0] * packed[1][:, None]) * energy).sum())

    assert error(round_matrix(weight, *blocks, None, energy)) < error(round_matrix(weight, *blocks))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from((0, *NONZEROS)), st.integers(1, 40), st.integers(1, 80))
def test_masks_keep_exactly_n(seed: int, n: int, n_out: int, n_in: int) -> None:
    score = scores(np.random.default_rng(seed).standard_normal((n_out, n_in)).astype(np.float32))
    nonzeros = np.full((-(-n_out // 16), -(-n_in // 16)), n, np.uint8)
    mask = keep_mask(score, nonzeros)
    kept = np.ones((n_out, n_in), bool) if mask is None else mask
    for start in range(0, n_in, 16):
        part, width = kept[:, start : start + 16], min(16, n_in - start)
        assert (part.sum(1) == min(n, width)).all()
        if 0 < n < width:
            values = score[:, start : start + 16]
            assert (np.where(part, values, np.inf).min(1) >= np.where(part, -np.inf, values).max(1)).all()


def test_wanda_prefers_strong_inputs() -> None:
    energy = np.ones(16, np.float32)
    energy[3] = 100
    weight = np.ones((1, 16), np.float32)
    weight[0, 3] = 0.2
    assert keep_mask(scores(weight, energy), np.ones((1, 1), np.uint8))[0, 3]
    assert not keep_mask(scores(weight), np.ones((1, 1), np.uint8))[0, 3]


@pytest.mark.parametrize("units", [1, 4])
def test_nonzeros_are_balanced_over_units(units: int) -> None:
    weight = matrix(3, 16 * 8, 16 * 19)
    nonzeros = balanced_nonzeros(scores(weight), 6.0, units)
    assert 4.5 < nonzeros.mean() <= 6.0 and set(nonzeros.reshape(-1).tolist()) <= {0, *NONZEROS}
    for step in range(0, 8, units):
        for window in range(0, 19, WINDOW):
            parts = np.sort(nonzeros[step : step + units, window : window + WINDOW], axis=1)
            assert (parts == parts[0]).all()
    even = np.full_like(nonzeros, 4)
    square = np.square(weight)
    assert (square * keep_mask(scores(weight), nonzeros)).sum() > (square * keep_mask(scores(weight), even)).sum()


@settings(max_examples=15, deadline=None)
@given(st.floats(2, 8), st.integers(0, 100))
def test_allocator_meets_its_budget(average: float, seed: int) -> None:
    shapes = {"a": (600, 160), "b": (64, 1000), "c": (16, 16)}
    table = {name: sensitivity(matrix(seed, *shape), None) for name, shape in shapes.items()}
    plan = AllocatedPlan({name: spread(bits, *shapes[name]) for name, bits in allocate(table, average).items()})
    size = sum(b.size for b in plan.table.values())
    assert average - 7 * 32 * 8 / size <= plan.average_bits() <= average + 1e-9
    for name, shape in shapes.items():
        assert set(np.unique(plan.table[name]).tolist()) <= set(BITS)
        assert block_counts(*shape).sum() == plan.table[name].size


def test_allocator_gives_bits_to_what_is_sensitive() -> None:
    weak, strong = matrix(1, 64, 256), matrix(2, 64, 256)
    found = {"weak": sensitivity(weak * 0.01, _flat(weak)), "strong": sensitivity(strong, _flat(strong))}
    chosen = allocate(found, 3.5)
    assert chosen["strong"].mean() > 3.5 > chosen["weak"].mean() >= 3
    with pytest.raises(ValueError, match="outside"):
        allocate({"weak": sensitivity(weak, None)}, 1.5)


def _flat(weight: np.ndarray):
    return Importance(np.ones(weight.shape[1], np.float32), np.ones(weight.shape[0], np.float32))


def test_mixed_plan_is_a_function_of_seed_and_name_and_balanced() -> None:
    first, again = MixedPlan(1).blocks("lm_head", 80, 320), MixedPlan(1).blocks("lm_head", 80, 320)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, MixedPlan(2).blocks("lm_head", 80, 320), strict=True))
    assert any((a != b).any() for a, b in zip(first, MixedPlan(1).blocks("x.y", 80, 320), strict=True))
    for window in range(0, 20, WINDOW):
        parts = np.sort(first[1][:, window : window + WINDOW], axis=1)
        assert (parts == parts[0]).all()
    assert MixedPlan(1).blocks("vision_tower.embeddings.patch_embedding", 48, 588) is None
    assert UniformPlan(4).blocks("vision_tower.encoder.layers.0.mlp.fc1", 80, 48) is None


@pytest.mark.parametrize(
    ("bits", "sparsity", "expected"),
    [
        ("4", "dense", (4, 16)),
        ("3.5", "8:16", (3.5, 8)),
        ("mixed", "mixed", (None, None)),
        ("8", "1:16", (8, 1)),
        ("2", "mixed", (2, None)),
        ("mixed", "dense", (None, 16)),
    ],
)
def test_settings(bits: str, sparsity: str, expected: tuple) -> None:
    compression = Compression.parse(bits, sparsity, "plain", 3)
    assert compression is not None and (compression.bits, compression.nonzeros) == expected


def test_eight_bits_dense_is_no_compression() -> None:
    assert Compression.parse("8", "dense", "best") is None


@pytest.mark.parametrize(
    "wrong",
    [
        ("5x", "dense", "best"),
        ("1", "dense", "best"),
        ("9", "dense", "best"),
        ("4", "3:16", "best"),
        ("4", "2:4", "best"),
        ("4", "dense", "good"),
        ("3.5", "mixed", "best"),
        ("mixed", "4:16", "best"),
        ("-4", "dense", "best"),
    ],
)
def test_settings_that_do_not_exist(wrong: tuple[str, str, str]) -> None:
    with pytest.raises(ValueError) as caught:
        Compression.parse(*wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("bits", "sparsity"), [("4", "dense"), ("3", "4:16"), ("3.5", "dense"), ("mixed", "mixed")])
def test_integer_model_of_a_compressed_checkpoint(bits: str, sparsity: str) -> None:
    """Every linear has its plan's format, and compression costs accuracy, not sense."""
    checkpoint = open_synthetic("llava-tiny")
    compression = Compression.parse(bits, sparsity, "best", 1)
    assert compression is not None
    compressor = compression.compressor(checkpoint)
    model = quantise(checkpoint, compression=compressor)
    layer, tower = model.text.layers[1], model.vision
    assert tower is not None
    named = {
        "self_attn.q_proj": layer.q,
        "self_attn.o_proj": layer.o,
        "mlp.gate_proj": layer.gate,
        "mlp.down_proj": layer.down,
    }
    linears = {f"language_model.layers.1.{name}": value for name, value in named.items()}
    linears |= {
        "lm_head": model.text.head,
        "vision_tower.encoder.layers.0.mlp.fc1": tower.layers[0].fc1,
        "vision_tower.embeddings.patch_embedding": tower.patch,
    }
    for name, value in linears.items():
        blocks = compressor.plan.blocks(name, *value.weight.shape)
        assert (blocks is None) == (value.format is None), name
        if blocks is not None and value.format is not None:
            check_format(value.weight, value.format)
            assert (value.format.bits == blocks[0]).all() and (value.format.nonzeros == blocks[1]).all()
    ids = list(range(20, 60))
    dense, small = GoldenText(quantise(checkpoint)), GoldenText(model)
    a, b = (g.logits(g.forward(g.embed(ids))).astype(float) for g in (dense, small))
    assert np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1] > (0.8 if (bits, sparsity) == ("4", "dense") else 0.05)


def test_average_of_synthetic_weights_is_met_without_reading_them() -> None:
    checkpoint = open_synthetic("llava-1.5-7b")
    compression = Compression.parse("3.5", "dense", "best")
    assert compression is not None
    plan = compression.plan(checkpoint)
    shapes = linear_shapes(checkpoint)
    total = sum(float(plan.blocks(name, *shape)[0].sum(dtype=np.int64)) for name, shape in shapes.items())
    assert math.isclose(total / sum(n * m / 256 for n, m in shapes.values()), 3.5, rel_tol=1e-3)


def calibrated(bits: str, sparsity: str = "dense", recipe: str = "best"):
    """A calibrating recipe on a language model that is not marked as synthetic."""
    source = open_synthetic("llava-tiny")

    class Real(Checkpoint):
        def _fetch(self, name: str):
            return source._fetch(name)

    ids = np.random.default_rng(0).integers(0, 256, 600).tolist()
    checkpoint = Real(source.config, "memory")
    compression = Compression.parse(bits, sparsity, recipe)
    assert compression is not None
    return checkpoint, compression.compressor(checkpoint, ids), ids


@pytest.mark.parametrize(
    ("bits", "sparsity", "recipe"),
    [
        ("4", "dense", "best"),
        ("3.5", "dense", "best"),
        ("8", "8:16", "best"),
        ("4", "dense", "tuned"),
        ("8", "8:16", "tuned"),
    ],
)
def test_calibrating_recipes_beat_plain(bits: str, sparsity: str, recipe: str) -> None:
    """Logits of the integer models against those of the uncompressed one, in any order of the layers."""
    checkpoint, compressor, ids = calibrated(bits, sparsity, recipe)
    plain = Compression.parse(bits, sparsity, "plain")
    assert plain is not None
    models = [
        quantise(checkpoint, with_vision=False),
        quantise(checkpoint, with_vision=False, compression=compressor),
        quantise(checkpoint, with_vision=False, compression=plain.compressor(checkpoint)),
    ]
    check_format(models[1].text.layers[1].down.weight, models[1].text.layers[1].down.format)
    check_format(models[1].text.layers[0].q.weight, models[1].text.layers[0].q.format)
    exact, best, simple = (g.logits(g.forward(g.embed(ids[:200]))).astype(float) for g in map(GoldenText, models))
    assert np.square(best - exact).mean() < 0.8 * np.square(simple - exact).mean()


def test_four_bits_of_trained_weights_are_an_average() -> None:
    checkpoint, compressor, _ = calibrated("4")
    table = compressor.plan.table
    present = {int(bits) for blocks in table.values() for bits in np.unique(blocks)}
    assert present == {3, 4, 8} and 3.9 < compressor.plan.average_bits() <= 4
    assert isinstance(Compression.parse("4", "dense", "plain").plan(checkpoint), UniformPlan)
    assert isinstance(Compression.parse("4", "dense").plan(open_synthetic("llava-tiny"), [1, 2]), UniformPlan)


def uneven(seed: int = 3) -> Checkpoint:
    """A small language model whose layers read some channels a hundred times as strong as others."""
    source, rng = open_synthetic("llava-tiny"), np.random.default_rng(seed)
    gains = {
        name: np.exp(1.5 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in source.shapes.items()
        if "layernorm" in name
    }

    class Real(Checkpoint):
        def _fetch(self, name: str):
            tensor = source._fetch(name)
            return torch.from_numpy(gains[name]) if name in gains else tensor

    return Real(source.config, "memory")


def test_scaled_layers_compute_the_same_and_round_better() -> None:
    """Float logits stay; with weights at 4 bits and activations at 8 their error falls to less than half."""
    checkpoint, ids = uneven(), list(range(20, 148))
    rms = input_rms(checkpoint, ids)
    scaled = [scaled_layer(checkpoint, index, rms) for index in range(checkpoint.config.text.layers)]
    plain = [smoothed_layer(checkpoint, index, None) for index in range(checkpoint.config.text.layers)]

    def logits(states: list, rounding: bool) -> np.ndarray:
        state = checkpoint.state(torch.float32) | named(states)
        if rounding:
            for name, tensor in state.items():
                if name.startswith("language_model.layers.") and tensor.ndim == 2:
                    blocks = UniformPlan(4).blocks("lm_head", *tensor.shape)
                    q, c, _ = round_matrix(tensor.numpy(), *blocks)
                    state[name] = torch.from_numpy((q * c[:, None]).astype(np.float32))
        model = LlavaModel.from_state(checkpoint.config, state)
        for module in model.modules():
            if rounding and isinstance(module, torch.nn.Linear):
                module.register_forward_pre_hook(rounded_rows)
        return model.prefill(ids)[0].numpy()

    exact = logits(plain, False)
    assert np.allclose(logits(scaled, False), exact, atol=1e-3 * np.abs(exact).max())
    errors = [float(np.square(logits(states, True) - exact).mean()) for states in (scaled, plain)]
    assert errors[0] < 0.5 * errors[1]


def test_importance_covers_every_linear() -> None:
    checkpoint, _, ids = calibrated("4")
    found = importance(checkpoint, ids[:64])
    for name, (n_out, n_in) in linear_shapes(checkpoint).items():
        assert found[name].energy.shape == (n_in,) and found[name].gradient.shape == (n_out,)
        assert (found[name].energy >= 0).all() and found[name].gradient.max() > 0


def test_calibration_knows_nothing_of_the_measured_text() -> None:
    """No six words in a row are in both."""
    whole: list[str] = []
    calibration_ids(lambda text: whole.append(text) or [])

    def runs(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"[a-z]+", text.lower())
        return set(zip(*(words[i:] for i in range(6)), strict=False))

    assert len(runs(whole[0])) > 8000 and not runs(whole[0]) & runs(TEXT.read_text())
