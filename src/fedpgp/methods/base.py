"""The contract of a method: what it declares, and the pure functions that the engine calls.

Letters: K contexts read in a step, M context vectors, d token width, C classes, D feature width, B images, P patches,
V visual prompts.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.aggregators import Aggregator
from fedpgp.backbone import Backbone
from fedpgp.backbone.layers import Prompt
from fedpgp.backbone.tokens import Position
from fedpgp.data.tasks import Task
from fedpgp.errors import ConfigError
from fedpgp.methods.templates import TEMPLATE
from fedpgp.runtime.validation import STRICT as STRICT  # methods take it from here

Reads = Literal["text", "deep text", "text per image", "images", "patches", "image tower"]
Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "cosine", "step"]
Period = Literal["rounds", "epochs", "steps"]
# Ranges of hyperparameters that many methods have.
Count = Annotated[int, Field(ge=1, le=1024)]  # of vectors, prompts, layers or heads
Factor = Annotated[float, Field(ge=0, le=1e6)]  # such as the weight of a term
LearningRate = Annotated[float, Field(gt=0, le=1e3)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0, le=1e3)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Steps = Annotated[int, Field(ge=1, le=1_000_000)]


@dataclasses.dataclass(frozen=True)
class Params:
    """What one client's model consists of; no name stands in both `shared` and `private`.

    shared: trained and sent to the server. private: trained, and never leaves the client.
    received: what the server sent at the beginning of the round, constant; with most methods `shared` started from it.
    memory: what `Method.memory` made of the client's own images, constant; it never leaves the client.
    """

    shared: Mapping[str, Tensor]
    private: Mapping[str, Tensor]
    received: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    memory: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Batch:
    """features: of images, [B, D] of unit length, or [B, 1 + P, D] or [B, 1 + V, D] as `Method.reads` has it; labels:
    [B] columns of the softmax."""

    features: Tensor
    labels: Tensor


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What never changes during a task, for the classes of one softmax.

    guidance: z_C [C, D] of unit length, text features of hand-written prompts; logit_scale: [], its logarithm;
    base: [C] the place of each class among the task's base classes, −1 for a class that nobody trains on.
    """

    guidance: Tensor
    logit_scale: Tensor
    base: Tensor

    def select(self, classes: Sequence[int]) -> Frozen:
        """The same for some of the classes."""
        chosen = list(classes)
        return Frozen(self.guidance[chosen], self.logit_scale, self.base[chosen])


