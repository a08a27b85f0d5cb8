"""CLIP image preprocessing, as `CLIPImageProcessor` with Pillow does it.

RGB, bicubic resize of the shortest edge, centre crop, scale by 1/255, normalise by CLIP's mean and deviation.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from alula.errors import UserError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PAD_COLOUR = (122, 116, 104)
"""CLIP's mean as 8-bit values, the border of the original LLaVA's square padding."""


def open_image(path: str | Path) -> Image.Image:
    """Read an image file of any kind that Pillow knows; UserError if it cannot be read."""
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError:
        raise UserError(f"no image at {path}: give the path of an image file") from None
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        message = str(error).splitlines()[0]
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


def preprocess(image: Image.Image, image_size: int, pad: bool = False) -> Tensor:
    """Normalised pixels float32[3, image_size, image_size] of any Pillow image.

    `pad` makes the image square by a border first, in place of losing its long ends to the crop.
    """
    image = image.convert("RGB")
    image = resize_and_crop(pad_to_square(image) if pad else image, image_size)
    values: np.ndarray = np.asarray(image, dtype=np.float32) * np.float32(1 / 255)
    values = (values - np.asarray(CLIP_MEAN, dtype=np.float32)) / np.asarray(CLIP_STD, dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))


def patches(pixels: Tensor, patch: int) -> Tensor:
    """Cut float[3, H, W] into float[n_patches, 3*patch*patch]: patches row by row, values in the order of a
    convolution weight (channel, row, column). H and W are multiples of `patch` (pixels)."""
    channels, height, width = pixels.shape
    if height % patch or width % patch:
        raise UserError(f"image is {width} x {height} pixels, patches are {patch}: resize it to a multiple")
    blocks = pixels.reshape(channels, height // patch, patch, width // patch, patch)
    return blocks.permute(1, 3, 0, 2, 4).reshape(-1, channels * patch * patch)
