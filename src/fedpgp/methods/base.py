"""The contract of a method: what it declares, and the pure functions that the engine calls.

Letters: K contexts read in a step, M context vectors, d token width, C classes, D feature width, B images.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.errors import ConfigError

if TYPE_CHECKING:
    from fedpgp.backbone import Backbone
    from fedpgp.data.tasks import Task

TEMPLATE = "a photo of a {}."
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclasses.dataclass(frozen=True)
class Params:
    """What one client trains: `shared` goes to the server, `private` never leaves the client."""

    shared: Mapping[str, Tensor]
    private: Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Batch:
    """images: features [B, D] of unit length; labels: [B] columns of the softmax."""

    images: Tensor
    labels: Tensor


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What never changes during a task: guidance z_C [C, D] of unit length, and the logarithm of the logit scale []."""

    guidance: Tensor
    logit_scale: Tensor

    def select(self, classes: Sequence[int]) -> Frozen:
        """The same for some of the classes."""
        return Frozen(self.guidance[list(classes)], self.logit_scale)


@dataclasses.dataclass(frozen=True)
class ClientUpdate:
    """What a client brings home from a round; the server is handed `params.shared` and `examples`, and nothing else.

    losses: mean over the round's steps of every term of the loss.
    """

    client: int
    examples: int
    params: Params
    losses: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Method(ABC):
    """A method is a frozen dataclass of hyperparameters, which are its section of the config, and pure functions.

    It is written for a single client, as its paper writes it. A minimal one is `fedpgp/methods/promptfl.py`.
    """

    name: ClassVar[str]
    source: ClassVar[str]  # the paper

    @property
    def template(self) -> str:
        """The hand-written prompt whose text features are the guidance z_C."""
        return TEMPLATE

    @property
    def learning_rates(self) -> Mapping[str, float]:
        """The learning rate of each group of parameters, "shared" and "private"."""
        return {}

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        """The server's parameters before the first round."""
        return {}

    def init_private(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        """A client's own parameters before its first round."""
        return {}

    @abstractmethod
    def prompts(self, params: Params) -> Tensor:
        """The contexts [K, M, d] that the text encoder must read; K may be 0."""

    @abstractmethod
    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        """The terms of the client's loss, by name; their sum is minimised. text: [K, C, D] of `prompts`."""

    @abstractmethod
    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        """Logits [B, C] of image features [B, D]."""

    def without_private(self, params: Params) -> Params | None:
        """The parameters of somebody who has the shared part only; None where that predicts nothing."""
        return params if not params.private else None

    def diagnostics(self, text: Tensor, frozen: Frozen) -> dict[str, float]:
        """Figures of one client to record beside its accuracies. text: [K, C, D] over the base classes."""
        return {}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PromptMethod(Method, ABC):
    """A method that learns context vectors in front of the class name."""

    context_length: int = Field(
        default=16,
        ge=1,
        le=1024,
        description="M, context vectors of a random initialisation (authors' script; a phrase has its own M)",
    )
    ctx_init: str = Field(
        default="random",
        min_length=1,
        description='first context: "random", N(0, 0.02²) (authors\' script), or a phrase like "a photo of a" (CoOp)',
    )
    learning_rate: float = Field(default=1e-3, gt=0, le=1e3, description="of SGD, constant (authors' script)")

    @property
    def learning_rates(self) -> Mapping[str, float]:
        return {"shared": self.learning_rate, "private": self.learning_rate}

    def new_context(self, backbone: Backbone, rng: torch.Generator) -> Tensor:
        """The first context vectors [M, d]; raises ConfigError for a phrase without tokens."""
        if self.ctx_init == "random":
            return normal(rng, self.context_length, backbone.token_width).to(backbone.logit_scale)
        phrase = backbone.phrase(self.ctx_init)
        if not len(phrase):
            raise ConfigError(f'{self.name}.ctx_init must be "random" or a phrase, got {self.ctx_init!r}')
        return phrase


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    """N(0, 0.02²), drawn in float32 so that every precision starts from the same numbers."""
    return 0.02 * torch.randn(*shape, generator=rng)


def logits(text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
    """CLIP's logits [B, C]: exp(logit scale) · cosine. text: [C, D]; images: [B, D]."""
    return frozen.logit_scale.exp() * images @ text.T


def mean_cosine(first: Tensor, second: Tensor) -> float:
    """The mean over classes of the cosine of two sets of text features [C, D] of unit length."""
    return (first * second).sum(-1).mean().item()