class Hooks:
    """What only few methods need: a part of the contract in which every member has the value that all others have.

    docs/methods.md names a method for each.
    """

    pooled: ClassVar[bool] = False
    """One training on the images of all clients together, which no federation has."""
    personalizes_shared: ClassVar[bool] = False
    """A client predicts with the shared part as it trained it last, not as it receives it."""
    continues_shared: ClassVar[bool] = False
    """Its training goes on from there, too; what it receives is only `Params.received`."""
    own_classes: ClassVar[bool] = False
    """A client's softmax in training has its own classes alone, not all base classes; clients train one by one."""
    batchable: ClassVar[bool] = True
    """Clients may be trained together. Not where the text that they read differs."""
    per_example: ClassVar[bool] = False
    """`direction` is given the gradient of every example; the loss of a batch must be the mean of its examples'."""
    extra_names: ClassVar[tuple[str, ...]] = ()
    """Class names whose text features stand behind those of the classes in training."""

    @property
    def position(self) -> Position:
        """Where the class name stands in the context."""
        return "end"

    @property
    def tail(self) -> str:
        """What stands behind the context, with {} for the class name."""
        return "{}."

    @property
    def first_layer(self) -> int:
        """The lowest layer of the image tower that its visual prompts change, counted from 0."""
        return 0

    def own_aggregator(self, rounds: int) -> Aggregator | None:
        """The method's own server in a run of so many rounds; None takes the aggregator that the config chooses."""
        return None

    @property
    def finetune_epochs(self) -> int:
        """Epochs that every client trains for itself after the last round, on all of its parameters."""
        return 0

    def memory(self, images: Tensor, labels: Tensor, frozen: Frozen) -> dict[str, Tensor]:
        """What a client keeps of its training images: features [n, D], columns [n] of the softmax in training."""
        return {}

    def for_step(self, params: Params, rng: torch.Generator) -> Params:
        """What a local step works on, where it is not everything; gradients flow through it to `params`."""
        return params

    def constant_prompts(self, params: Params) -> Sequence[Tensor | Prompt]:
        """Contexts that no step changes: read once in a round, their features stand behind those of `prompts`."""
        return []

    def conditional_prompts(self, params: Params, images: Tensor, frozen: Frozen) -> Sequence[Tensor]:
        """A context [M, d] for each of the images, features [B, D]; K grows by B, and they stand behind all others."""
        return []

    def visual_prompts(self, params: Params) -> Sequence[Prompt]:
        """With what the image tower must read every image, V times."""
        return []

    def direction(
        self, gradients: Mapping[str, Mapping[str, Tensor]], params: Params, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """The gradient that the optimizer follows, by parameter; called where a method has one of its own.

        gradients: by term of the loss, then by parameter, with `per_example` [B, …] of every example.
        """
        raise NotImplementedError(f"{type(self).__name__} has no direction")

    @property
    def custom_gradient(self) -> bool:
        """Whether the optimizer follows `direction`, for which every term of the loss has a backward pass."""
        return type(self).direction is not Hooks.direction

    def after_training(self, params: Params, rng: torch.Generator) -> Params:
        """The shared part that a client sends, and the private one that it keeps, after its epochs of a round.

        A private tensor that no loss depends on keeps its value in training, and may be set here.
        """
        return params

    @property
    def swaps(self) -> bool:
        """What it sends after training may not be what it trained as such: no aggregator can turn its gradients."""
        return type(self).after_training is not Hooks.after_training

    def for_prediction(self, params: Params) -> Params:
        """What a model predicts with, where that is not what it trains."""
        return params

    def privacy_spent(self, epochs: int) -> dict[str, float]:
        """What so many passes over a client's images have cost it beside time, such as its privacy."""
        return {}

    def assumptions(self, epochs: int) -> list[str]:
        """What a person should know before a run of so many local epochs, in sentences."""
        return []


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Method(Hooks, ABC):
    """A method is a frozen dataclass of hyperparameters, which are its section of the config, and pure functions.

    It is written for a single client, as its paper writes it. A minimal one, `fedpgp/methods/promptfl.py`, defines its
    first parameters and its `prompts`; every other member has the value that most methods need.
    """

    name: ClassVar[str]
    source: ClassVar[str]  # the paper
    year: ClassVar[int]
    venue: ClassVar[str]
    context_names: ClassVar[tuple[Literal["global", "personal"], ...]] = ()
    """What the first of `prompts` are, so that `diagnostics` compares them."""

    @property
    def reads(self) -> tuple[Reads, ...]:
        """What the engine computes for it, and nothing else.

        "text": features of class names behind `prompts`; "deep text": prompts that reach into deeper layers, or
        adapters; "text per image": behind the `conditional_prompts` of each image, too.
        "images": [B, D] one feature of each image; "patches": [B, 1 + P, D], the same and then one of each patch;
        "image tower": [B, 1 + V, D], the same and then one for each of `visual_prompts`. All have unit length.
        """
        return ("text", "images")

    @property
    def costly(self) -> bool:
        """Whether its steps go through the image tower, or read class names for every image."""
        return bool({"image tower", "text per image"} & {*self.reads})

    @property
    def learning_rates(self) -> Mapping[str, float]:
        """The learning rate of each group of parameters that it has, "shared" and "private"."""
        return {}

    def templates(self, task: Task) -> Sequence[str]:
        """The hand-written prompts whose mean text features are the guidance z_C."""
        return (TEMPLATE,)

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        """The server's parameters before the first round."""
        return {}

    def init_private(self, task: Task, backbone: Backbone, rng: torch.Generator, client: int) -> dict[str, Tensor]:
        """A client's own parameters before its first round."""
        return {}

    @abstractmethod
    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor | Prompt]:
        """The K contexts that the text encoder must read for some classes: [M, d], or [C, M, d] one for each class."""

    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        """The terms of the client's loss, by name; their sum is minimised. By default the cross-entropy of `predict`.

        text: [K, C, D] of `prompts`, then of `constant_prompts`.
        """
        return {"task": F.cross_entropy(self.predict(params, text, batch.features, frozen), batch.labels)}

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        """Logits [B, C] of image features [B, D], or what `reads` makes of them. By default the first context's."""
        return logits(text[0], images, frozen)

    def path(self, params: Params, alpha: float) -> Params | None:
        """The model at α of the way from the shared part alone (0) to this one (1), 0 ≤ α < 1.

        None mixes the logits of the two, as (1 − α) and α: for logits that are linear in text features of unit length
        that is to mix these, without bringing the mixture to unit length again.
        """
        return None

    def without_private(self, params: Params) -> Params | None:
        """The parameters of a client that has only the shared part, or None if that predicts nothing by itself.

        By default these are the parameters as they are, if nothing in them is personal, and otherwise the begin of
        `path`.
        """
        return self.path(params, 0) if params.private or self.personalizes_shared else params

    def diagnostics(self, text: Tensor, frozen: Frozen) -> dict[str, float]:
        """Figures of one client to record beside its accuracies. text: [K, C, D] over the base classes.

        By default these are mean cosines of text features: of the hand-written prompts and the first of
        `context_names`, and of that one and the second.
        """
        features = [("guidance", frozen.guidance), *zip(self.context_names, text, strict=False)]
        return {f"cosine_{name}_{other}": mean_cosine(z, z_other) for (name, z), (other, z_other) in pairwise(features)}


