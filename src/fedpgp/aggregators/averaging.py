"""The average of the clients, and server optimizers that treat its change as a negative gradient."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from fedpgp.aggregators.base import Aggregator, Server, Tensors, Upload, change, mean, zeros
from fedpgp.runtime.validation import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedAvg(Aggregator):
    """The average of the participants, θ ← Σ (n_i / Σn) θ_i (McMahan et al. 2017, algorithm 1)."""

    name = "fedavg"
    source = "McMahan et al. 2017, AISTATS, arXiv 1602.05629, algorithm 1"

    weighting: Literal["examples", "uniform"] = Field(
        default="examples",
        description='Weights of the clients: "examples" for their numbers of training images, or "uniform"',
    )

    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        weights = [upload.examples if self.weighting == "examples" else 1 for upload in uploads]
        return Server(mean([upload.shared for upload in uploads], weights))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedAvgM(Aggregator):
    """Server momentum: v ← β v + Δ, θ ← θ + η v, with Δ the clients' mean change (Hsu et al. 2019, section 4.3)."""

    name = "fedavgm"
    source = "Hsu et al. 2019, arXiv 1909.06335"

    server_learning_rate: float = Field(default=1.0, gt=0, le=1e3, description="η, learning rate of the server (paper)")
    server_momentum: float = Field(default=0.9, ge=0, lt=1, description="β, momentum of the server (paper, figure 7)")

    def begin(self, shared: Tensors, clients: int) -> Server:
        return Server(shared, zeros(shared))

    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        delta = change(server, uploads)
        velocity = {name: self.server_momentum * v + delta[name] for name, v in server.memory.items()}
        shared = {name: value + self.server_learning_rate * velocity[name] for name, value in server.shared.items()}
        return Server(shared, velocity)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Adaptive(Aggregator, ABC):
    """Base class: m ← β1 m + (1 − β1) Δ, θ ← θ + η m / (√v + τ), with v computed from its last value and Δ².

    v starts from τ². There is no bias correction.
    """

    source = "Reddi et al. 2021, ICLR, arXiv 2003.00295, algorithm 2"

    server_learning_rate: float = Field(
        default=0.01, gt=0, le=1e3, description="η, learning rate of the server (10^-2, within the paper's grid)"
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="β1, decay of the mean of the change (paper, section 5)")
    beta2: float = Field(
        default=0.99, ge=0, lt=1, description="β2, decay of the mean of the squared change (paper, section 5)"
    )
    tau: float = Field(default=1e-3, gt=0, le=1e3, description="τ, degree of adaptivity (paper, section 5)")

    @abstractmethod
    def second(self, v: Tensor, square: Tensor) -> Tensor:
        """Return the next v. square: Δ²."""

    def begin(self, shared: Tensors, clients: int) -> Server:
        second = {f"v/{name}": torch.full_like(value, self.tau**2) for name, value in shared.items()}
        return Server(shared, {**zeros(shared, "m/"), **second})

    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        shared, memory = {}, {}
        for name, delta in change(server, uploads).items():
            m = memory[f"m/{name}"] = self.beta1 * server.memory[f"m/{name}"] + (1 - self.beta1) * delta
            v = memory[f"v/{name}"] = self.second(server.memory[f"v/{name}"], delta.square())
            shared[name] = server.shared[name] + self.server_learning_rate * m / (v.sqrt() + self.tau)
        return Server(shared, memory)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedAdam(_Adaptive):
    """Adam on the server: v ← β2 v + (1 − β2) Δ² (Reddi et al. 2021)."""

    name = "fedadam"

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return self.beta2 * v + (1 - self.beta2) * square


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedYogi(_Adaptive):
    """Yogi on the server: v ← v − (1 − β2) Δ² sign(v − Δ²) (Reddi et al. 2021)."""

    name = "fedyogi"

    def second(self, v: Tensor, square: Tensor) -> Tensor:
        return v - (1 - self.beta2) * square * torch.sign(v - square)
