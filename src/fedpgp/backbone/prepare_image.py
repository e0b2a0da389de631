"""Turn pictures into the pixels that an image tower reads, exact to the pixel and without torchvision.

This file needs only NumPy and Pillow: an exported ONNX model contains a copy of it, so that its users prepare pictures
as fedpgp does. Part of fedpgp, licence Apache-2.0.

The settings have the keys of OpenCLIP's `preprocess_cfg`, all with a value. Two more keys describe the
preprocessing of transformers: "shorter_side", the length in pixels to which the shorter side is resized before the
crop, and "crop", which is "floor" if a crop of an odd number of pixels removes one pixel more on the right.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image


def prepare_image(picture: Image.Image, settings: Mapping[str, Any]) -> "np.ndarray[Any, Any]":
    """Return the pixels [1, 3, H, W] of an RGB picture in float32.

    Parameters
    ----------
    picture
        The result of `read_image`.
    settings
        The preprocessing.
    """
    return normalized([resized(picture, settings)], settings)


def normalized(pictures: Sequence[Image.Image], settings: Mapping[str, Any]) -> "np.ndarray[Any, Any]":
    """Return the pixels [B, 3, H, W] of B pictures of one size, with the mean and the deviation of the settings."""
    values = np.stack([np.asarray(picture) for picture in pictures]).transpose(0, 3, 1, 2).astype(np.float32)
    mean, deviation = (np.reshape(np.float32(settings[name]), (-1, 1, 1)) for name in ("mean", "std"))
    return (values / np.float32(255) - mean) / deviation


def resized(picture: Image.Image, settings: Mapping[str, Any]) -> Image.Image:
    """Return the picture in the tower's size: resized, then cropped or padded where a side does not fit."""
    size, mode = settings["size"], settings["resize_mode"]
    height, width = (size, size) if isinstance(size, int) else size
    shorter_side = settings.get("shorter_side", height if height == width else None)
    resample = Image.Resampling.BICUBIC
    if settings["interpolation"] == "bilinear" and (mode != "shortest" or shorter_side):
        resample = Image.Resampling.BILINEAR  # OpenCLIP ignores it for "shortest" if not square
    if mode == "squash":
        return picture.resize((width, height), resample)
    if mode == "shortest" and shorter_side:
        shorter = min(picture.size)
        sides = [int(shorter_side * side / shorter) if side > shorter else shorter_side for side in picture.size]
    else:
        ratios = picture.width / width, picture.height / height
        ratio = max(ratios) if mode == "longest" else min(ratios)
        sides = [max(1, round(side / ratio)) for side in picture.size]
    result = picture.resize((sides[0], sides[1]), resample)
    if result.size == (width, height):
        return result
    filled = Image.new("RGB", (width, height), (settings["fill_color"],) * 3)
    floor = settings.get("crop") == "floor"
    filled.paste(result, (_offset(width, sides[0], floor), _offset(height, sides[1], floor)))
    return filled


def _offset(wanted: int, given: int, floor: bool) -> int:
    """Return where a picture starts in a larger or smaller one, in pixels, rounded as in torchvision or down."""
    if given < wanted:
        return (wanted - given) // 2
    return -((given - wanted) // 2) if floor else -round((given - wanted) / 2)