def _of_federation(what: str, key: str, **limits: Any) -> Any:
    """A setting that a method may have for itself, and otherwise takes from [federation]."""
    return Field(default=None, description=f"{what} of this method; if unset, federation.{key}", **limits)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainedMethod(Method, ABC):
    """A method whose section may have an optimizer and a schedule other than [federation]'s.

    What is None is that of [federation], where each field is described.
    """

    learning_rate: LearningRate = Field(default=1e-3, description="Learning rate (FedPGP's authors' script)")
    optimizer: Optimizer | None = _of_federation("Optimizer", "optimizer")
    momentum: Beta | None = _of_federation("Momentum", "momentum")
    betas: tuple[Beta, Beta] | None = _of_federation("Betas", "betas", strict=False)
    eps: Fraction | None = _of_federation("Epsilon", "eps")
    weight_decay: Decay | None = _of_federation("Weight decay", "weight_decay")
    private_weight_decay: Decay | None = Field(
        default=None, description="of the private part; unset: as the shared part"
    )
    schedule: Schedule | None = _of_federation("Schedule", "schedule")
    private_schedule: Schedule | None = Field(
        default=None, description="of the private part; unset: as the shared part"
    )
    schedule_over: Period | None = _of_federation("Period of the schedule", "schedule_over")
    warmup: int | None = _of_federation("Length of the warm-up", "warmup", ge=0, le=1_000_000)
    warmup_rate: LearningRate | None = _of_federation("Learning rate in the warm-up", "warmup_rate")
    step_every: Steps | None = _of_federation("Length of a step of the schedule", "step_every")
    step_factor: Fraction | None = _of_federation("Factor of a step of the schedule", "step_factor")

    @property
    def learning_rates(self) -> Mapping[str, float]:
        return {"shared": self.learning_rate, "private": self.learning_rate}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PromptMethod(TrainedMethod, ABC):
    """A method that learns context vectors."""

    context_length: Count = Field(
        default=16,
        description="M, context vectors of a random initialisation (FedPGP's authors' code; a phrase has its own M)",
    )
    ctx_init: str = Field(
        default="random",
        min_length=1,
        description='first: "random", N(0, 0.02²) (FedPGP\'s public code), or a phrase such as "a photo of a" (CoOp)',
    )
    class_token_position: Position = Field(
        default="end", description='of the class name in the context: "end", "middle" or "front" (CoOp)'
    )

    @property
    def position(self) -> Position:
        return self.class_token_position

    def vectors(self, backbone: Backbone) -> int:
        """M, of a random context or of the phrase."""
        return self.context_length if self.ctx_init == "random" else len(backbone.phrase(self.ctx_init))

    def new_context(self, backbone: Backbone, rng: torch.Generator) -> Tensor:
        """The first context vectors [M, d]; raises ConfigError for a phrase without tokens."""
        if self.ctx_init == "random":
            return normal(rng, self.context_length, backbone.token_width).to(backbone.logit_scale)
        phrase = backbone.phrase(self.ctx_init)
        if not len(phrase):
            raise ConfigError(f'{self.name}.ctx_init must be "random" or a phrase, got {self.ctx_init!r}')
        return phrase

    def new_prompts(self, count: int, backbone: Backbone, rng: torch.Generator) -> Tensor:
        """Several first contexts [N, M, d]; if all are of one phrase, N(0, 0.02²) is added to all but the first."""
        contexts = torch.stack([self.new_context(backbone, rng) for _ in range(count)])
        if self.ctx_init != "random":
            contexts[1:] += normal(rng, *contexts[1:].shape).to(contexts)
        return contexts

    def check_rank(self, key: str, rank: int, backbone: Backbone) -> None:
        """Raises ConfigError if the setting `key`, a rank, is larger than a matrix [M, d] can have."""
        M, d = self.vectors(backbone), backbone.token_width
        if rank > min(M, d):
            raise ConfigError(
                f"{self.name}.{key} must be at most {min(M, d)}, the smaller of context length {M} and token width {d},"
                f" got {rank}: a higher rank adds nothing"
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SinglePromptMethod(PromptMethod, ABC):
    """A method whose model is one context, or with `class_specific` one for each class."""

    class_specific: bool = Field(
        default=False, description="a context for each base class (CoOp's CSC); other classes take their mean"
    )

    def new_contexts(self, task: Task, backbone: Backbone, rng: torch.Generator) -> Tensor:
        """The first context [M, d], or [C, M, d] for the C base classes."""
        if not self.class_specific:
            return self.new_context(backbone, rng)
        return torch.stack([self.new_context(backbone, rng) for _ in task.base])

    def contexts(self, context: Tensor, frozen: Frozen) -> Tensor:
        """The context of each class of a softmax [C, M, d], from those of the base classes; one for all as it is.

        CoOp has none for a class that nobody trained on; here it takes the mean of the others.
        """
        if context.dim() == 2:
            return context
        unknown = (frozen.base < 0)[:, None, None]
        return torch.where(unknown, context.mean(0), context[frozen.base])


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    """N(0, 0.02²), drawn in float32 so that every precision starts from the same numbers."""
    return 0.02 * torch.randn(*shape, generator=rng)


def uniform(rng: torch.Generator, inputs: int, *shape: int) -> Tensor:
    """As PyTorch's linear layers of so many inputs start: from −1/√inputs to 1/√inputs."""
    return (2 * torch.rand(*shape, generator=rng) - 1) / math.sqrt(inputs)


def logits(text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
    """CLIP's logits [B, C]: exp(logit scale) · cosine. text: [C, D]; images: [B, D]."""
    return frozen.logit_scale.exp() * images @ text.T


def mean_cosine(first: Tensor, second: Tensor) -> float:
    """The mean over classes of the cosine of two sets of text features [C, D] of unit length."""
    return (first * second).sum(-1).mean().item()
