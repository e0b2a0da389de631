"""Adapters in the deeper layers of both towers, connected by a small shared projection."""

import math
from collections.abc import Mapping, Sequence
from itertools import count, takewhile
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.backbone.layers import Adapter, Affine, Prompt
from fedpgp.data.tasks import Task
from fedpgp.errors import ConfigError
from fedpgp.methods.base import STRICT, Count, Frozen, LearningRate, Params, TrainedMethod, logits
from fedpgp.methods.templates import TEMPLATE


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PFedMMA(TrainedMethod):
    """Private adapters in both towers, around a shared projection that is averaged (Ghiasvand et al. 2026).

    In the layers j = l … L of each tower o ∈ {image, text}, with f_j the frozen layer and LN its normalization before
    the attention,

        z_(j+1) = f_j(z_j) + α A_j(LN(z_j)),    A_j(x) = W_ju δ(W_js δ(W_jd x + b_jd) + b_js) + b_ju.

    The adapter is parallel to the whole layer and acts on every token. δ is ReLU. W_jd [r, d_o] and W_ju [d_o, r]
    belong to one tower and are private. W_js [r, r] belongs to both towers and is shared. Each has a bias. The text is
    "a photo of a {}." and the loss is the cross-entropy. With ViT-B/16, a client trains 674,560 numbers and sends
    8,448.

    The adapters are MMA's (Yang et al., CVPR 2024), and so is a rule of its code. Without the rule, the adapters would
    hardly change with such a small α: the adapters' parameters follow the gradient for α = 1, which is their gradient
    divided by α. The layers below an adapter get its true gradient.

    The names of the parameters contain the layer number of the engine, from 0: "image.4.down.weight" with
    start_layer = 5. A tower with fewer than l layers has no adapters. If this is the text tower, its features are the
    features of the hand-written prompt. All clients start from the same parameters, including the private ones, as in
    the public code. The average of W_js is only meaningful because of this.

    Differences from the public code: its evaluation uses the text features of the first evaluated client for all other
    clients and all later rounds, and one optimizer, whose momentum is never reset, serves all clients. From a secondary
    source, not checked: the paper names GELU as an example of δ and has no biases.
    """

    name = "pfedmma"
    source = "Ghiasvand et al., ICLR 2026, arXiv 2507.05394"
    year = 2026
    venue = "ICLR"
    reads = ("deep text", "image tower")
    tail = TEMPLATE

    start_layer: Count = Field(
        default=5,
        description="l, first layer with an adapter, counted from 1; all later layers of the tower have one (MMA)",
    )
    rank: int = Field(default=32, ge=1, le=4096, description="r, width of the shared projection (paper, MMA)")
    scale: float = Field(default=1e-3, gt=0, le=1e3, description="α, weight of the adapters (public code, MMA)")
    learning_rate: LearningRate = Field(default=1e-3, description="Learning rate (public code)")

    @property
    def first_layer(self) -> int:
        return self.start_layer - 1

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        layers = backbone.image.layers
        if self.start_layer > layers:
            raise ConfigError(
                where=f"{self.name}.start_layer",
                allowed=f"at most {layers}, the number of layers of the checkpoint's image tower",
                got=self.start_layer,
                remedy=f"Use --set {self.name}.start_layer={layers} or less, or a checkpoint with more layers",
            )
        drawn: dict[str, Tensor] = {}
        for number in range(self.first_layer, max(layers, len(backbone.text.layers))):
            drawn |= _linear(f"middle.{number}", self.rank, self.rank, rng)
        return {name: tensor.to(backbone.logit_scale) for name, tensor in drawn.items()}

    def init_private(self, task: Task, backbone: Backbone, rng: torch.Generator, client: int) -> dict[str, Tensor]:
        drawn: dict[str, Tensor] = {}
        for tower, layers, width in (
            ("text", len(backbone.text.layers), backbone.token_width),
            ("image", backbone.image.layers, backbone.image.token_width),
        ):
            for number in range(self.first_layer, layers):
                drawn |= _linear(f"{tower}.{number}.down", width, self.rank, rng)
                drawn |= _linear(f"{tower}.{number}.up", self.rank, width, rng)
        return {name: tensor.to(backbone.logit_scale) for name, tensor in drawn.items()}

    def adapters(self, params: Params, tower: Literal["text", "image"]) -> dict[int, Adapter]:
        """Return the adapters of a tower by layer number, counted from 0."""

        def part(name: str) -> Affine:
            of = params.shared if name.startswith("middle") else params.private
            return Affine(of[f"{name}.weight"], of[f"{name}.bias"])

        numbers = takewhile(lambda n: f"{tower}.{n}.down.weight" in params.private, count(self.first_layer))
        return {
            n: Adapter(part(f"{tower}.{n}.down"), part(f"middle.{n}"), part(f"{tower}.{n}.up"), self.scale)
            for n in numbers
        }

    def _prompts(self, params: Params, tower: Literal["text", "image"]) -> list[Prompt]:
        """Return one prompt without vectors, or none if the tower has no adapters."""
        adapters = self.adapters(params, tower)
        if not adapters:
            return []
        weight = adapters[self.first_layer].down.weight
        return [Prompt(weight.new_empty(0, weight.shape[1]), adapters=adapters)]

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Prompt]:
        return self._prompts(params, "text")

    def visual_prompts(self, params: Params) -> Sequence[Prompt]:
        return self._prompts(params, "image")

    def direction(
        self, gradients: Mapping[str, Mapping[str, Tensor]], params: Params, rng: torch.Generator
    ) -> dict[str, Tensor]:
        return {name: gradient / self.scale for name, gradient in gradients["task"].items()}

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        return logits(text[0] if len(text) else frozen.guidance, images[:, 1], frozen)


def _linear(name: str, inputs: int, outputs: int, rng: torch.Generator) -> dict[str, Tensor]:
    """Return a weight [outputs, inputs] from N(0, 2/outputs), He et al.'s for a ReLU after it, and a bias of zeros."""
    weight = math.sqrt(2 / outputs) * torch.randn(outputs, inputs, generator=rng)
    return {f"{name}.weight": weight, f"{name}.bias": torch.zeros(outputs)}
