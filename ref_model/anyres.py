"""LLaVA-NeXT's images of any resolution: tiles, and the order in which their patches become visual tokens.

An image is scaled into the best of a few resolutions (`LlavaConfig.pinpoints`), bordered with black and cut into tiles
of the tower's size; tile 0 is the whole image squeezed into one. The patches of tiles 1.. form one large grid: what was
border leaves it, and a newline token ends each of its rows. Sizes are (height, width) throughout, in pixels or patches.
Source: Liu et al. 2024 (LLaVA-NeXT), with the roundings of transformers' `LlavaNext*`.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hw.spec.errors import UserError

from .config import LlavaConfig, VisionConfig
from .preprocess import normalise, rgb

Size = tuple[int, int]
NEWLINE = -1
"""Place of the newline token in `layout`; as an index it picks the last row of [tile features; newline]."""


def _tower(config: LlavaConfig) -> VisionConfig:
    if config.vision is None or not config.pinpoints:
        raise UserError(f"model {config.name} takes images of one size: use ref_model.preprocess.preprocess")
    return config.vision


def best_resolution(image_size: Size, pinpoints: Sequence[Size]) -> Size:
    """The pinpoint that keeps the most of the image's pixels, then the one that wastes the fewest, then the first."""
    height, width = image_size

    def kept(pinpoint: Size) -> int:
        scale = min(pinpoint[1] / width, pinpoint[0] / height)
        return min(int(width * scale) * int(height * scale), width * height)

    best = max(pinpoints, key=lambda p: (kept(p), kept(p) - p[0] * p[1]))
    if kept(best) == 0:
        raise UserError(f"an image of {width} x {height} pixels is too narrow to be cut into tiles: crop it")
    return best


def fitted(image_size: Size, target: Size) -> Size:
    """Size of an image scaled to fit inside `target`, rounded up."""
    height, width = image_size
    by_width, by_height = target[1] / width, target[0] / height
    if by_width < by_height:
        return min(math.ceil(height * by_width), target[0]), target[1]
    return target[0], min(math.ceil(width * by_height), target[1])


def tiles(image: Image.Image, config: LlavaConfig) -> Tensor:
    """Normalised pixels float32[n_tiles, 3, s, s] of any Pillow image: the whole of it, then its tiles row by row."""
    vision, size = _tower(config), (image.height, image.width)
    edge = vision.image_size
    image = rgb(image)
    height, width = best_resolution(size, config.pinpoints)
    new_height, new_width = fitted(size, (height, width))
    canvas = Image.new("RGB", (width, height))
    scaled = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
    canvas.paste(scaled, ((width - new_width) // 2, (height - new_height) // 2))
    cut = [
        canvas.crop((left, top, left + edge, top + edge))
        for top in range(0, height, edge)
        for left in range(0, width, edge)
    ]
    whole = image.resize((edge, edge), Image.Resampling.BICUBIC)
    return torch.stack([normalise(tile, vision.pixel_mean, vision.pixel_std) for tile in (whole, *cut)])


def unpadded(image_size: Size, grid: Size) -> tuple[range, range]:
    """Rows and columns of a patch grid that show the image and not its border."""
    (height, width), (rows, columns) = image_size, grid
    if width / height > columns / rows:
        border = (rows - int(round(height * (columns / width), 7))) // 2
        return range(border, rows - border), range(columns)
    border = (columns - int(round(width * (rows / height), 7))) // 2
    return range(rows), range(border, columns - border)


def layout(image_size: Size, config: LlavaConfig) -> np.ndarray:
    """Where each visual token of an image comes from, int64[n_tokens]: a row of the tiles' features one after another
    (tile * n_patches + patch), or `NEWLINE`.
    """
    vision = _tower(config)
    grid, per_tile = vision.grid, vision.n_patches
    down, across = (edge // vision.image_size for edge in best_resolution(image_size, config.pinpoints))
    rows, columns = (np.asarray(kept) for kept in unpadded(image_size, (down * grid, across * grid)))
    tile = 1 + (rows // grid * across)[:, None] + columns // grid
    source = tile * per_tile + (rows % grid * grid)[:, None] + columns % grid
    lines = np.pad(source, ((0, 0), (0, 1)), constant_values=NEWLINE)
    return np.concatenate([np.arange(per_tile), lines.reshape(-1)])
