"""Averages, plain and with the server's momentum."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from fedpgp.aggregators.base import Aggregator, Server, Tensors, Upload, change, examples, mean
from fedpgp.runtime.validation import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedAvg(Aggregator):
    """θ ← Σ (n_i / Σn) θ_i over the clients that took part (McMahan et al. 2017, algorithm 1)."""

    name: ClassVar[str] = "fedavg"
    source: ClassVar[str] = "McMahan et al. 2017, AISTATS, arXiv 1602.05629, algorithm 1"

    weighting: Literal["examples", "uniform"] = Field(
        default="examples", description='"examples": by the number of training images; "uniform": all alike'
    )

    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        weights = examples(uploads) if self.weighting == "examples" else [1] * len(uploads)
        return Server(mean(uploads, weights))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedAvgM(Aggregator):
    """v ← β v + Δ, θ ← θ + η v, with Δ the mean change of the clients (Hsu et al. 2019, section 4.3)."""

    name: ClassVar[str] = "fedavgm"
    source: ClassVar[str] = "Hsu et al. 2019, arXiv 1909.06335"

    server_learning_rate: float = Field(default=1.0, gt=0, le=1e3, description="η (paper)")
    server_momentum: float = Field(default=0.9, ge=0, lt=1, description="β (paper, figure 7)")

    def begin(self, shared: Tensors, clients: int) -> Server:
        return Server(shared, {name: torch.zeros_like(value) for name, value in shared.items()})

    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        delta = change(server, uploads)
        velocity = {name: self.server_momentum * v + delta[name] for name, v in server.memory.items()}
        shared = {name: value + self.server_learning_rate * velocity[name] for name, value in server.shared.items()}
        return Server(shared, velocity)
