"""Convert dual encoders of transformers other than CLIPModel to the parts that the general encoders use."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Class by model_type in config.json. A SigLIP 2 with a fixed resolution has the type "siglip".
FAMILIES = {
    "clip": "CLIPModel",
    "siglip": "SiglipModel",
    "siglip2": "Siglip2Model",
    "altclip": "AltCLIPModel",
    "chinese_clip": "ChineseCLIPModel",
}
PADDED = ("siglip", "siglip2")  # trained on padded texts of one length, with attention to the padding


class TextPart(nn.Module):
    """Text tower of a transformers model, from ids [S, L] and mask [S, L] to features [S, D].

    Parameters
    ----------
    model
        The dual encoder.
    masked
        Whether the tokenizer declares a mask for the model.
    """

    def __init__(self, model: Any, masked: bool):
        super().__init__()
        # Worker processes get a copy, which must not contain the image tower.
        self.model = copy.copy(model)
        self.model._modules = {name: part for name, part in model._modules.items() if not name.startswith("vis")}
        self.masked = masked

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return _pooled(self.model.get_text_features(input_ids=ids, attention_mask=mask if self.masked else None))


@dataclass(frozen=True)
class PatchedProcessor:
    """Preprocessing of a model that reads images of any shape as patches (SigLIP 2's NaFlex), as one tensor.

    Its result is [B, N, v + 1]: N patches of v values, each followed by the number of patch rows of its image, or by 0
    if there is no patch.
    """

    processor: Any

    def __call__(self, images: Any, return_tensors: str = "pt", **options: Any) -> dict[str, Any]:
        """Return {"pixel_values": [B, N, v + 1]} of B images, as a tensor ("pt") or an array ("np")."""
        options = {"do_resize": options["do_resize"]} if "do_resize" in options else {}
        parts = self.processor(images=images, return_tensors="np", **options)
        rows = np.asarray(parts["pixel_attention_mask"]) * np.asarray(parts["spatial_shapes"])[:, :1]
        pixels = np.concatenate([parts["pixel_values"], rows[..., None]], axis=-1).astype(np.float32)
        return {"pixel_values": torch.from_numpy(pixels) if return_tensors == "pt" else pixels}

    def to_dict(self) -> dict[str, Any]:
        """Return the settings of the processor."""
        settings = self.processor.to_dict()
        assert isinstance(settings, dict)
        return settings

    def save_pretrained(self, directory: Any) -> None:
        """Write the processor to a directory."""
        self.processor.save_pretrained(directory)


def longest_text(config: Any, tokenizer: Any) -> int:
    """Return the number of positions of the text tower; RoBERTa's positions start after the padding id."""
    text = config.text_config
    positions = text.max_position_embeddings
    if "roberta" in text.model_type or config.model_type == "altclip":
        positions -= text.pad_token_id + 1
    return int(min(positions, tokenizer.model_max_length))


def image_size(config: Any, processor: Any) -> tuple[int, int]:
    """Return width and height of the images that the tower reads, in pixels."""
    vision = config.vision_config
    if config.model_type == "siglip2":
        side = int(processor.max_num_patches**0.5) * vision.patch_size
        return side, side
    return vision.image_size, vision.image_size


def image_modules(model: Any) -> list[nn.Module]:
    """Return the modules of the image tower."""
    return [part for name, part in model.named_children() if name.startswith("vis")]


def pool_of(model: Any) -> Callable[[Tensor], Tensor]:
    """Return a function from pixels to pooled features [B, D]."""
    if model.config.model_type != "siglip2":
        return lambda pixels: _pooled(model.get_image_features(pixel_values=pixels))

    def pool(pixels: Tensor) -> Tensor:
        rows = pixels[..., -1]
        height = rows.amax(1)
        shapes = torch.stack([height, (rows > 0).sum(1) / height], dim=1).round().long()
        return _pooled(
            model.get_image_features(
                pixel_values=pixels[..., :-1], pixel_attention_mask=(rows > 0).long(), spatial_shapes=shapes
            )
        )

    return pool


def positions_of(model: Any) -> Callable[[Tensor], Tensor] | None:
    """Return a function from pixels to features of positions [B, P, D], or None for images of different shapes.

    Each position is pooled and projected like the pooled feature.
    """
    vision = model.vision_model
    if model.config.model_type == "siglip2":
        return None
    if model.config.model_type == "siglip":

        def positions(pixels: Tensor) -> Tensor:
            states: Tensor = vision(pixel_values=pixels).last_hidden_state
            alone: Tensor = vision.head(states.flatten(0, 1)[:, None])
            return alone.unflatten(0, states.shape[:2])

    else:

        def positions(pixels: Tensor) -> Tensor:
            states = vision.post_layernorm(vision(pixel_values=pixels).last_hidden_state[:, 1:])
            projected: Tensor = model.visual_projection(states)
            return projected

    return positions


def architecture(config: Any) -> Mapping[str, Any]:
    """Return the settings that, together with the weights, determine the features of an image tower."""
    settings = config.vision_config.to_dict()
    assert isinstance(settings, dict)
    return settings


def _pooled(output: Any) -> Tensor:
    value = output.pooler_output
    assert isinstance(value, Tensor)
    return value
