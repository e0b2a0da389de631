"""What methods share that learn prompts for several layers."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone.layers import Prompt
from fedpgp.errors import ConfigError
from fedpgp.methods.base import STRICT, Batch, Frozen, Params, logits, mean_cosine, normal
from fedpgp.methods.phrase import PhraseMethod

if TYPE_CHECKING:
    from fedpgp.backbone import Backbone


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DeepPhraseMethod(PhraseMethod, ABC):
    """A method whose context has vectors of its own in the first J layers of the text tower.

    P_1 [M, d], "text", is the context. At layer l = 2 … J, P_l [M, d] of "text_deeper" takes the place of the M tokens
    that came of the one before, without places. One visual prompt or none stands beside it.
    """

    depth: int = Field(
        default=9,
        ge=1,
        le=1024,
        description="J, layers with prompts in each tower (PromptSRC's and MaPLe's papers, of 12)",
    )

    def new_text(self, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        """P_1 and, where J > 1, the others stacked; raises ConfigError where the text tower has fewer layers."""
        check_depth(self.name, self.depth, "text", len(backbone.text.layers))
        return first_prompt("text", self.new_context(backbone, rng), self.depth, rng)

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Prompt]:
        return [prompt_of(params.shared, "text")]

    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        return {"task": F.cross_entropy(self.predict(params, text, batch.features, frozen), batch.labels)}

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        return logits(text[0], images[:, 1] if images.dim() == 3 else images, frozen)

    def diagnostics(self, text: Tensor, frozen: Frozen) -> dict[str, float]:
        return {"cosine_guidance_global": mean_cosine(frozen.guidance, text[0])}


def check_depth(method: str, depth: int, tower: str, layers: int) -> None:
    """Raises ConfigError where a method's prompts are for more layers than a tower has."""
    if depth > layers:
        raise ConfigError(
            f"{method}.depth must be at most {layers}, the layers of the checkpoint's {tower} tower, got {depth}"
        )


def first_prompt(name: str, vectors: Tensor, depth: int, rng: torch.Generator) -> dict[str, Tensor]:
    """A prompt for J layers before it is trained: given vectors [M, d] for the first layer, and drawn ones for the
    J − 1 deeper [J − 1, M, d], where there are some."""
    if depth == 1:
        return {name: vectors}
    return {name: vectors, f"{name}_deeper": normal(rng, depth - 1, *vectors.shape).to(vectors)}


def prompt_of(tensors: Mapping[str, Tensor], name: str) -> Prompt:
    """What a tower reads, of tensors with the names of `first_prompt`."""
    return Prompt(tensors[name], tensors.get(f"{name}_deeper"))
