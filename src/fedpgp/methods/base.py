"""The contract of a method: the attributes that it declares, and the pure functions that the engine calls.

Letters in shapes: K contexts in one step, M context vectors, d token width, C classes, D feature width, B images,
P patches, V visual prompts.
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
from fedpgp.runtime.validation import STRICT as STRICT  # methods import it from here

Reads = Literal["text", "deep text", "text per image", "images", "patches", "image tower"]
Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "cosine", "step"]
Period = Literal["rounds", "epochs", "steps"]
# Types of hyperparameters that many methods have, with the values that they allow.
Count = Annotated[int, Field(ge=1, le=1024)]  # a number of vectors, prompts, layers or heads
Factor = Annotated[float, Field(ge=0, le=1e6)]  # for example the weight of a term of the loss
LearningRate = Annotated[float, Field(gt=0, le=1e3)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0, le=1e3)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Steps = Annotated[int, Field(ge=1, le=1_000_000)]


@dataclasses.dataclass(frozen=True)
class Params:
    """The tensors of one client's model, by name. A name is in `shared` or in `private`, never in both.

    Attributes
    ----------
    shared
        Parameters that the client trains and sends to the server.
    private
        Parameters that the client trains and never sends.
    received
        Constants: the tensors that the server sent at the beginning of the round. With most methods, `shared` started
        from them.
    memory
        Constants: the result of `Method.memory` for the client's own images. They never leave the client.
    """

    shared: Mapping[str, Tensor]
    private: Mapping[str, Tensor]
    received: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    memory: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Batch:
    """The images of one step.

    Attributes
    ----------
    features
        Image features of unit length: [B, D], or [B, 1 + P, D] or [B, 1 + V, D], depending on `Method.reads`.
    labels
        [B], the column of each image's class in the softmax.
    """

    features: Tensor
    labels: Tensor


@dataclasses.dataclass(frozen=True)
class Frozen:
    """The constants of a task, for the classes of one softmax.

    Attributes
    ----------
    guidance
        z_C [C, D], the text features of the hand-written prompts, of unit length.
    logit_scale
        [], the logarithm of the scale of the logits.
    base
        [C], the index of each class among the task's base classes, or −1 for a class that no client trains on.
    """

    guidance: Tensor
    logit_scale: Tensor
    base: Tensor

    def select(self, classes: Sequence[int]) -> Frozen:
        """Return the constants of some of the classes, given by their columns."""
        chosen = list(classes)
        return Frozen(self.guidance[chosen], self.logit_scale, self.base[chosen])


class Hooks:
    """The optional part of the contract: members that only a few methods change.

    The defaults are right for all other methods. docs/methods.md names a method that uses each member.
    """

    pooled: ClassVar[bool] = False
    """Whether one model is trained on the images of all clients together. No real federation can do so."""
    personalizes_shared: ClassVar[bool] = False
    """Whether a client predicts with the shared part that it trained last instead of the received shared part."""
    continues_shared: ClassVar[bool] = False
    """Whether a client also continues training from the shared part that it trained last. It then sees the tensors
    from the server only in `Params.received`."""
    own_classes: ClassVar[bool] = False
    """Whether the softmax in training has only the client's own classes instead of all base classes. Clients are then
    trained one by one."""
    batchable: ClassVar[bool] = True
    """Whether several clients may be trained together. Must be false if they read different texts."""
    per_example: ClassVar[bool] = False
    """Whether `direction` receives the gradient of each example. The loss of a batch must then be the mean of the
    losses of its examples."""
    extra_names: ClassVar[tuple[str, ...]] = ()
    """Extra class names. In training, their text features follow the text features of the task's classes."""

    @property
    def position(self) -> Position:
        """Position of the class name in the context."""
        return "end"

    @property
    def tail(self) -> str:
        """Text after the context, with {} for the class name."""
        return "{}."

    @property
    def first_layer(self) -> int:
        """Lowest layer of the image tower that the visual prompts change, counted from 0."""
        return 0

    def own_aggregator(self, rounds: int) -> Aggregator | None:
        """Return the method's own aggregator for a run of `rounds` rounds, or None to use the one in the config."""
        return None

    @property
    def finetune_epochs(self) -> int:
        """Epochs in which each client trains all of its parameters separately after the last round."""
        return 0

    def memory(self, images: Tensor, labels: Tensor, frozen: Frozen) -> dict[str, Tensor]:
        """Return the tensors that a client keeps of its training images, for `Params.memory`.

        Parameters
        ----------
        images
            Features [n, D] of the client's training images.
        labels
            [n], the column of each image's class in the softmax of training.
        frozen
            Constants of that softmax.
        """
        return {}

    def for_step(self, params: Params, rng: torch.Generator) -> Params:
        """Return the parameters that one local step uses, by default all. Gradients flow through them to `params`."""
        return params

    def constant_prompts(self, params: Params) -> Sequence[Tensor | Prompt]:
        """Return contexts that no step changes.

        The text encoder reads them once in a round. Their features follow the features of `prompts`.
        """
        return []

    def conditional_prompts(self, params: Params, images: Tensor, frozen: Frozen) -> Sequence[Tensor]:
        """Return one context [M, d] for each image. images: features [B, D].

        Their text features follow the text features of all other contexts, so K grows by B.
        """
        return []

    def visual_prompts(self, params: Params) -> Sequence[Prompt]:
        """Return the V visual prompts. The image tower reads every image once with each of them."""
        return []

    def direction(
        self, gradients: Mapping[str, Mapping[str, Tensor]], params: Params, rng: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the gradient that the optimizer follows, by parameter. Only called if a method defines it.

        Parameters
        ----------
        gradients
            Gradients by term of the loss, then by parameter. With `per_example`, their first dimension [B, …] is the
            example.
        params
            The parameters of the step.
        rng
            Generator of the step's random numbers, for example of noise.
        """
        raise NotImplementedError(f"{type(self).__name__} has no direction")

    @property
    def custom_gradient(self) -> bool:
        """Whether the optimizer follows `direction`. Each term of the loss then gets its own backward pass."""
        return type(self).direction is not Hooks.direction

    def after_training(self, params: Params, rng: torch.Generator) -> Params:
        """Return the shared part that a client sends and the private part that it keeps, after its epochs of a round.

        A private tensor that the loss does not depend on keeps its value in training. It can be set here.
        """
        return params

    @property
    def swaps(self) -> bool:
        """Whether a client may send other tensors than it trained. No aggregator can then correct its gradients."""
        return type(self).after_training is not Hooks.after_training

    def for_prediction(self, params: Params) -> Params:
        """Return the parameters for prediction, if they differ from the trained ones."""
        return params

    def privacy_spent(self, epochs: int) -> dict[str, float]:
        """Return the privacy that a client has spent after `epochs` passes over its images, for the record of a round.

        For example {"epsilon": 8.0}.
        """
        return {}

    def assumptions(self, epochs: int) -> list[str]:
        """Return sentences that a user should read before a run of `epochs` local epochs."""
        return []


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Method(Hooks, ABC):
    """A method: a frozen dataclass of hyperparameters, and pure functions on one client's parameters.

    The hyperparameters are the method's section of the config. The functions describe a single client, as the paper
    does. Start from `fedpgp/methods/promptfl.py`, a minimal method: it defines its initial parameters and `prompts`.
    The defaults of all other members fit most methods.
    """

    name: ClassVar[str]
    source: ClassVar[str]  # the paper
    year: ClassVar[int]
    venue: ClassVar[str]
    context_names: ClassVar[tuple[Literal["global", "personal"], ...]] = ()
    """Names of the first contexts of `prompts`, so that `diagnostics` can compare them."""

    @property
    def reads(self) -> tuple[Reads, ...]:
        """Features that the engine computes for the method. It computes no others.

        Text features, [K, C, D]:

        - "text": features of the class names after each context of `prompts`.
        - "deep text": the same, for prompts that reach into deeper layers, and for adapters.
        - "text per image": in addition, features after the `conditional_prompts` of each image.

        Image features, all of unit length:

        - "images": [B, D], one feature for each image.
        - "patches": [B, 1 + P, D], the feature of the image, then one for each patch.
        - "image tower": [B, 1 + V, D], the feature of the image, then one for each of `visual_prompts`.
        """
        return ("text", "images")

    @property
    def costly(self) -> bool:
        """Whether a step runs the image tower, or reads the class names for every image."""
        return bool({"image tower", "text per image"} & {*self.reads})

    @property
    def learning_rates(self) -> Mapping[str, float]:
        """Learning rate of each group of parameters, by the group's name: "shared" or "private"."""
        return {}

    def templates(self, task: Task) -> Sequence[str]:
        """Return the hand-written prompts. Their mean text features are the guidance z_C."""
        return (TEMPLATE,)

    def init_shared(self, task: Task, backbone: Backbone, rng: torch.Generator) -> dict[str, Tensor]:
        """Return the shared parameters before the first round."""
        return {}

    def init_private(self, task: Task, backbone: Backbone, rng: torch.Generator, client: int) -> dict[str, Tensor]:
        """Return a client's private parameters before its first round."""
        return {}

    @abstractmethod
    def prompts(self, params: Params, frozen: Frozen) -> Sequence[Tensor | Prompt]:
        """Return the K contexts that the text encoder reads: each [M, d], or [C, M, d] with one for each class."""

    def loss(self, params: Params, text: Tensor, batch: Batch, frozen: Frozen) -> dict[str, Tensor]:
        """Return the terms of the client's loss, by name. Training minimises their sum.

        The default is the cross-entropy of `predict`.

        Parameters
        ----------
        params
            The client's parameters.
        text
            Text features [K, C, D]: first of `prompts`, then of `constant_prompts`, then of `conditional_prompts`.
        batch
            The images of the step.
        frozen
            Constants of the C classes.
        """
        return {"task": F.cross_entropy(self.predict(params, text, batch.features, frozen), batch.labels)}

    def predict(self, params: Params, text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
        """Return the logits [B, C]. The default uses only the first context.

        Parameters
        ----------
        params
            The client's parameters.
        text
            Text features [K, C, D], as in `loss`.
        images
            Image features [B, D], or with more features for each image, depending on `reads`.
        frozen
            Constants of the C classes.
        """
        return logits(text[0], images, frozen)

    def path(self, params: Params, alpha: float) -> Params | None:
        """Return the model between the shared model (α = 0) and the personal model `params` (α = 1), for 0 ≤ α < 1.

        If the result is None, the engine mixes the logits of the two models with weights 1 − α and α. If logits are
        linear in text features of unit length, this equals mixing the text features without normalizing the mixture.
        """
        return None

    def without_private(self, params: Params) -> Params | None:
        """Return the model of a client without a private part, or None if the shared part cannot predict.

        By default, this is `params` if nothing in it is personal, and otherwise the start of `path`.
        """
        return self.path(params, 0) if params.private or self.personalizes_shared else params

    def diagnostics(self, text: Tensor, frozen: Frozen) -> dict[str, float]:
        """Return numbers about one client to record with its accuracies. text: [K, C, D] over the base classes.

        The default gives mean cosines of text features: between the hand-written prompts and the first of
        `context_names`, and between the first and the second of `context_names`.
        """
        features = [("guidance", frozen.guidance), *zip(self.context_names, text, strict=False)]
        return {f"cosine_{name}_{other}": mean_cosine(z, z_other) for (name, z), (other, z_other) in pairwise(features)}


def _of_federation(what: str, key: str, **limits: Any) -> Any:
    """Return a hyperparameter that overrides the hyperparameter in [federation]."""
    return Field(default=None, description=f"{what} of this method; if unset, federation.{key}", **limits)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainedMethod(Method, ABC):
    """A method with training, whose section of the config can override the optimizer and schedule of [federation].

    A field that is None has the value of the field of the same name in [federation], which also describes it.
    """

    learning_rate: LearningRate = Field(default=1e-3, description="Learning rate (FedPGP's authors' script)")
    optimizer: Optimizer | None = _of_federation("Optimizer", "optimizer")
    momentum: Beta | None = _of_federation("Momentum", "momentum")
    betas: tuple[Beta, Beta] | None = _of_federation("Betas", "betas", strict=False)
    eps: Fraction | None = _of_federation("Epsilon", "eps")
    weight_decay: Decay | None = _of_federation("Weight decay", "weight_decay")
    private_weight_decay: Decay | None = Field(
        default=None, description="Weight decay of the private part; if unset, the same as for the shared part"
    )
    schedule: Schedule | None = _of_federation("Schedule", "schedule")
    private_schedule: Schedule | None = Field(
        default=None, description="Schedule of the private part; if unset, the same as for the shared part"
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
        description="M, number of context vectors with ctx_init = \"random\" (FedPGP's authors' code); a phrase has"
        " one for each of its tokens",
    )
    ctx_init: str = Field(
        default="random",
        min_length=1,
        description='Initial context vectors: "random" for N(0, 0.02²) (FedPGP\'s public code), or a phrase such as'
        ' "a photo of a" (CoOp)',
    )
    class_token_position: Position = Field(
        default="end", description='Position of the class name in the context: "end", "middle" or "front" (CoOp)'
    )

    @property
    def position(self) -> Position:
        return self.class_token_position

    def vectors(self, backbone: Backbone) -> int:
        """Return M, the number of context vectors: `context_length`, or the number of tokens of the phrase."""
        return self.context_length if self.ctx_init == "random" else len(backbone.phrase(self.ctx_init))

    def new_context(self, backbone: Backbone, rng: torch.Generator) -> Tensor:
        """Return initial context vectors [M, d]. Raise ConfigError for a phrase without tokens."""
        if self.ctx_init == "random":
            return normal(rng, self.context_length, backbone.token_width).to(backbone.logit_scale)
        phrase = backbone.phrase(self.ctx_init)
        if not len(phrase):
            raise ConfigError(
                where=f"{self.name}.ctx_init",
                allowed='"random" or a phrase with at least one token',
                got=self.ctx_init,
                remedy=f"Use --set {self.name}.ctx_init=random",
            )
        return phrase

    def new_prompts(self, count: int, backbone: Backbone, rng: torch.Generator) -> Tensor:
        """Return N = `count` initial contexts [N, M, d].

        If they come from a phrase, all except the first get noise N(0, 0.02²), because equal contexts would stay equal.
        """
        contexts = torch.stack([self.new_context(backbone, rng) for _ in range(count)])
        if self.ctx_init != "random":
            contexts[1:] += normal(rng, *contexts[1:].shape).to(contexts)
        return contexts

    def check_rank(self, key: str, rank: int, backbone: Backbone) -> None:
        """Raise ConfigError if `rank`, the value of the field `key`, is larger than the rank of a matrix [M, d]."""
        M, d = self.vectors(backbone), backbone.token_width
        if rank > (largest := min(M, d)):
            raise ConfigError(
                where=f"{self.name}.{key}",
                allowed=f"at most {largest}, the smaller of the context length {M} and the token width {d}",
                got=rank,
                remedy=f"Use --set {self.name}.{key}={largest} or less",
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SinglePromptMethod(PromptMethod, ABC):
    """A method whose model is one context, or one context for each class with `class_specific`."""

    class_specific: bool = Field(
        default=False,
        description="Learn one context for each base class (CoOp's CSC); other classes use the mean of these contexts",
    )

    def new_contexts(self, task: Task, backbone: Backbone, rng: torch.Generator) -> Tensor:
        """Return the initial context [M, d], or with `class_specific` one for each of the C base classes [C, M, d]."""
        if not self.class_specific:
            return self.new_context(backbone, rng)
        return torch.stack([self.new_context(backbone, rng) for _ in task.base])

    def contexts(self, context: Tensor, frozen: Frozen) -> Tensor:
        """Return the context of each class of a softmax, [C, M, d], or unchanged a context [M, d] of all classes.

        CoOp has no context for a class that no client trained on. Here such a class uses the mean of the contexts of
        the base classes.
        """
        if context.dim() == 2:
            return context
        unknown = (frozen.base < 0)[:, None, None]
        return torch.where(unknown, context.mean(0), context[frozen.base])


def normal(rng: torch.Generator, *shape: int) -> Tensor:
    """Draw from N(0, 0.02²), in float32 so that every precision starts from the same numbers."""
    return 0.02 * torch.randn(*shape, generator=rng)


def uniform(rng: torch.Generator, inputs: int, *shape: int) -> Tensor:
    """Draw uniformly between −1/√inputs and 1/√inputs, as PyTorch initializes a linear layer with `inputs` inputs."""
    return (2 * torch.rand(*shape, generator=rng) - 1) / math.sqrt(inputs)


def logits(text: Tensor, images: Tensor, frozen: Frozen) -> Tensor:
    """Return CLIP's logits [B, C], exp(logit scale) · cosine, for text features [C, D] and image features [B, D]."""
    return frozen.logit_scale.exp() * images @ text.T


def mean_cosine(first: Tensor, second: Tensor) -> float:
    """Return the mean over classes of the cosine of two sets of text features [C, D] of unit length."""
    return (first * second).sum(-1).mean().item()
