"""Compute features of images with the frozen image tower, and run the tower with a method's prompts in it.

Everything that does not depend on trained parameters is computed once and kept (`ImageEncoder.encode`). `ImageTower`
starts at the lowest layer that a method changes. In its first layer, the queries, keys and values of the patches need
no gradient. In its last layer, only keys and values are computed for all tokens, and the rest for the class token.

Letters: B images, P patches, T = 1 + P tokens, m vectors of a visual prompt, w width of the tower, D feature width.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.backbone.attention import attend
from fedpgp.backbone.layers import KEPT, Affine, Layers, Prompt, recomputed
from fedpgp.backbone.resnet import STRIDE, ResNetTower
from fedpgp.errors import CheckpointError

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import CLIPImageProcessor, CLIPModel

    from fedpgp.backbone.open_clip_processor import OpenClipProcessor

POOLED, PATCHES = "pooled", "patches"  # kinds of features of an image; `state_below` returns the others
STATE = "layer-"


def state_below(layer: int) -> str:
    """Return the kind of the hidden states that enter a layer of the tower, counted from 0."""
    return f"{STATE}{layer}"


def digest(settings: Sequence[Mapping[str, Any]], modules: Sequence[torch.nn.Module]) -> str:
    """Return the SHA-256 of settings and of the weights of modules, including their precision."""
    kept = [{k: v for k, v in part.items() if k not in ("transformers_version", "_name_or_path")} for part in settings]
    value = hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode())
    for module in modules:
        for name, tensor in module.state_dict().items():
            value.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            value.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return value.hexdigest()


@dataclass(frozen=True)
class ImageEncoder:
    """Frozen image tower of a CLIP, with its preprocessing, in the precision of its weights.

    Each image is encoded once, so bfloat16 would save little time here, and its rounding errors would remain.

    Attributes
    ----------
    model
        The CLIP.
    processor
        The preprocessing.
    patch_kind
        Kind of a ResNet's patch features, see `ResNetTower.positions`.
    """

    model: "CLIPModel"
    processor: "CLIPImageProcessor | OpenClipProcessor"
    patch_kind: str = "value"

    def __call__(self, images: "Sequence[Image]") -> Tensor:
        """Return unit-length image features [B, D] of B images, in the precision and on the device of the weights."""
        return self.encode(self.processor(images=list(images), return_tensors="pt")["pixel_values"])

    @torch.inference_mode()
    def encode(self, pixels: Tensor, kind: str = POOLED) -> Tensor:
        """Return features or hidden states of preprocessed images [B, 3, H, W].

        Parameters
        ----------
        pixels
            The preprocessed images.
        kind
            "pooled" for [B, D] of unit length; "patches" for [B, P, D] of unit length, each normalized and projected
            like the class token; or the `state_below` of a layer for [B, T, w].
        """
        vision = self.model.vision_model
        pixels = pixels.to(self.device, self.dtype)
        if kind == POOLED:
            return F.normalize(self.pool(pixels), dim=-1)
        if kind == PATCHES and isinstance(vision, ResNetTower):
            return F.normalize(self.model.visual_projection(vision.positions(pixels, self.patch_kind)), dim=-1)
        if kind == PATCHES:
            last = vision.post_layernorm(vision(pixel_values=pixels).last_hidden_state[:, 1:])
            return F.normalize(self.model.visual_projection(last), dim=-1)
        state = vision.pre_layrnorm(vision.embeddings(pixels))
        for layer in vision.encoder.layers[: int(kind.removeprefix(STATE))]:
            state = layer(state, None)
        return state

    def pool(self, pixels: Tensor) -> Tensor:
        """Return image features [B, D] of preprocessed images [B, 3, H, W], before normalization."""
        features: Tensor = self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)
        return features

    @property
    def tower_modules(self) -> Sequence[torch.nn.Module]:
        """Modules of the tower."""
        return self.model.vision_model, self.model.visual_projection

    def shape(self, kind: str) -> tuple[int, ...]:
        """Return the shape of the features that `encode` computes for one image."""
        if kind == POOLED:
            return (self.width,)
        return (self.patches, self.width) if kind == PATCHES else (1 + self.patches, self.token_width)

    @property
    def _config(self) -> Any:
        return self.model.config.vision_config

    @property
    def patches(self) -> int:
        """Number P of patches of a vision transformer, or of positions in the last stage of a ResNet."""
        side = self._config.image_size // (self._config.patch_size if self.layers else STRIDE)
        return side**2

    @property
    def layers(self) -> int:
        """Number of layers of the tower."""
        return self._config.num_hidden_layers

    @property
    def token_width(self) -> int:
        """Width w of the tower's tokens and of a visual prompt's vectors."""
        return self._config.hidden_size

    @cached_property
    def tower(self) -> "ImageTower":
        """The tower in which a method trains prompts, with a copy of the weights."""
        return ImageTower.of(self.model)

    @property
    def device(self) -> torch.device:
        return self.model.visual_projection.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.visual_projection.weight.dtype

    @property
    def width(self) -> int:
        """Width D of a feature."""
        return self.model.visual_projection.out_features

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the images that the tower reads, in pixels."""
        return self._config.image_size, self._config.image_size

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the image tower's weights, architecture, preprocessing and precision."""
        settings = [self._config.to_dict(), self.processor.to_dict()]
        if self.patch_kind != "value":
            settings.append({"patches": self.patch_kind})
        return digest(settings, self.tower_modules)


