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


def pad_to_square(image: Image.Image) -> Image.Image:
    """Centre `image` on a square of `PAD_COLOUR`: the original LLaVA's "pad" mode, which keeps the whole picture."""
    edge = max(image.size)
    square = Image.new("RGB", (edge, edge), PAD_COLOUR)
    square.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    return square


def resize_and_crop(image: Image.Image, image_size: int) -> Image.Image:
    """RGB image of `image_size` x `image_size` pixels: shortest edge resized (bicubic), the middle kept."""
    short, long = sorted(image.size)
    long = int(image_size * long / short)
    width, height = (image_size, long) if image.width <= image.height else (long, image_size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - image_size) // 2, (height - image_size) // 2
    return resized.crop((left, top, left + image_size, top + image_size))


def preprocess(image: Image.Image, image_size: int, pad: bool = False, mean: Rgb = CLIP_MEAN,
               std: Rgb = CLIP_STD) -> Tensor:
    """Normalised pixels float32[3, image_size, image_size] of any Pillow image.

    `pad` makes the image square by a border first, in place of losing its long ends to the crop. `mean`, `std`: of
    values 0..1, one a channel.
    """
    image = image.convert("RGB")
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
    convolution weight (channel, row, column). H and W are multiples of `patch` (pixels)."""
    channels, height, width = pixels.shape
    if height % patch or width % patch:
        raise UserError(f"image is {width} x {height} pixels, patches are {patch}: resize it to a multiple")
    blocks = pixels.reshape(channels, height // patch, patch, width // patch, patch)
    return blocks.permute(1, 3, 0, 2, 4).reshape(-1, channels * patch * patch)


def tower_patches(pixels: Tensor, config: VisionConfig) -> Tensor:
    """`patches` of one image float[3, image_size, image_size], less the pixels that fill no whole patch."""
    covered = config.grid * config.patch_size
    return patches(pixels[:, :covered, :covered], config.patch_size)
