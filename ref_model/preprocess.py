"""Image preprocessing, as `CLIPImageProcessor` with Pillow does it.

RGB, bicubic resize of the shortest edge, centre crop, scale by 1/255, normalise by mean and deviation (CLIP's,
unless the model's configuration has others).
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from hw.spec.errors import UserError

from .config import CLIP_MEAN, CLIP_STD, Rgb, VisionConfig

PAD_COLOUR = (122, 116, 104)
"""CLIP's mean as 8-bit values, the border of the original LLaVA's square padding."""


def open_image(path: str | Path) -> Image.Image:
    """Read an image file of any kind that Pillow knows, turned upright; UserError if it cannot be read."""
    try:
        image = ImageOps.exif_transpose(Image.open(path))
        image.load()
    except FileNotFoundError:
        raise UserError(f"no image at {path}: give the path of an image file") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        message = str(error).partition("\n")[0]
        raise UserError(f"cannot read {path} as an image ({message}): give a complete PNG or JPEG file") from error
    return image


def rgb(image: Image.Image) -> Image.Image:
    """An image of any mode with 8 bits a channel in RGB, as transformers' `convert_to_rgb` makes it.

    Grey values of 16 bits are divided by 257, so that white stays white; grey values in floating point are taken for
    0..1. (Pillow's own conversion cuts both off at 255.) UserError for values that mean nothing as brightness.
    """
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_grey(np.asarray(image), image.mode)).convert("RGB")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise UserError(f"an image of mode {image.mode} cannot be shown in RGB ({error}): save it as RGB") from None


def _grey(values: np.ndarray, mode: str) -> np.ndarray:
    """uint8 brightness of wide grey values."""
    largest, what = (1.0, "floating-point") if mode == "F" else (65535.0, "integer")
    least, most = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if not (least >= 0 and most <= largest):
        raise UserError(
            f"{what} grey values of {least:g} to {most:g} are outside 0..{largest:g}: save the image with "
            "8 or 16 bits a channel"
        )
    return np.round(values.astype(np.float64) * (255 / largest)).astype(np.uint8)


def pad_to_square(image: Image.Image) -> Image.Image:
    """Centre `image` on a square of `PAD_COLOUR`: the original LLaVA's "pad" mode, which keeps the whole picture."""
    edge = max(image.size)
    if edge > LARGEST_SQUARE:
        raise UserError(
            f"a square around an image of {image.width} x {image.height} pixels is larger than "
            f"{LARGEST_SQUARE} x {LARGEST_SQUARE}: crop or scale it"
        )
    square = Image.new("RGB", (edge, edge), PAD_COLOUR)
    square.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    return square


STRIP = 16
"""Proportions from which on an image is a strip: of its long side, only what the crop keeps is scaled."""
LARGEST_SQUARE = 1 << 13


def resize_and_crop(image: Image.Image, image_size: int) -> Image.Image:
    """RGB image of `image_size` x `image_size` pixels: shortest edge resized (bicubic), the middle kept.

    A strip is cropped while it is scaled: 10,000 x 1 pixels would else become an image of 4.5 GB first. Pillow may then
    scale its two directions in the other order, which moves smooth pictures by a level at most.
    """
    short, long = sorted(image.size)
    is_strip, long = long > STRIP * short, int(image_size * long / short)
    width, height = (image_size, long) if image.width <= image.height else (long, image_size)
    left, top = (width - image_size) // 2, (height - image_size) // 2
    if is_strip:
        x, y = image.width / width, image.height / height
        box = (left * x, top * y, (left + image_size) * x, (top + image_size) * y)
        return image.resize((image_size, image_size), Image.Resampling.BICUBIC, box)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + image_size, top + image_size))


def preprocess(
    image: Image.Image, image_size: int, pad: bool = False, mean: Rgb = CLIP_MEAN, std: Rgb = CLIP_STD
) -> Tensor:
    """Normalised pixels float32[3, image_size, image_size] of any Pillow image.

    `pad` makes the image square by a border first, in place of losing its long ends to the crop. `mean`, `std`: of
    values 0..1, one a channel.
    """
    image = rgb(image)
    return normalise(resize_and_crop(pad_to_square(image) if pad else image, image_size), mean, std)


def normalise(image: Image.Image, mean: Rgb = CLIP_MEAN, std: Rgb = CLIP_STD) -> Tensor:
    """float32[3, H, W] of an RGB image: scaled to 0..1, less `mean`, divided by `std`."""
    values: np.ndarray = np.asarray(image, dtype=np.float32) * np.float32(1 / 255)
    values = (values - np.asarray(mean, dtype=np.float32)) / np.asarray(std, dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))


def image_pixels(image: Image.Image, config: VisionConfig) -> Tensor:
    """Normalised pixels float32[3, image_size, image_size] as the tower of `config` wants them."""
    return preprocess(image, config.image_size, mean=config.pixel_mean, std=config.pixel_std)


def patches(pixels: Tensor, patch: int) -> Tensor:
    """Cut float[3, H, W] into float[n_patches, 3*patch*patch]: patches row by row, values in the order of a
    convolution weight (channel, row, column). As that convolution does, a rest that is no whole patch is left out."""
    channels, height, width = pixels.shape
    if min(height, width) < patch:
        raise UserError(f"image is {width} x {height} pixels, less than a patch of {patch} x {patch}: enlarge it")
    height, width = height - height % patch, width - width % patch
    blocks = pixels[:, :height, :width].reshape(channels, height // patch, patch, width // patch, patch)
    return blocks.permute(1, 3, 0, 2, 4).reshape(-1, channels * patch * patch)
