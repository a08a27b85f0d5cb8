"""Folders that transformers writes, opened as they are: the float reference says what transformers says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hw.spec.errors import UserError
from ref_model import anyres
from ref_model.checkpoints import load
from ref_model.config import LlavaConfig, VisionConfig
from ref_model.modules import LlavaModel
from ref_model.preprocess import preprocess
from ref_model.tokenizer import expand_image_tokens, load_tokenizer
from tests.ref_model.transformers_models import MistralConfig, Written, photo, write_llava, write_llava_next

TOLERANCE = 1e-4
PROMPT = "USER: <image>\nWhat is this? ASSISTANT:"
N_NEW = 8
SIZES = [(28, 28), (60, 40), (40, 60), (200, 40), (30, 100), (64, 64), (97, 61), (13, 31)]
"""Widths and heights of images: every pinpoint, and borders on either side."""


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def llava_next(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_llava_next(tmp_path_factory.mktemp("next"), seed=1)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape and b.std() > 0.5
    return float((a - b).abs().max())


@pytest.mark.parametrize("size", [(56, 56), (90, 61), (40, 120)])
def test_llava_logits_and_tokens(llava: Written, size: tuple[int, int]) -> None:
    config, state = load(llava.folder)
    model, image, inputs = LlavaModel.from_state(config, state), photo(*size), llava.inputs(photo(*size), PROMPT)
    pixels = preprocess(image, 56)
    assert difference(pixels, inputs["pixel_values"][0]) < 1e-5
    ids = expand_image_tokens(load_tokenizer(llava.folder).encode(PROMPT), config, [config.n_visual_tokens])
    assert ids == inputs["input_ids"][0].tolist()
    found = difference(model.prefill(ids, pixels)[0], llava.logits(inputs))
    print(f"LLaVA-1.5 {size}: largest difference of logits {found:.2e}")
    assert found < TOLERANCE
    assert model.generate(ids, N_NEW, pixels, load_tokenizer(llava.folder).eos_id) == llava.greedy(inputs, N_NEW)


def test_text_alone(llava: Written) -> None:
    model = LlavaModel.from_state(*load(llava.folder))
    inputs, ids = llava.inputs(None, "No image."), load_tokenizer(llava.folder).encode("No image.")
    assert difference(model.prefill(ids)[0], llava.logits(inputs)) < TOLERANCE
    assert model.generate(ids, N_NEW) == llava.greedy(inputs, N_NEW)


def test_a_rest_of_pixels_is_not_seen(tmp_path: Path) -> None:
    """60 pixels are four patches of 14 and 4 pixels, which CLIP's convolution leaves out."""
    written = write_llava(tmp_path, image_size=60, seed=4)
    config, state = load(tmp_path)
    inputs = written.inputs(photo(70, 50), PROMPT)
    ids = expand_image_tokens(load_tokenizer(tmp_path).encode(PROMPT), config)
    assert config.n_visual_tokens == 16
    logits, _ = LlavaModel.from_state(config, state).prefill(ids, preprocess(photo(70, 50), 60))
    assert difference(logits, written.logits(inputs)) < TOLERANCE


@pytest.mark.parametrize(("text", "strategy"), [({"tie_word_embeddings": True}, "default"), ({"head_dim": 32}, "full")])
def test_llava_variants(tmp_path: Path, text: dict, strategy: str) -> None:
    written = write_llava(tmp_path, seed=2, strategy=strategy, **text)
    config, state = load(tmp_path)
    inputs = written.inputs(photo(70, 50), PROMPT)
    ids = expand_image_tokens(load_tokenizer(tmp_path).encode(PROMPT), config)
    logits, _ = LlavaModel.from_state(config, state).prefill(ids, preprocess(photo(70, 50), 56))
    assert difference(logits, written.logits(inputs)) < TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_llava_next_logits_and_tokens(llava_next: Written, size: tuple[int, int]) -> None:
    config, state = load(llava_next.folder)
    model, image, inputs = LlavaModel.from_state(config, state), photo(*size), llava_next.inputs(photo(*size), PROMPT)
    pixels, order = anyres.tiles(image, config), anyres.layout((image.height, image.width), config)
    assert difference(pixels, inputs["pixel_values"][0]) < 1e-5
    tokenizer = load_tokenizer(llava_next.folder)
    ids = expand_image_tokens(tokenizer.encode(PROMPT), config, [len(order)])
    assert ids == inputs["input_ids"][0].tolist()
    found = difference(model.prefill(ids, pixels, order)[0], llava_next.logits(inputs))
    print(f"LLaVA-NeXT {size}, {len(pixels)} tiles, {len(order)} tokens: largest difference of logits {found:.2e}")
    assert found < TOLERANCE
    assert model.generate(ids, N_NEW, pixels, tokenizer.eos_id, order) == llava_next.greedy(inputs, N_NEW)


def test_llava_next_on_mistral(tmp_path: Path) -> None:
    written = write_llava_next(tmp_path, seed=3, family=MistralConfig, sliding_window=None)
    config, state = load(tmp_path)
    image, inputs = photo(50, 33), written.inputs(photo(50, 33), PROMPT)
    order = anyres.layout((33, 50), config)
    ids = expand_image_tokens(load_tokenizer(tmp_path).encode(PROMPT), config, [len(order)])
    logits, _ = LlavaModel.from_state(config, state).prefill(ids, anyres.tiles(image, config), order)
    assert difference(logits, written.logits(inputs)) < TOLERANCE


