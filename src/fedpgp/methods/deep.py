"""What methods share that learn the first words of a phrase, as in MaPLe's code, or prompts for several layers."""

from abc import ABC
from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.backbone.layers import Prompt
from fedpgp.errors import ConfigError
from fedpgp.methods.base import STRICT, Count, Frozen, Params, TrainedMethod, logits, normal


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PhraseMethod(TrainedMethod, ABC):
    """A method that learns the first words of a phrase; the others stay what they are, in front of the class name."""

    context_length: Count = Field(default=4, description="M, context vectors (public code)")
    ctx_init: str = Field(
        default="a photo of a",
        min_length=1,
        pattern=r"^[^{}]*$",
        description='the phrase whose first M words are learned, the others fixed; "random", or too few: N(0, 0.02²)',
    )

    @property
    def words(self) -> list[str]:
        """Of the phrase; none where the context is drawn."""
        words = self.ctx_init.replace("_", " ").split()
        return words if self.ctx_init != "random" and self.context_length <= len(words) else []

    @property
    def tail(self) -> str:
        return " ".join([*self.words[self.context_length :], "{}."])

    def new_context(self, backbone: Backbone, rng: torch.Generator) -> Tensor:
        """The first context vectors [M, d]; raises ConfigError where a word is not one token."""
        if not self.words:
            return normal(rng, self.context_length, backbone.token_width).to(backbone.logit_scale)
        first = " ".join(self.words[: self.context_length])
        phrase = backbone.phrase(first)
        if len(phrase) != self.context_length:
            raise ConfigError(
                f"{self.name}.ctx_init must begin with {self.context_length} words of one token each, {first!r} has"
                f' {len(phrase)} tokens: choose other words, another context_length, or "random"'
            )
        return phrase


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DeepPhraseMethod(PhraseMethod, ABC):
    """A method whose context has vectors of its own in the first J layers of the text tower.

    P_1 [M, d], "text", is the context. At layer l = 2 … J, P_l [M, d] of "text_deeper" takes the place of the M tokens
    that came of the one before, without places. One visual prompt or none stands beside it.
    """

    context_names = ("global",)

    depth: Count = Field(
        default=9, description="J, layers with prompts in each tower (PromptSRC's and MaPLe's papers, of 12)"
    )

    def new_text(self, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        """P_1 and, where J > 1, the others stacked; raises ConfigError where the text tower has fewer layers."""
        check_depth(self.name, self.depth, "text", len(backbone.text.layers))
        return first_prompt("text", self.new_context(backbone, rng), self.depth, rng)

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Prompt]:
        return [prompt_of(params.shared, "text")]

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        return logits(text[0], images[:, 1] if images.dim() == 3 else images, frozen)


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


def first_visual(method: str, length: int, depth: int, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
    """A visual prompt for J layers before it is trained; raises ConfigError where the image tower has fewer layers."""
    check_depth(method, depth, "image", backbone.image.layers)
    return first_prompt("visual", normal(rng, length, backbone.image.token_width).to(backbone.logit_scale), depth, rng)


def prompt_of(tensors: Mapping[str, Tensor], name: str) -> Prompt:
    """What a tower reads, of tensors with the names of `first_prompt`."""
    return Prompt(tensors[name], tensors.get(f"{name}_deeper"))
