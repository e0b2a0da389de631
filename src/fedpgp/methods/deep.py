"""Base classes of methods that learn the first words of a phrase, as in MaPLe's code, or prompts for several layers."""

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
    """A method that learns the first words of a phrase. The other words stay fixed in front of the class name."""

    context_length: Count = Field(default=4, description="M, number of context vectors (public code)")
    ctx_init: str = Field(
        default="a photo of a",
        min_length=1,
        pattern=r"^[^{}]*$",
        description='Phrase whose first M words are learned and whose other words stay fixed; "random", or a phrase of'
        " fewer than M words: N(0, 0.02²)",
    )

    @property
    def words(self) -> list[str]:
        """Words of the phrase, or none if the initial context is random."""
        words = self.ctx_init.replace("_", " ").split()
        return words if self.ctx_init != "random" and self.context_length <= len(words) else []

    @property
    def tail(self) -> str:
        return " ".join([*self.words[self.context_length :], "{}."])

    def new_context(self, backbone: Backbone, rng: torch.Generator) -> Tensor:
        """Return the initial context vectors [M, d]. Raise ConfigError if a learned word is not exactly one token."""
        if not self.words:
            return normal(rng, self.context_length, backbone.token_width).to(backbone.logit_scale)
        first = " ".join(self.words[: self.context_length])
        phrase = backbone.phrase(first)
        if len(phrase) != self.context_length:
            raise ConfigError(
                f"the first {self.context_length} words must be one token each, but {first!r} has {len(phrase)} tokens",
                where=f"{self.name}.ctx_init",
                got=self.ctx_init,
                remedy=f"Choose other words, change {self.name}.context_length, or use"
                f" --set {self.name}.ctx_init=random",
            )
        return phrase


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DeepPhraseMethod(PhraseMethod, ABC):
    """A method whose context has separate vectors in each of the first J layers of the text tower.

    P_1 [M, d], the parameter "text", is the context. At layer l = 2 … J, P_l [M, d] of the parameter "text_deeper"
    replaces the M tokens that layer l − 1 made of P_(l−1), without positional embeddings. A method has at most one
    visual prompt in addition.
    """

    context_names = ("global",)

    depth: Count = Field(
        default=9,
        description="J, number of layers with prompts in each tower (PromptSRC's and MaPLe's papers: 9 of 12)",
    )

    def new_text(self, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        """Return the initial P_1 and, if J > 1, the stacked deeper prompts.

        Raise ConfigError if the text tower has fewer than J layers.
        """
        check_depth(self.name, self.depth, "text", len(backbone.text.layers))
        return first_prompt("text", self.new_context(backbone, rng), self.depth, rng)

    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Prompt]:
        return [prompt_of(params.shared, "text")]

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        return logits(text[0], images[:, 1] if images.dim() == 3 else images, frozen)


def check_depth(method: str, depth: int, tower: str, layers: int) -> None:
    """Raise ConfigError if a method has prompts for more layers than a tower has."""
    if depth > layers:
        raise ConfigError(
            where=f"{method}.depth",
            allowed=f"at most {layers}, the number of layers of the checkpoint's {tower} tower",
            got=depth,
            remedy=f"Use --set {method}.depth={layers} or less",
        )


def first_prompt(name: str, vectors: Tensor, depth: int, rng: torch.Generator) -> dict[str, Tensor]:
    """Return an initial prompt for J = `depth` layers, by name.

    The first layer gets the given `vectors` [M, d]. The J − 1 deeper layers, if there are any, get random vectors
    [J − 1, M, d].
    """
    if depth == 1:
        return {name: vectors}
    return {name: vectors, f"{name}_deeper": normal(rng, depth - 1, *vectors.shape).to(vectors)}


def first_visual(method: str, length: int, depth: int, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
    """Return an initial visual prompt for J = `depth` layers.

    Raise ConfigError if the image tower has fewer than J layers.
    """
    check_depth(method, depth, "image", backbone.image.layers)
    return first_prompt("visual", normal(rng, length, backbone.image.token_width).to(backbone.logit_scale), depth, rng)


def prompt_of(tensors: Mapping[str, Tensor], name: str) -> Prompt:
    """Return the prompt that a tower reads, from tensors with the names of `first_prompt`."""
    return Prompt(tensors[name], tensors.get(f"{name}_deeper"))
