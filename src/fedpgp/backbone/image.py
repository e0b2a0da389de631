"""Images -> features, with the frozen image tower."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import CLIPImageProcessor, CLIPModel


@dataclass(frozen=True)
class ImageEncoder:
    """The frozen image tower of a CLIP with the preprocessing that belongs to it."""

    model: "CLIPModel"
    processor: "CLIPImageProcessor"

    @torch.inference_mode()
    def __call__(self, images: "Sequence[Image]") -> Tensor:
        """B pictures -> image features [B, D] of unit length, in the precision and on the device of the weights."""
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        weight = self.model.visual_projection.weight
        seen = self.model.vision_model(pixel_values=pixels.to(weight.device, weight.dtype))
        return F.normalize(self.model.visual_projection(seen.pooler_output), dim=-1)
