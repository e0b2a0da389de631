"""Images -> pooled and patch features, by the model's own modules: for every image tower that is not CLIP's.

A patch feature is what the tower's own pooling and projection make of that position alone. Where the pooled feature is
a mean of projected positions, these are the positions of the mean. Where it is pooled by attention, a position that is
seen alone has all of the weight, which gives its projected value, as in dense variants of CLIP.

Letters: B images, P patches, w width of the tower, D feature width, H x W the grid.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from fedpgp.backbone.image import PATCHES, POOLED, ImageEncoder, digest


@dataclass(frozen=True)
class GeneralImageEncoder:
    """The frozen image tower of any dual encoder with the preprocessing that belongs to it.

    tower_modules: what it consists of; pool: pixels [B, 3, H, W] -> [B, D]; positions: pixels -> [B, P, D], None for a
    tower without positions. size: width and height of the pictures that it reads. settings: what its architecture is.
    """

    tower_modules: Sequence[nn.Module]
    pool: Callable[[Tensor], Tensor]
    positions: Callable[[Tensor], Tensor] | None
    processor: Any
    size: tuple[int, int]
    settings: Mapping[str, Any]

    layers = 0  # that a method can change: the tower's code is not ours
    token_width = 0

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """B pictures -> image features [B, D] of unit length, in the precision and on the device of the weights."""
        return self.encode(self.processor(images=list(images), return_tensors="pt")["pixel_values"])

    @torch.inference_mode()
    def encode(self, pixels: Tensor, kind: str = POOLED) -> Tensor:
        """What is kept of preprocessed pictures [B, 3, H, W]: "pooled": [B, D]; "patches": [B, P, D]; of unit length.

        Raises ValueError for another kind, which methods that change the tower ask for.
        """
        pixels = pixels.to(self.device, self.dtype)
        if kind == POOLED:
            return F.normalize(self.pool(pixels), dim=-1)
        if kind != PATCHES or self.positions is None:
            raise ValueError(f"the features of this image tower must be of the kind {POOLED!r}, got {kind!r}")
        return F.normalize(self.positions(pixels), dim=-1)

    def shape(self, kind: str) -> tuple[int, ...]:
        """Of what `encode` keeps of one picture."""
        return (self.width,) if kind == POOLED else (self.patches, self.width)

    @property
    def _weights(self) -> Tensor:
        return next(self.tower_modules[0].parameters())

    @property
    def device(self) -> torch.device:
        return self._weights.device

    @property
    def dtype(self) -> torch.dtype:
        return self._weights.dtype

    @cached_property
    def width(self) -> int:
        """D, the width of a feature."""
        return self.encode(self._blank).shape[1]

    @cached_property
    def patches(self) -> int:
        """P, 0 for a tower that has none in the space of the features."""
        return 0 if self.positions is None else self.encode(self._blank, PATCHES).shape[1]

    @property
    def _blank(self) -> Tensor:
        pixels = self.processor(images=[Image.new("RGB", self.size)], return_tensors="pt")["pixel_values"]
        assert isinstance(pixels, Tensor)
        return pixels

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the tower's weights, architecture, preprocessing and precision."""
        return digest([self.settings, self.processor.to_dict()], self.tower_modules)


AnyImageEncoder = ImageEncoder | GeneralImageEncoder
