"""Augmentation of training images as in CoOp's and the authors' code: random resized crop and horizontal flip.

The authors' code neither crops nor flips images of CIFAR-10 and CIFAR-100: set `data.augmented_views = 1` for these.
"""

import math

import torch
from PIL import Image

from fedpgp.runtime.randomness import generator

AREA = (0.08, 1.0)  # share of the picture (CoOp's INPUT.RRCROP_SCALE)
RATIO = (3 / 4, 4 / 3)  # width : height
FLIP = 0.5
SEED = 0  # the views are part of the data, so they are the same in every run
ATTEMPTS = 10


def random_view(picture: Image.Image, size: tuple[int, int], index: int, view: int) -> Image.Image:
    """Return view number `view` of picture number `index` of a dataset, resized bicubically to width x height `size`.

    The random draw depends only on the index and the view.
    """
    rng = generator(SEED, "view", index, view)
    cropped = picture.crop(random_box(*picture.size, rng)).resize(size, Image.Resampling.BICUBIC)
    flipped = _uniform(rng, 0, 1) < FLIP
    return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else cropped


def random_box(width: int, height: int, rng: torch.Generator) -> tuple[int, int, int, int]:
    """Draw left, top, right and bottom of a crop, in pixels.

    Its share of the area is uniform in AREA, and the logarithm of its ratio is uniform in the logarithms of RATIO.
    If ten draws do not fit into a very long picture, return its middle with the nearest allowed ratio.
    """
    for _ in range(ATTEMPTS):
        area = width * height * _uniform(rng, *AREA)
        ratio = math.exp(_uniform(rng, *map(math.log, RATIO)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = _integer(rng, width - w), _integer(rng, height - h)
            return left, top, left + w, top + h
    w = max(1, min(width, round(height * RATIO[1])))
    h = max(1, min(height, round(width / RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _uniform(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=rng, dtype=torch.float64).item()


def _integer(rng: torch.Generator, highest: int) -> int:
    return int(torch.randint(highest + 1, (), generator=rng).item())
