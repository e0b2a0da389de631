"""What methods share whose context takes the place of the first words of a phrase, as in MaPLe's code."""

from __future__ import annotations

from abc import ABC
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.errors import ConfigError
from fedpgp.methods.base import STRICT, TrainedMethod, normal

if TYPE_CHECKING:
    from fedpgp.backbone import Backbone


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PhraseMethod(TrainedMethod, ABC):
    """A method that learns the first words of a phrase; the others stay what they are, in front of the class name."""

    context_length: int = Field(default=4, ge=1, le=1024, description="M, context vectors (public code)")
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