# --- any resolution ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> LlavaConfig:
    """LLaVA-NeXT's tower and pinpoints; the language model's sizes play no part."""
    from ref_model.checkpoints.hf_config import NEXT_PINPOINTS
    from ref_model.config import MODELS

    return replace(MODELS["llava-1.5-7b"], pinpoints=NEXT_PINPOINTS)


@pytest.mark.parametrize(
    ("height", "width", "tokens"), [(480, 640, 2340), (336, 336, 1176), (672, 672, 2928), (640, 480, 2352)]
)
def test_published_token_counts(published: LlavaConfig, height: int, width: int, tokens: int) -> None:
    assert len(anyres.layout((height, width), published)) == tokens


def test_layout_is_transformers_packing(published: LlavaConfig) -> None:
    """transformers packs features that hold their own place: what comes out is the gather list."""
    from transformers import LlavaNextConfig
    from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, image_size_to_num_patches

    class Packer:
        config = LlavaNextConfig()
        pack = LlavaNextModel.pack_image_features

    random = np.random.default_rng(0)
    sizes = [(1, 40), (40, 1), (5, 640), (337, 1000), *random.integers(20, 1200, (40, 2)).tolist()]
    for height, width in sizes:
        count = image_size_to_num_patches([height, width], Packer.config.image_grid_pinpoints, 336)
        places = torch.arange(count * 576).reshape(count, 576, 1)
        (packed,), _ = Packer().pack([places], [[height, width]], "default", torch.tensor([anyres.NEWLINE]))
        assert np.array_equal(anyres.layout((height, width), published), packed[:, 0].numpy()), (height, width)
        assert int(packed.max()) < count * 576 and len(packed) <= 2928


def test_tiles_show_the_image_and_its_border(published: LlavaConfig) -> None:
    pixels = anyres.tiles(photo(640, 480).convert("RGBA"), published)
    assert pixels.shape == (5, 3, 336, 336) and pixels.dtype == torch.float32
    black = preprocess(photo(9, 9).point(lambda _: 0), 336)
    assert torch.equal(pixels[1, :, :80], black[:, :80]) and not torch.equal(pixels[0, :, :80], black[:, :80])


def test_any_resolution_errors(llava: Written, llava_next: Written) -> None:
    config, state = load(llava_next.folder)
    with pytest.raises(UserError, match="4000 x 1 pixels is too narrow"):
        anyres.layout((1, 4000), config)
    with pytest.raises(UserError, match="takes images of one size"):
        anyres.layout((10, 10), load(llava.folder)[0])
    model, ids = LlavaModel.from_state(config, state), load_tokenizer(llava_next.folder).encode(PROMPT)
    with pytest.raises(UserError, match="cuts images into tiles"):
        expand_image_tokens(ids, config)
    with pytest.raises(UserError, match="1 image tokens, there are 2 images"):
        expand_image_tokens(ids, config, [10, 10])
    with pytest.raises(UserError, match="takes images as tiles with an order"):
        model.encode_images(torch.zeros(2, 3, 28, 28))
    with pytest.raises(UserError, match=r"pinpoint \(28, 50\) is no multiple"):
        replace(config, pinpoints=((28, 50),))
    with pytest.raises(UserError, match="without its class token"):
        replace(config, vision=replace(config.vision, drop_class=False))


# --- what is wrong with a folder -----------------------------------------------------------------------------


def one_line(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_broken_tensors_are_one_line(tmp_path: Path) -> None:
    folder = write_llava_next(tmp_path / "broken").folder
    whole = load_file(folder / "model.safetensors")

    def without(name: str, **changed: torch.Tensor) -> None:
        save_file({key: value for key, value in whole.items() if key != name} | changed, folder / "model.safetensors")

    without("image_newline")
    one_line(folder, "no tensor image_newline: give a complete broken checkpoint")
    without("image_newline", image_newline=torch.zeros(32))
    one_line(folder, r"image_newline has shape \[32\], the configuration says \[64\]")
    without("multi_modal_projector.linear_2.bias")
    one_line(folder, r"no tensor multi_modal_projector\.linear_2\.bias")
    (folder / "model.safetensors").write_bytes(b"cut")
    one_line(folder, "not a complete safetensors file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": {"shortest_edge": 224}}, "processor_config.json: size is"),
        ({"do_center_crop": False}, "do_center_crop is False"),
        ({"resample": 2}, "resample is 2"),
        ({"image_mean": [0.5]}, "image_mean is"),
        ({"image_grid_pinpoints": [[28, 28]]}, "image_grid_pinpoints is"),
    ],
)
def test_other_image_processing_is_refused(llava_next: Written, tmp_path: Path, change: dict, message: str) -> None:
    for file in llava_next.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    settings["image_processor"] |= change
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    one_line(tmp_path, message)


def test_the_processors_mean_and_deviation_are_taken(llava: Written, tmp_path: Path) -> None:
    """As transformers 4.x stores them."""
    for file in llava.folder.iterdir():
        if file.name != "processor_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    vision = load(tmp_path)[0].vision
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.4, 0.3], "size": 56}))
    assert isinstance(vision, VisionConfig)
    assert load(tmp_path)[0].vision == replace(vision, pixel_mean=(0.5, 0.4, 0.3))
