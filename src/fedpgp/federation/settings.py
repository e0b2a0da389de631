"""The sections of the config on rounds, local training and privacy."""

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedpgp.aggregators import AGGREGATORS
from fedpgp.methods.base import Beta, Optimizer, Period, Schedule
from fedpgp.runtime.validation import STRICT

DEFAULT_AGGREGATOR = "fedavg"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FederationConfig:
    """Rounds, participation and local training."""

    rounds: int = Field(default=25, ge=1, description="(paper, base-to-novel)")
    local_epochs: int = Field(default=2, ge=1, description="(paper, base-to-novel)")
    participation: float = Field(
        default=1.0, gt=0, le=1, description="share of the clients in a round (paper, base-to-novel)"
    )
    participation_rounding: Literal["nearest", "down"] = Field(
        default="nearest",
        description='how participation * N becomes a number of clients, at least 1: "nearest", or "down", which is'
        " int() as in the authors' code: int(0.29 * 100) is 28",
    )
    everyone_first: bool = Field(default=False, description="all clients take part in round 1 (authors' code: true)")
    independent_private: bool = Field(
        default=False, description="a first U, V of its own for each client (authors' code: false)"
    )
    aggregator: str = Field(
        default=DEFAULT_AGGREGATOR, description=f"of the shared parts: {', '.join(AGGREGATORS)} (paper: fedavg)"
    )
    join_epochs: int = Field(
        default=20, ge=1, description="in which a new client fits its private part, see task.new_clients"
    )
    batch_size: int = Field(
        default=8, ge=1, description="images in a local step; the last may have fewer (paper: = shots)"
    )
    optimizer: Optimizer = Field(
        default="sgd", description='"sgd", "adam" or "adamw"; this and the next ten can also be set for one method'
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of sgd (default of Dassl, which the authors use)")
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), strict=False, description="of adam and adamw (PyTorch)")
    eps: float = Field(default=1e-8, gt=0, le=1, description="of adam and adamw (PyTorch)")
    weight_decay: float = Field(
        default=5e-4,
        ge=0,
        le=1e3,
        description="added to the gradient, but with adamw apart from it (default of Dassl, which the authors use)",
    )
    schedule: Schedule = Field(
        default="constant", description='"constant" (FedPGP), "cosine" towards 0, or "step": of the learning rates'
    )
    schedule_over: Period = Field(
        default="rounds",
        description="the schedule goes once over all rounds, or over the local epochs or steps of each round",
    )
    warmup: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="length of the warm-up before the schedule, in rounds, epochs or steps",
    )
    warmup_rate: float | None = Field(
        default=None, gt=0, le=1e3, description="learning rate in the warm-up (CoOp: 1e-5); unset: rises linearly"
    )
    step_every: int = Field(
        default=10, ge=1, le=1_000_000, description="step: after so many rounds, epochs or steps the rate falls"
    )
    step_factor: float = Field(default=0.1, gt=0, le=1, description="step: to this share of itself (PyTorch)")
    optimizer_state: Literal["reset", "keep"] = Field(
        default="reset",
        description='momentum and the like: new in each round, or "keep": a client goes on with its own',
    )
    engine: Literal["local", "simulation", "deployment"] = Field(
        default="local",
        description="this process; Flower's simulation, on Ray; or machines, see fedpgp federate. Figures are the same",
    )
    deadline: float = Field(
        default=600.0, gt=0, le=1e6, description="simulation, deployment: seconds in which clients must have answered"
    )
    largest_change: float = Field(
        default=1e4,
        gt=0,
        le=1e12,
        description="simulation, deployment: updates that change the shared part by more (L2 norm) are dropped (ours)",
    )
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="deployment: of the server's loopback address, where Prometheus reads the last round; unset: none",
    )
    eval_every: int = Field(
        default=1, ge=1, description="evaluate after every n-th round; the last always (authors' code: 1)"
    )
    path_points: int = Field(
        default=11,
        ge=1,
        le=1001,
        description="models from the shared part alone to a client's own that are evaluated in the end; 1: that alone",
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PrivacyConfig:
    """What is hidden of a client's update, through Flower: docs/privacy.md says from whom."""

    differential_privacy: Literal["none", "central", "local"] = Field(
        default="none", description="noise that the server adds to the mean, or each client to its update; of clients"
    )
    clipped_by: Literal["server", "client"] = Field(
        default="server", description="central: who cuts updates to the norm; with secure_aggregation the client"
    )
    clipping: Literal["fixed", "adaptive"] = Field(
        default="fixed", description="central: adaptive follows a quantile of the norms (Andrew et al.)"
    )
    clipping_norm: float = Field(
        default=0.5, gt=0, le=1e6, description="C, largest L2 norm of a client's change; adaptive: the first (ours)"
    )
    noise_multiplier: float = Field(
        default=1.0, ge=0, le=1e6, description="central: z, standard deviation of the noise of the sum over C"
    )
    delta: float = Field(default=1e-5, gt=0, lt=1, description="δ at which ε is counted")
    local_epsilon: float = Field(
        default=10.0, gt=0, le=1e6, description="local: ε of the update of one round, from which the noise follows"
    )
    target_quantile: float = Field(default=0.5, ge=0, le=1, description="adaptive: of the norms (Andrew et al.)")
    clipping_rate: float = Field(default=0.2, gt=0, le=100, description="adaptive: learning rate (Andrew et al.)")
    count_noise: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="adaptive: standard deviation of the noise of how many were cut; unset: clients / 20",
    )
    secure_aggregation: bool = Field(default=False, description="SecAgg+: the server sees the sum of updates alone")
    shares: float = Field(
        default=1.0, gt=0, le=1, description="secure_aggregation: of the participants that hold a share of each key"
    )
    threshold: float = Field(
        default=0.5, gt=0, le=1, description="secure_aggregation: of the shares without which nothing can be summed"
    )
    value_range: float = Field(
        default=1.0, gt=0, le=1e4, description="secure_aggregation: a number's change is cut to ± this, and quantised"
    )
