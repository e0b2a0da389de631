"""The contract of an aggregator: what the server keeps, what it sends, and how it combines the clients' updates.

The config selects an aggregator independently of the method, and it works on the shared part of any method. Some
aggregators, for example with control variates, also correct the clients' gradients in local training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.runtime.validation import STRICT

Tensors = Mapping[str, Tensor]


@plain_dataclass(frozen=True)
class Server:
    """The state of the server between two rounds.

    Attributes
    ----------
    shared
        The shared part of the method.
    memory
        The aggregator's own tensors.
    """

    shared: Tensors
    memory: Tensors = field(default_factory=dict)


class _Message:
    shared: Tensors
    control: Tensors

    @property
    def size(self) -> int:
        """Size of the tensors in bytes."""
        return sum(tensor.nbytes for tensors in (self.shared, self.control) for tensor in tensors.values())


@plain_dataclass(frozen=True)
class Download(_Message):
    """The message from the server to a client.

    Attributes
    ----------
    shared
        Tensors for the method.
    control
        Tensors for the aggregator's part in local training.
    figures
        Other numbers, which training does not use.
    """

    shared: Tensors
    control: Tensors = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)


@plain_dataclass(frozen=True)
class Upload(_Message):
    """The message from a client to the server.

    Attributes
    ----------
    client
        Number of the client.
    examples
        Number of its training images.
    shared
        The trained shared part.
    control
        Tensors of the aggregator's part in local training.
    figures
        Other numbers, which were computed from the message on its way to the server.
    """

    client: int
    examples: int
    shared: Tensors
    control: Tensors = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Aggregator(ABC):
    """An aggregation rule: a frozen dataclass of hyperparameters, and pure functions.

    The hyperparameters are the aggregator's section of the config.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    controls: ClassVar[bool] = False
    """Whether local training must call `correct` and `finish`."""
    personal: ClassVar[bool] = False
    """Whether the server sends different messages to different clients."""
    robust: ClassVar[bool] = False
    """Whether the rule promises that some hostile clients cannot change its result much, see `survives`."""

    @property
    def answered(self) -> tuple[str, ...]:
        """Names of the figures that an upload must have."""
        return ()

    def begin(self, shared: Tensors, clients: int) -> Server:
        """Return the state of the server before the first round.

        Parameters
        ----------
        shared
            The initial shared part.
        clients
            Number of clients.
        """
        return Server(shared)

    def download(self, server: Server, client: int) -> Download:
        """Return the message to a client: before a round for training, and after it for prediction."""
        return Download(server.shared)

    @abstractmethod
    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        """Return the state of the server after a round, from its state before the round and the clients' uploads."""

    def without(self, refused: int) -> Aggregator:
        """Return the rule for a round in which the updates of `refused` faulty clients were already rejected."""
        return self

    def survives(self, clients: int) -> int:
        """Return how many hostile clients a robust rule survives among `clients` clients whose updates it combines."""
        return 0

    def remedy(self, clients: int) -> str:
        """Return what to do if a robust rule survives no hostile client among `clients`: an imperative."""
        raise NotImplementedError(f"{type(self).__name__} is not robust")

    def begin_client(self, shared: Tensors) -> Tensors:
        """Return the aggregator's tensors of a client before its first round. They stay on the client."""
        return {}

    def correct(self, name: str, gradient: Tensor, value: Tensor, download: Download, own: Tensors) -> Tensor:
        """Return the corrected gradient of a step. Only called if `controls` is true.

        Parameters
        ----------
        name
            Name of the shared parameter.
        gradient
            Its gradient.
        value
            Its value.
        download
            The message from the server.
        own
            The aggregator's tensors on this client.
        """
        raise NotImplementedError(f"{type(self).__name__} declares controls but does not define correct")

    def finish(self, download: Download, trained: Tensors, gradient: Tensors, own: Tensors) -> tuple[Tensors, Tensors]:
        """Return the aggregator's tensors on a client after its round, and the tensors to send.

        Only called if `controls` is true.

        Parameters
        ----------
        download
            The message from the server.
        trained
            The trained shared part.
        gradient
            The mean gradient over the steps of the round, before correction.
        own
            The aggregator's tensors on this client before the round.
        """
        raise NotImplementedError(f"{type(self).__name__} declares controls but does not define finish")

    def privacy_spent(self, rounds: int) -> dict[str, float]:
        """Return the privacy that a client has spent in `rounds` rounds, for the record of a round."""
        return {}


def zeros(tensors: Tensors, prefix: str = "") -> dict[str, Tensor]:
    """Return zeros of the same shapes, with a prefix before each name."""
    return {f"{prefix}{name}": torch.zeros_like(value) for name, value in tensors.items()}


def mean(tensors: Sequence[Tensors], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Return Σ (w_i / Σw) θ_i, by name. Without weights, all w_i are equal."""
    weights = weights or [1] * len(tensors)
    total = sum(weights)
    return {
        name: torch.stack([weight / total * own[name] for own, weight in zip(tensors, weights, strict=True)]).sum(0)
        for name in tensors[0]
    }


def change(server: Server, uploads: Sequence[Upload]) -> dict[str, Tensor]:
    """Return Δ = Σ (n_i / Σn) θ_i − θ, which server optimizers treat as the negative gradient."""
    averaged = mean([upload.shared for upload in uploads], [upload.examples for upload in uploads])
    return {name: averaged[name] - value for name, value in server.shared.items()}
