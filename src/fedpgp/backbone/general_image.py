"""Compute pooled and patch features with the model's own modules, for every image tower other than CLIP's.

A patch feature is the result of the tower's own pooling and projection for this position only. If the pooled feature
is the mean of projected positions, the patch features are the positions of this mean. If the tower pools by attention,
a single position gets the whole attention weight, which gives its projected value, as in dense variants of CLIP.

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
    """Frozen image tower of any dual encoder, with its preprocessing.

    Attributes
    ----------
    tower_modules
        Modules of the tower.
    pool
        Function from pixels [B, 3, H, W] to pooled features [B, D].
    positions
        Function from pixels to the features of all positions [B, P, D]; None if the tower has no positions.
    processor
        The preprocessing.
    size
        Width and height of the images that the tower reads, in pixels.
    settings
        Description of the architecture, for the fingerprint.
    layers
        Number of layers that a method can change: 0, because the tower's code belongs to another library.
    """

    tower_modules: Sequence[nn.Module]
    pool: Callable[[Tensor], Tensor]
    positions: Callable[[Tensor], Tensor] | None
    processor: Any
    size: tuple[int, int]
    settings: Mapping[str, Any]

    layers = 0
    token_width = 0

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Return unit-length image features [B, D] of B images, in the precision and on the device of the weights."""
        return self.encode(self.processor(images=list(images), return_tensors="pt")["pixel_values"])

    @torch.inference_mode()
    def encode(self, pixels: Tensor, kind: str = POOLED) -> Tensor:
        """Return the unit-length features of preprocessed images [B, 3, H, W].

        Parameters
        ----------
        pixels
            The preprocessed images.
        kind
            "pooled" for [B, D], or "patches" for [B, P, D].

        Raises
        ------
        ValueError
            If the kind is another one, which methods that change the tower request.
        """
        pixels = pixels.to(self.device, self.dtype)
        if kind == POOLED:
            return F.normalize(self.pool(pixels), dim=-1)
        if kind != PATCHES or self.positions is None:
            raise ValueError(f"the features of this image tower must be of the kind {POOLED!r}, got {kind!r}")
        return F.normalize(self.positions(pixels), dim=-1)

    def shape(self, kind: str) -> tuple[int, ...]:
        """Return the shape of the features that `encode` computes for one image."""
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
        """Width D of a feature."""
        return self.encode(self._blank).shape[1]

    @cached_property
    def patches(self) -> int:
        """Number of patches P; 0 if the tower has no patches in the feature space."""
        return 0 if self.positions is None else self.encode(self._blank, PATCHES).shape[1]

    @property
    def _blank(self) -> Tensor:
        pixels = self.processor(images=[Image.new("RGB", self.size)], return_tensors="pt")["pixel_values"]
        assert isinstance(pixels, Tensor)
        return pixels

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the tower's weights, architecture, preprocessing and precision."""
        return digest([self.settings, self.processor.to_dict()], self.tower_modules)


AnyImageEncoder = ImageEncoder | GeneralImageEncoder
