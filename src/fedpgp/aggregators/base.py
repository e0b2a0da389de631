"""The contract of an aggregator: what the server keeps, sends and makes of what clients send.

It is chosen in the config beside the method, and works on any method's shared part. Where local training must know of
it, as with control variates, it also turns a client's gradient.
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
    """All that the server knows between two rounds. shared: the method's; memory: the aggregator's own."""

    shared: Tensors
    memory: Tensors = field(default_factory=dict)


class _Message:
    shared: Tensors
    control: Tensors

    @property
    def size(self) -> int:
        """Bytes of its numbers."""
        return sum(tensor.nbytes for tensors in (self.shared, self.control) for tensor in tensors.values())


@plain_dataclass(frozen=True)
class Download(_Message):
    """What a client is sent. shared: what the method receives; control: what the aggregator's client side does.

    figures: numbers beside, which training does not read.
    """

    shared: Tensors
    control: Tensors = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)


@plain_dataclass(frozen=True)
class Upload(_Message):
    """What a client sends: its number, how many examples it trained on, the trained shared part, the aggregator's.

    figures: numbers beside, which were made of it on its way.
    """

    client: int
    examples: int
    shared: Tensors
    control: Tensors = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Aggregator(ABC):
    """A frozen dataclass of hyperparameters, which are its section of the config, and pure functions."""

    name: ClassVar[str]
    source: ClassVar[str]
    controls: ClassVar[bool] = False
    """Local training must call `correct` and `finish`."""
    personal: ClassVar[bool] = False
    """What a client is sent depends on who it is."""

    @property
    def answered(self) -> tuple[str, ...]:
        """The names of the figures that must be in an upload."""
        return ()

    def begin(self, shared: Tensors, clients: int) -> Server:
        """The server before the first round of so many clients."""
        return Server(shared)

    def download(self, server: Server, client: int) -> Download:
        """What a client is sent at the beginning of a round, and predicts with after it."""
        return Download(server.shared)

    @abstractmethod
    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        """The server after a round."""

    def without(self, refused: int) -> Aggregator:
        """The rule of a round in which so many updates, of faulty clients, have been refused already."""
        return self

    def begin_client(self, shared: Tensors) -> Tensors:
        """The aggregator's own part of a client before its first round; it stays with the client."""
        return {}

    def correct(self, name: str, gradient: Tensor, value: Tensor, download: Download, own: Tensors) -> Tensor:
        """The gradient that a step follows. own: the client's part; name: of the shared parameter."""
        raise NotImplementedError(f"{type(self).__name__} declares controls and has no correct")

    def finish(self, download: Download, trained: Tensors, gradient: Tensors, own: Tensors) -> tuple[Tensors, Tensors]:
        """The client's part after its round, and what is sent of it. gradient: the mean over the round's steps."""
        raise NotImplementedError(f"{type(self).__name__} declares controls and has no finish")

    def privacy_spent(self, rounds: int) -> dict[str, float]:
        """What is to be recorded of privacy for a client that has taken part in so many rounds."""
        return {}


def zeros(tensors: Tensors, prefix: str = "") -> dict[str, Tensor]:
    """Zeros of the same shapes, by name behind a prefix."""
    return {f"{prefix}{name}": torch.zeros_like(value) for name, value in tensors.items()}


def mean(tensors: Sequence[Tensors], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Σ (w_i / Σw) θ_i by name; without weights all count alike."""
    weights = weights or [1] * len(tensors)
    total = sum(weights)
    return {
        name: torch.stack([weight / total * own[name] for own, weight in zip(tensors, weights, strict=True)]).sum(0)
        for name in tensors[0]
    }


def change(server: Server, uploads: Sequence[Upload]) -> dict[str, Tensor]:
    """Δ = Σ (n_i / Σn) θ_i − θ: what a server optimizer takes for the negative gradient."""
    averaged = mean([upload.shared for upload in uploads], [upload.examples for upload in uploads])
    return {name: averaged[name] - value for name, value in server.shared.items()}