@dataclass(frozen=True, eq=False)
class ImageTower:
    """Frozen image tower of a CLIP: plain tensors and a forward pass.

    Attributes
    ----------
    layers
        The transformer layers.
    first_norm
        The normalization before the first layer.
    final_norm
        The normalization after the last layer.
    projection
        [D, w].
    memory
        Bytes that a call may keep for its backward pass. If more are needed, images are encoded in pieces, and each
        piece is computed again in the backward pass.
    """

    layers: Layers
    first_norm: Affine
    final_norm: Affine
    projection: Tensor
    memory: int = 2 * 2**30

    @classmethod
    def of(cls, model: "CLIPModel") -> "ImageTower":
        """Return the image tower of a CLIPModel of transformers; raise CheckpointError if it is not CLIP-shaped."""
        state = {name: weight.detach() for name, weight in model.state_dict().items()}
        return cls(
            layers=Layers.of(state, "vision_model", model.config.vision_config, model.dtype),
            first_norm=Affine.of(state, "vision_model.pre_layrnorm"),
            final_norm=Affine.of(state, "vision_model.post_layernorm"),
            projection=state["visual_projection.weight"],
        )

    def each(self, states: Tensor, prompts: Sequence[Prompt], first: int) -> list[Tensor]:
        """Return the features of the same images for each of several prompts.

        The vectors of a prompt follow the patches, without position embeddings. They pass through the normalization
        before the first layer, as in MaPLe's code. If `first` is not 0, the prompts have no vectors. Gradients flow to
        the prompts.

        Parameters
        ----------
        states
            [B, T, w], the input of layer `first`.
        prompts
            The prompts.
        first
            Number of the first layer to compute.

        Returns
        -------
        list
            For each prompt, unit-length features [B, D].

        Raises
        ------
        CheckpointError
            If a prompt or `first` is deeper than the tower, or if a prompt changes a layer below `first`.
        """
        for prompt in prompts:
            lowest = 0 if len(prompt.vectors) or prompt.deeper is not None else min(prompt.adapters, default=first)
            if lowest < first:
                raise CheckpointError(
                    where="first_layer of the method",
                    allowed=f"at most {lowest}, the lowest layer of the image tower that the prompt changes",
                    got=first,
                    remedy=f"Set first_layer to {lowest}",
                )
            self.layers.check_depth(prompt, "image")
        if not 0 <= first < len(self.layers):
            raise CheckpointError(
                where="first_layer of the method",
                allowed=f"0 to {len(self.layers) - 1}, because the image tower has {len(self.layers)} layers",
                got=first,
                remedy="Choose one of these layers, or a deeper checkpoint",
            )
        rows = states.shape[1] + max((len(prompt.vectors) for prompt in prompts), default=0)
        # Each row keeps some vectors of width w, and for each head its attention to all rows.
        numbers = (KEPT * self.layers.width + self.layers.heads * rows) * (len(self.layers) - first)
        allowed = max(1, self.memory // (numbers * rows * states.element_size()))  # images at once
        if len(prompts) * len(states) <= allowed:
            return [self._see(states, prompt, first) for prompt in prompts]
        pieces = states.split(min(allowed, len(states)))
        return [
            torch.cat([recomputed(self._see, prompt, piece, prompt, first) for piece in pieces]) for prompt in prompts
        ]

    def _see(self, states: Tensor, prompt: Prompt, first: int) -> Tensor:
        """Return the features [B, D] of hidden states [B, T, w]."""
        layers, last = self.layers, len(self.layers) - 1
        vectors = layers.normalise(prompt.vectors, self.first_norm).expand(len(states), -1, -1)
        x = torch.cat([states, vectors], dim=1)
        for number in range(first, last):
            if number == first:
                rows = torch.cat([layers.rows(states, first), layers.rows(vectors, first)], dim=1)
            else:
                x = _replaced(x, states.shape[1], prompt, number)
                rows = layers.rows(x, number)
            seen = attend(None, rows[:, None], 0, None, layers.heads)[:, 0]
            x = layers.after_attention(x, seen, number, prompt.adapters.get(number))
        x = _replaced(x, states.shape[1], prompt, last)
        queries, rows = layers.asked(x, last, lambda normal: normal[:, :1])
        seen = attend(queries[:, None], rows[:, None], 0, None, layers.heads)[:, 0]
        x = layers.after_attention(x[:, :1], seen, last, prompt.adapters.get(last))[:, 0]
        return F.normalize(F.linear(layers.normalise(x, self.final_norm), self.projection), dim=-1)


def _replaced(x: Tensor, tokens: int, prompt: Prompt, number: int) -> Tensor:
    """Return the input of a layer, with the prompt's vectors for this layer after the image's tokens."""
    if prompt.deeper is None or not 0 < number <= len(prompt.deeper):
        return x
    own = prompt.deeper[number - 1].expand(len(x), -1, -1)
    return torch.cat([x[:, :tokens], own, x[:, tokens + own.shape[1] :]], dim=1)
