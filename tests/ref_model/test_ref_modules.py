"""The float reference: shapes, derived sizes, cache consistency, merging, export, and agreement with plain formulas."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.export import Dim, export

from hw.spec.errors import UserError
from ref_model.checkpoints import state_shapes, synthetic_state
from ref_model.config import MODELS, LlavaConfig, RopeScaling, TextConfig, VisionConfig, named_config
from ref_model.modules import LlavaModel, apply_rope, causal_mask, rope_tables
from ref_model.preprocess import patches
from ref_model.tokenizer import ByteTokenizer, expand_image_tokens

TINY = MODELS["llava-tiny"]


@pytest.fixture(scope="module")
def tiny() -> LlavaModel:
    return LlavaModel.from_state(TINY, synthetic_state(TINY, seed=1))


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(3, 56, 56, generator=torch.Generator().manual_seed(0))


def prompt() -> list[int]:
    return expand_image_tokens(ByteTokenizer().encode("a <image> b?"), TINY)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_the_canonical_state(name: str) -> None:
    with torch.device("meta"):
        state = LlavaModel(MODELS[name]).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == state_shapes(MODELS[name])


@pytest.mark.parametrize(
    ("name", "macs", "vision_layers"), [("llava-1.5-7b", 202_375_168, 23), ("llava-1.5-13b", 317_194_240, 23)]
)
def test_published_sizes(name: str, macs: int, vision_layers: int) -> None:
    config = MODELS[name]
    layer = [
        math.prod(shape)
        for key, shape in state_shapes(config).items()
        if key.startswith("language_model.layers.0.") and len(shape) == 2
    ]
    assert sum(layer) == macs
    assert (config.num_executed_vision_layers, config.n_visual_tokens) == (vision_layers, 576)


def test_prefill_shapes(tiny: LlavaModel, pixels: torch.Tensor) -> None:
    ids = prompt()
    logits, cache = tiny.prefill(ids, pixels)
    assert logits.shape == (len(ids), 259) and logits.isfinite().all()
    assert [(k.shape, v.shape) for k, v in cache] == [((2, len(ids), 16), (2, len(ids), 16))] * 2
    assert tiny.encode_images(pixels).shape == (16, 64)


def test_decode_equals_prefill(tiny: LlavaModel, pixels: torch.Tensor) -> None:
    ids = prompt()
    whole, whole_cache = tiny.prefill([*ids, 70, 71, 72], pixels)
    logits, cache = tiny.prefill(ids, pixels)
    rows = [logits]
    for chunk in ([70], [71, 72]):
        logits, cache = tiny.decode(chunk, cache)
        rows.append(logits)
    torch.testing.assert_close(torch.cat(rows), whole, atol=1e-4, rtol=1e-4)
    for (k, v), (whole_k, whole_v) in zip(cache, whole_cache, strict=True):
        torch.testing.assert_close(k, whole_k, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(v, whole_v, atol=1e-4, rtol=1e-4)


def test_image_changes_only_what_follows_it(tiny: LlavaModel, pixels: torch.Tensor) -> None:
    ids = prompt()
    first = ids.index(TINY.image_token_index)
    one, two = tiny.prefill(ids, pixels)[0], tiny.prefill(ids, -pixels)[0]
    assert torch.equal(one[:first], two[:first])
    assert not torch.allclose(one[-1], two[-1])


def test_two_images_fill_their_places_in_order(tiny: LlavaModel, pixels: torch.Tensor) -> None:
    ids = torch.tensor(prompt() * 2)
    x = tiny.embed(ids, torch.stack((pixels, -pixels)))
    expected = torch.cat((tiny.encode_images(pixels), tiny.encode_images(-pixels)))
    assert torch.equal(x[ids == TINY.image_token_index], expected)


def test_generate_is_repeatable(tiny: LlavaModel, pixels: torch.Tensor) -> None:
    tokens = tiny.generate(prompt(), 5, pixels)
    assert len(tokens) == 5 and tokens == tiny.generate(prompt(), 5, pixels)
    assert tiny.generate(prompt(), 5, pixels, eos_id=tokens[2]) == tokens[: tokens.index(tokens[2]) + 1]


def test_patch_linear_is_the_convolution(tiny: LlavaModel, pixels: torch.Tensor) -> None:
    embeddings = tiny.vision_tower.embeddings
    expected = embeddings.patch_embedding(pixels[None])[0].flatten(1).T
    got = embeddings(patches(pixels, 14))[1:] - embeddings.position_embedding.weight[1:]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_rope_rotates_half_split_pairs_and_depends_on_distance() -> None:
    config = TINY.text
    x = torch.randn(1, 3, 16)
    rotated = apply_rope(x, *rope_tables(config, torch.tensor([0, 5, 9])))
    assert torch.equal(rotated[:, 0], x[:, 0])
    angle = 5 * 1e4 ** (-2 * 3 / 16)
    expected = x[0, 1, 3] * math.cos(angle) - x[0, 1, 11] * math.sin(angle)
    assert rotated[0, 1, 3].item() == pytest.approx(expected.item(), abs=1e-6)
    q, k = torch.randn(2, 1, 1, 16)
    products = [
        (
            apply_rope(q, *rope_tables(config, torch.tensor([p + 4])))
            * apply_rope(k, *rope_tables(config, torch.tensor([p])))
        )
        .sum()
        .item()
        for p in (0, 3, 200)
    ]
    assert products == pytest.approx([products[0]] * 3, abs=1e-4)


def test_llama3_scaling_divides_slow_frequencies_only() -> None:
    scaling = RopeScaling(factor=8.0, low=1.0, high=4.0, original_context=64)
    plain = TextConfig(64, 1, 1, 1, 64, 8, 8, 1e4, 1e-5, 64)
    scaled = TextConfig(64, 1, 1, 1, 64, 8, 8, 1e4, 1e-5, 64, rope_scaling=scaling)
    one, eight = torch.tensor([1]), torch.tensor([8])
    assert torch.equal(rope_tables(scaled, one)[1][0, 0], rope_tables(plain, one)[1][0, 0])
    torch.testing.assert_close(rope_tables(scaled, eight)[1][0, 31], rope_tables(plain, one)[1][0, 31])


def test_causal_mask_aligns_to_the_last_key() -> None:
    assert causal_mask(2, 4).tolist() == [[True, True, True, False], [True, True, True, True]]


def test_decoder_layer_exports_with_symbolic_lengths(tiny: LlavaModel) -> None:
    layer = tiny.language_model.layers[0]

    def arguments(seq: int, cache: int) -> tuple[torch.Tensor, ...]:
        cos, sin = rope_tables(TINY.text, torch.arange(cache, cache + seq))
        return torch.randn(seq, 64), cos, sin, torch.randn(2, cache, 16), torch.randn(2, cache, 16)

    seq, cache = Dim("seq", min=1, max=4096), Dim("cache", min=0, max=4095)
    program = export(layer, arguments(5, 7), dynamic_shapes=({0: seq}, {0: seq}, {0: seq}, {1: cache}, {1: cache}))
    ranges = sorted((int(bound.lower), int(bound.upper)) for bound in program.range_constraints.values())
    assert ranges == [(0, 4095), (1, 4096)]
    for n_seq, n_cache in ((1, 0), (1, 1), (1, 9), (12, 0), (3, 2)):
        inputs = arguments(n_seq, n_cache)
        for got, expected in zip(program.module()(*inputs), layer(*inputs), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_vision_tower_and_projector_export(tiny: LlavaModel, pixels: torch.Tensor) -> None:
    inputs = (patches(pixels, 14),)
    features = export(tiny.vision_tower, inputs).module()(*inputs)
    torch.testing.assert_close(features, tiny.vision_tower(*inputs))
    rows = Dim("rows", min=1, max=4096)
    projector = export(tiny.multi_modal_projector, (features,), dynamic_shapes=({0: rows},))
    torch.testing.assert_close(projector.module()(features[:3]), tiny.multi_modal_projector(features[:3]))


@pytest.mark.parametrize(("feature_layer", "executed"), [(-2, 2), (-1, 3), (0, 0), (2, 2), (-4, 0)])
def test_executed_vision_layers(feature_layer: int, executed: int) -> None:
    assert VisionConfig(56, 14, 48, 3, 3, 80, feature_layer=feature_layer).num_executed_vision_layers == executed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: named_config("llava-9b"), "unknown model 'llava-9b'"),
        (lambda: VisionConfig(13, 14, 48, 3, 3, 80), "image_size is 13 pixels"),
        (lambda: VisionConfig(56, 14, 48, 3, 5, 80), "vision hidden is 48"),
        (lambda: VisionConfig(56, 14, 48, 3, 3, 80, feature_layer=4), "feature_layer is 4"),
        (lambda: TextConfig(64, 2, 4, 3, 16, 176, 259, 1e4, 1e-5, 256), "heads is 4"),
        (lambda: TextConfig(64, 0, 4, 4, 16, 176, 259, 1e4, 1e-5, 256), "layers is 0"),
        (lambda: LlavaConfig("x", TINY.text, TINY.vision), "image_token_index is missing"),
    ],
)
def test_configuration_errors(change: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        change()


def test_prompt_errors(tiny: LlavaModel, pixels: torch.Tensor) -> None:
    for ids, image, message in (
        ([1] * 257, None, "257 tokens, llava-tiny has a context of 256"),
        ([], None, "empty"),
        ([1, 258], pixels, "1 image tokens, the images give 16"),
        (prompt(), None, "16 image tokens, the images give 0"),
        ([1, 259], None, "span 1..259"),
        (prompt(), pixels[:, :28], "shape .3, 28, 56."),
    ):
        with pytest.raises(UserError, match=message):
            tiny.prefill(ids, image)
