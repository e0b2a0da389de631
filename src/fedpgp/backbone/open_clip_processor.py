"""OpenCLIP's preprocessing of images, and therefore OpenAI's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedpgp.backbone.foreign_configs import check_normalization
from fedpgp.backbone.foreign_files import AGAIN
from fedpgp.backbone.prepare_image import normalized, resized
from fedpgp.errors import CheckpointError

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
            pictures = [resized(picture, self.settings) for picture in pictures]
        pixels = normalized(pictures, self.settings)
        return {"pixel_values": torch.from_numpy(pixels) if return_tensors == "pt" else pixels}

    def to_dict(self) -> dict[str, Any]:
        """Return the settings."""
        return dict(self.settings)
