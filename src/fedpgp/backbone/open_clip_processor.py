"""OpenCLIP's preprocessing of images, and therefore OpenAI's, exact to the pixel and without torchvision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedpgp.backbone.foreign_configs import check_normalization
from fedpgp.backbone.foreign_files import AGAIN
from fedpgp.errors import CheckpointError
from fedpgp.runtime.files import write_json

DEFAULTS: Mapping[str, Any] = {  # OpenCLIP's values for keys that a preprocess_cfg omits; mean and std are OpenAI's
    "size": 224,
    "mode": "RGB",
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}

ALLOWED: Mapping[str, Sequence[str]] = {
    "mode": ("RGB",),
    "interpolation": ("bicubic", "bilinear", "random"),  # random in training, bicubic otherwise
    "resize_mode": ("shortest", "longest", "squash"),
}


@dataclass(frozen=True)
class OpenClipProcessor:
    """Preprocessing described by OpenCLIP's `preprocess_cfg`, for images of an image tower's size.

    Attributes
    ----------
    settings
        Values for all keys of `DEFAULTS`; `size` is height and width, or one number for both.
    """

    settings: Mapping[str, Any]

    @classmethod
    def of(cls, preprocessing: Mapping[str, Any], size: int | Sequence[int]) -> "OpenClipProcessor":
        """Create the preprocessing for a tower; keys that OpenCLIP does not know are ignored.

        Parameters
        ----------
        preprocessing
            OpenCLIP's `preprocess_cfg`.
        size
            Height and width of the images that the tower reads, or one number for both.

        Raises
        ------
        CheckpointError
            If OpenCLIP does not know a value.
        """
        known = {key: value for key, value in preprocessing.items() if key in DEFAULTS and value is not None}
        for key, allowed in ALLOWED.items():
            if known.get(key, allowed[0]) not in allowed:
                raise CheckpointError(
                    where=f"preprocess_cfg.{key} in OpenCLIP's config",
                    allowed=" or ".join(allowed),
                    got=known[key],
                    remedy="Download the checkpoint again",
                )
        check_normalization(known.get("mean"), known.get("std"), "OpenCLIP's config")
        if type(known.get("fill_color", 0)) is not int:
            raise CheckpointError(
                where="preprocess_cfg.fill_color in OpenCLIP's config", allowed="an integer", remedy=AGAIN
            )
        return cls({**DEFAULTS, **known, "size": size})

    def __call__(
        self, images: Any, return_tensors: str = "pt", do_resize: bool = True, do_center_crop: bool = True
    ) -> dict[str, Any]:
        """Return {"pixel_values": [B, 3, H, W]} of images; without resizing, the images must have the right size.

        Parameters
        ----------
        images
            B Pillow images.
        return_tensors
            "pt" for a tensor, "np" for an array.
        do_resize
            Whether to resize, crop and pad.
        do_center_crop
            Same as `do_resize`; either is enough.
        """
        pictures = [image if image.mode == "RGB" else image.convert("RGB") for image in images]
        if do_resize or do_center_crop:
            pictures = [self._resized(picture) for picture in pictures]
        values = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)
        mean, deviation = (_of_channels(self.settings[name]) for name in ("mean", "std"))
        pixels = (values.float() / 255 - mean) / deviation
        return {"pixel_values": pixels if return_tensors == "pt" else pixels.numpy()}

    def _resized(self, picture: Image.Image) -> Image.Image:
        """Return the image in the tower's size: resized, then cropped or padded where a side does not fit."""
        size, mode = self.settings["size"], self.settings["resize_mode"]
        height, width = (size, size) if isinstance(size, int) else size
        resample = Image.Resampling.BICUBIC
        if self.settings["interpolation"] == "bilinear" and (mode != "shortest" or height == width):
            resample = Image.Resampling.BILINEAR  # OpenCLIP ignores it for "shortest" if not square
        if mode == "squash":
            return picture.resize((width, height), resample)
        if mode == "shortest" and height == width:
            shorter = min(picture.size)
            sides = [int(height * side / shorter) if side > shorter else height for side in picture.size]
        else:
            ratios = picture.width / width, picture.height / height
            ratio = max(ratios) if mode == "longest" else min(ratios)
            sides = [max(1, round(side / ratio)) for side in picture.size]
        resized = picture.resize((sides[0], sides[1]), resample)
        if resized.size == (width, height):
            return resized
        filled = Image.new("RGB", (width, height), (self.settings["fill_color"],) * 3)
        filled.paste(resized, (_offset(width, sides[0]), _offset(height, sides[1])))
        return filled

    def to_dict(self) -> dict[str, Any]:
        """Return the settings."""
        return dict(self.settings)

    def save_pretrained(self, directory: Path) -> None:
        """Write the settings to preprocess_cfg.json in a directory."""
        write_json(Path(directory) / "preprocess_cfg.json", self.to_dict())


def _offset(wanted: int, given: int) -> int:
    """Return where an image starts in a larger or smaller one, in pixels, rounded as in torchvision."""
    return (wanted - given) // 2 if given < wanted else -round((given - wanted) / 2)


def _of_channels(value: float | Sequence[float]) -> Tensor:
    """Return one value per channel as a tensor [3, 1, 1]."""
    values = [value] * 3 if isinstance(value, (int, float)) else list(value)
    return torch.tensor(values, dtype=torch.float32)[:, None, None]
