"""Images -> what is kept of them, with the frozen image tower.

Letters: B images, P patches, T = 1 + P tokens, w width of the tower, D feature width.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.backbone.tower import ImageTower

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import CLIPImageProcessor, CLIPModel

POOLED, PATCHES = "pooled", "patches"  # kinds of what is kept of an image; the third is that of `state_below`
STATE = "layer-"


def state_below(layer: int) -> str:
    """The kind of what goes into a layer of the tower, counted from 0."""
    return f"{STATE}{layer}"


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
    def encode(self, pixels: Tensor, kind: str = POOLED) -> Tensor:
        """What is kept of preprocessed pictures [B, 3, H, W].

        kind: "pooled": [B, D] of unit length; "patches": [B, P, D] of unit length, each read and projected as the class
        token is; or `state_below` a layer: [B, T, w].
        """
        vision = self.model.vision_model
        pixels = pixels.to(self.device, self.dtype)
        if kind == POOLED:
            return F.normalize(self.model.visual_projection(vision(pixel_values=pixels).pooler_output), dim=-1)
        if kind == PATCHES:
            last = vision.post_layernorm(vision(pixel_values=pixels).last_hidden_state[:, 1:])
            return F.normalize(self.model.visual_projection(last), dim=-1)
        state = vision.pre_layrnorm(vision.embeddings(pixels))
        for layer in vision.encoder.layers[: int(kind.removeprefix(STATE))]:
            state = layer(state, None)
        return state

    def shape(self, kind: str) -> tuple[int, ...]:
        """Of what `encode` keeps of one picture."""
        config: Any = self.model.config.vision_config
        if kind == POOLED:
            return (self.width,)
        return (self.patches, self.width) if kind == PATCHES else (1 + self.patches, config.hidden_size)

    @property
    def patches(self) -> int:
        """P, 0 for a tower that does not read patches, a ResNet."""
        config: Any = self.model.config.vision_config
        return (config.image_size // config.patch_size) ** 2 if self.layers else 0

    @property
    def layers(self) -> int:
        """Of the tower."""
        config: Any = self.model.config.vision_config
        return config.num_hidden_layers

    @property
    def token_width(self) -> int:
        """w, the width of the tower's tokens and of a visual prompt's vectors."""
        config: Any = self.model.config.vision_config
        return config.hidden_size

    @cached_property
    def tower(self) -> ImageTower:
        """The tower for what a method trains in it, from weights of its own."""
        return ImageTower.of(self.model)

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
