"""Adapters in the deeper layers of both towers, joined by a small product that clients share."""

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
    """Multi-modal adapters; what both towers have in common is averaged, the rest is private (Ghiasvand et al. 2026).

    In the layers j = l … L of either tower o ∈ {image, text}, f_j frozen, LN its normalisation ahead of the attention,

        z_(j+1) = f_j(z_j) + α A_j(LN(z_j)),    A_j(x) = W_ju δ(W_js δ(W_jd x + b_jd) + b_js) + b_ju,

    beside the whole layer and for every token, where δ is ReLU. W_jd [r, d_o] and W_ju [d_o, r] are of one tower, and
    private; W_js [r, r] is of both towers, and shared, each with its bias. Text is "a photo of a {}.", the loss is the
    cross-entropy. In ViT-B/16 a client trains 674,560 numbers and sends 8,448.

    The adapters are MMA's (Yang et al., CVPR 2024), and so is the rule in its code without which so small an α would
    leave them as they are: their numbers follow the gradient that they had if their own α were 1, which is the gradient
    over α, whereas what lies below them has its true gradient.

    The parameters of a layer are named by its number in the engine, from 0: "image.4.down.weight" with start_layer = 5.
    A tower with fewer layers than l has no adapters; where that is the text tower, its features are the hand-written
    prompt's. Everybody starts from the same numbers, private ones included, as in the public code; what averaged W_js
    mean to each other rests on that.

    Where the public code differs: its evaluation keeps the text features of the first client that it tests for all
    others and all later rounds; one optimizer, whose momentum is never forgotten, serves all clients. Second-hand, not
    checked: the paper names GELU as an example of δ and writes no biases.
    """

    name = "pfedmma"
    source = "Ghiasvand et al., ICLR 2026, arXiv 2507.05394"
    year = 2026
    venue = "ICLR"
    reads = ("deep text", "image tower")
    tail = TEMPLATE

    start_layer: Count = Field(
        default=5, description="l, the first layer with adapters, from 1; the last is the tower's (MMA)"
    )
    rank: int = Field(default=32, ge=1, le=4096, description="r, width of the shared projection (paper, MMA)")
    scale: float = Field(default=1e-3, gt=0, le=1e3, description="α, weight of the adapters (public code, MMA)")
    learning_rate: LearningRate = Field(default=1e-3, description="(public code)")

    @property
    def first_layer(self) -> int:
        return self.start_layer - 1

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        layers = backbone.image.layers
        if self.start_layer > layers:
            raise ConfigError(
                f"{self.name}.start_layer must be at most {layers}, backbone.image.layers of this checkpoint,"
                f" got {self.start_layer}: start lower, or choose a checkpoint with more layers"
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
        """Of a tower, by layer."""

        def part(name: str) -> Affine:
            of = params.shared if name.startswith("middle") else params.private
            return Affine(of[f"{name}.weight"], of[f"{name}.bias"])

        numbers = takewhile(lambda n: f"{tower}.{n}.down.weight" in params.private, count(self.first_layer))
        return {
            n: Adapter(part(f"{tower}.{n}.down"), part(f"middle.{n}"), part(f"{tower}.{n}.up"), self.scale)
            for n in numbers
        }

    def _prompts(self, params: Params, tower: Literal["text", "image"]) -> list[Prompt]:
        """One without vectors, or none where the tower has no adapters."""
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


def _linear(name: str, of: int, to: int, rng: torch.Generator) -> dict[str, Tensor]:
    """A weight [to, of] of N(0, 2/to), as He et al. draw it for a ReLU behind it, and a bias of zeros [to]."""
    return {f"{name}.weight": math.sqrt(2 / to) * torch.randn(to, of, generator=rng), f"{name}.bias": torch.zeros(to)}
