"""Images -> features, with the frozen image tower."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import CLIPImageProcessor, CLIPModel


@dataclass(frozen=True)
class ImageEncoder:
    """The frozen image tower of a CLIP with the preprocessing that belongs to it, in the precision of its weights.

    An image is encoded once, so there is little to gain from bfloat16 here, and what it rounds off stays off.
    """

    model: "CLIPModel"
    processor: "CLIPImageProcessor"

    def __call__(self, images: "Sequence[Image]") -> Tensor:
        """B pictures -> image features [B, D] of unit length, in the precision and on the device of the weights."""
        return self.encode(self.processor(images=list(images), return_tensors="pt")["pixel_values"])

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """The same of preprocessed pictures [B, 3, H, W]."""
        pixels = pixels.to(self.device, self.dtype)
        seen = self.model.vision_model(pixel_values=pixels)
        return F.normalize(self.model.visual_projection(seen.pooler_output), dim=-1)

    @property
    def device(self) -> torch.device:
        return self.model.visual_projection.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.visual_projection.weight.dtype

    @property
    def width(self) -> int:
        """D, the width of a feature."""
        return self.model.visual_projection.out_features

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the pictures that the tower reads, in pixels."""
        config: Any = self.model.config.vision_config
        return config.image_size, config.image_size

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the tower's weights, architecture, preprocessing and precision; not over text or tokenizer."""
        parts: list[Any] = [self.model.config.vision_config, self.processor]
        settings = [
            {k: v for k, v in part.to_dict().items() if k not in ("transformers_version", "_name_or_path")}
            for part in parts
        ]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        for module in (self.model.vision_model, self.model.visual_projection):
            for name, tensor in module.state_dict().items():
                digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()
