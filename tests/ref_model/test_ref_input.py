"""Image preprocessing and tokenizers."""

from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image

from hw.spec.errors import UserError
from ref_model.config import MODELS
from ref_model.preprocess import CLIP_MEAN, CLIP_STD, open_image, patches, preprocess, resize_and_crop
from ref_model.tokenizer import ByteTokenizer, expand_image_tokens, llava_prompt, load_tokenizer


def test_constant_image_is_normalised_by_channel() -> None:
    pixels = preprocess(Image.new("RGB", (56, 56), (255, 0, 51)), 56)
    assert pixels.shape == (3, 56, 56) and pixels.dtype == torch.float32
    expected = [(value - mean) / std for value, mean, std in zip((1.0, 0.0, 0.2), CLIP_MEAN, CLIP_STD, strict=True)]
    assert pixels[:, 17, 23].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("size", [(20, 10), (10, 20), (11, 10), (10, 10)])
def test_crop_keeps_the_middle(size: tuple[int, int]) -> None:
    ramp = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)
    left, top = (size[0] - 10) // 2, (size[1] - 10) // 2
    cropped = np.asarray(resize_and_crop(Image.fromarray(ramp), 10))
    assert np.array_equal(cropped, ramp[top : top + 10, left : left + 10])


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (333, 7), (640, 480), (337, 1000)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_any_image_gives_the_towers_shape(size: tuple[int, int], mode: str) -> None:
    for pad in (False, True):
        pixels = preprocess(Image.new(mode, size), 56, pad)
        assert pixels.shape == (3, 56, 56) and pixels.isfinite().all()


def test_padding_borders_the_picture_with_the_mean_colour() -> None:
    pixels = preprocess(Image.new("RGB", (56, 28), (255, 255, 255)), 56, pad=True)
    assert pixels[:, 0, 0].abs().max() < 0.02
    assert pixels[:, 28, 28].min() > 1.5


def test_patches_are_in_convolution_order() -> None:
    pixels = torch.arange(3 * 4 * 6, dtype=torch.float32).reshape(3, 4, 6)
    rows = patches(pixels, 2)
    assert rows.shape == (6, 12)
    assert torch.equal(rows[4], pixels[:, 2:4, 2:4].flatten())
    assert torch.equal(rows, torch.nn.functional.unfold(pixels[None], 2, stride=2)[0].T)
    assert torch.equal(patches(pixels, 4)[0], pixels[:, :4, :4].flatten()) and len(patches(pixels, 4)) == 1
    with pytest.raises(UserError, match="6 x 4 pixels, less than a patch of 5"):
        patches(pixels, 5)


def test_image_file_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image at"):
        open_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(UserError, match="cannot read"):
        open_image(tmp_path / "text.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:3000])
    with pytest.raises(UserError, match="cannot read"):
        open_image(tmp_path / "cut.png")
    assert open_image(tmp_path / "whole.png").size == (64, 64)
    (tmp_path / "cut.ppm").write_bytes(b"P6\n4 ")
    with pytest.raises(UserError, match="cannot read"):
        open_image(tmp_path / "cut.ppm")


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    """As transformers' `load_image` does; cameras store the turn beside the pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: a quarter turn clockwise.
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (20, 30)


def test_byte_tokenizer_round_trip_and_image_expansion() -> None:
    tokenizer = load_tokenizer("llava-tiny")
    assert tokenizer.encode("Hi<image>é") == [256, 72, 105, 258, 195, 169]
    for text in ("", "plain", "naïve 日本語 🦆", "a\0b\n"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    ids = expand_image_tokens(tokenizer.encode(llava_prompt("What?")), MODELS["llava-tiny"])
    assert ids.count(ByteTokenizer.image_id) == 16
    with pytest.raises(UserError, match=r"token id 259 is outside 0\.\.258"):
        tokenizer.decode([259])


def test_tokenizer_json(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens(["</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("b a zebra") == [1, 0, 2]
    assert (tokenizer.eos_id, tokenizer.vocab, tokenizer.decode([1, 0, 3])) == (3, 4, "b a")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no tokenizer for"):
        load_tokenizer("llava-1.5-7b")
