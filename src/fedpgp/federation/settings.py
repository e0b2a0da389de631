"""The sections [federation] and [privacy] of the config: rounds, local training and privacy."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedpgp.aggregators import AGGREGATORS
from fedpgp.methods.base import Beta, Optimizer, Period, Schedule
from fedpgp.runtime import limits
from fedpgp.runtime.validation import STRICT

DEFAULT_AGGREGATOR = "fedavg"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FederationConfig:
    """Rounds, participation and local training."""

    rounds: int = Field(default=25, ge=1, le=limits.ROUNDS, description="Number of rounds (paper, base-to-novel)")
    local_epochs: int = Field(
        default=2, ge=1, description="Epochs of a client's training in each round (paper, base-to-novel)"
    )
    participation: float = Field(
        default=1.0, gt=0, le=1, description="Share of the clients that take part in a round (paper, base-to-novel)"
    )
    participation_rounding: Literal["nearest", "down"] = Field(
        default="nearest",
        description='Rounding of participation * N to a number of clients, which is at least 1: "nearest", or "down"'
        " for int(), as in the authors' code, where int(0.29 * 100) is 28",
    )
    everyone_first: bool = Field(
        default=False, description="Let all clients take part in round 1 (authors' code: true)"
    )
    independent_private: bool = Field(
        default=False,
        description="Draw the initial private part separately for each client; false: the same for all (authors' code)",
    )
    aggregator: str = Field(
        default=DEFAULT_AGGREGATOR,
        description=f"Aggregator of the shared parts: {', '.join(AGGREGATORS)} (paper: fedavg)",
    )
    protection: bool = Field(
        default=False,
        description="Limit the change and the weight of each client by the medians of the round, against hostile"
        " clients; `fedpgp federate init` writes true (ours)",
    )
    examples: tuple[Annotated[int, Field(ge=1, le=10**8)], ...] = Field(
        default=(),
        strict=False,
        description="Numbers of training images that the operator knows, in the order of the clients; with protection,"
        " they are the weights instead of the numbers that the clients report",
    )
    join_epochs: int = Field(
        default=20, ge=1, description="Epochs in which a new client fits its private part, see task.new_clients"
    )
    batch_size: int = Field(
        default=8, ge=1, description="Images in a local step; the last step may have fewer (paper: equal to task.shots)"
    )
    optimizer: Optimizer = Field(
        default="sgd",
        description='Optimizer: "sgd", "adam" or "adamw"; a method\'s section can override this and the next ten keys',
    )
    momentum: float = Field(
        default=0.9, ge=0, lt=1, description="Momentum of sgd (default of Dassl, which the authors use)"
    )
    betas: tuple[Beta, Beta] = Field(
        default=(0.9, 0.999), strict=False, description="Betas of adam and adamw (PyTorch)"
    )
    eps: float = Field(default=1e-8, gt=0, le=1, description="Epsilon of adam and adamw (PyTorch)")
    weight_decay: float = Field(
        default=5e-4,
        ge=0,
        le=1e3,
        description="Weight decay, added to the gradient, or decoupled from it with adamw (default of Dassl, which the"
        " authors use)",
    )
    schedule: Schedule = Field(
        default="constant",
        description='Schedule of the learning rates: "constant" (FedPGP), "cosine" for a cosine towards 0, or "step"',
    )
    schedule_over: Period = Field(
        default="rounds",
        description='Period of the schedule: "rounds" for all rounds, or "epochs" or "steps" for the local epochs or'
        " steps of each round",
    )
    warmup: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Length of the warm-up before the schedule, in rounds, epochs or steps, as in schedule_over",
    )
    warmup_rate: float | None = Field(
        default=None,
        gt=0,
        le=1e3,
        description="Learning rate in the warm-up (CoOp: 1e-5); if unset, it rises linearly",
    )
    step_every: int = Field(
        default=10,
        ge=1,
        le=1_000_000,
        description='Number of rounds, epochs or steps after which schedule = "step" lowers the learning rate',
    )
    step_factor: float = Field(
        default=0.1, gt=0, le=1, description='Factor by which schedule = "step" lowers the learning rate (PyTorch)'
    )
    optimizer_state: Literal["reset", "keep"] = Field(
        default="reset",
        description='State of a client\'s optimizer, such as its momentum: "reset" in each round, or "keep" it between'
        " rounds",
    )
    engine: Literal["local", "simulation", "deployment"] = Field(
        default="local",
        description='Where the clients run: "local" for this process, "simulation" for Flower\'s simulation with Ray,'
        ' "deployment" for several machines (see fedpgp federate); the results are the same',
    )
    deadline: float = Field(
        default=600.0,
        gt=0,
        le=1e6,
        description="Seconds within which the clients must answer, with simulation and deployment",
    )
    largest_change: float = Field(
        default=1e4,
        gt=0,
        le=1e12,
        description="Largest L2 norm of an update's change of the shared part, with simulation and deployment;"
        " larger updates are dropped (ours)",
    )
    eval_every: int = Field(
        default=1, ge=1, description="Evaluate after every n-th round, and always after the last (authors' code: 1)"
    )
    path_points: int = Field(
        default=11,
        ge=1,
        le=1001,
        description="Number of models evaluated after the last round, from the shared model to the client's own model;"
        " 1: only the client's own model",
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PrivacyConfig:
    """Protection of the clients' updates, with Flower. docs/privacy.md explains against whom it protects."""

    differential_privacy: Literal["none", "central", "local"] = Field(
        default="none",
        description='Differential privacy of clients: "central" if the server adds noise to the mean, "local" if each'
        ' client adds noise to its update, or "none"',
    )
    clipped_by: Literal["server", "client"] = Field(
        default="server",
        description='Who clips the updates to clipping_norm, with central privacy; must be "client" with'
        " secure_aggregation",
    )
    clipping: Literal["fixed", "adaptive"] = Field(
        default="fixed",
        description='Clipping with central privacy: "fixed" to keep clipping_norm, or "adaptive" to follow a'
        " quantile of the updates' norms (Andrew et al.)",
    )
    clipping_norm: float = Field(
        default=0.5,
        gt=0,
        le=1e6,
        description="C, largest L2 norm of a client's change of the shared part, or its initial value with"
        " adaptive clipping (ours)",
    )
    noise_multiplier: float = Field(
        default=1.0,
        ge=0,
        le=1e6,
        description="z, standard deviation of the noise in the sum of the updates divided by C, with central privacy;"
        " with adaptive clipping, the sum has more noise, because C also reveals something",
    )
    delta: float = Field(default=1e-5, gt=0, lt=1, description="δ for which ε is computed")
    local_epsilon: float = Field(
        default=10.0,
        gt=0,
        le=1e6,
        description="ε of one round's update by the classic formula, which determines the noise, with local privacy;"
        " a run reports the exact ε",
    )
    target_quantile: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Quantile of the updates' norms that C follows with adaptive clipping (Andrew et al.)",
    )
    clipping_rate: float = Field(
        default=0.2, gt=0, le=100, description="Learning rate of C with adaptive clipping (Andrew et al.)"
    )
    count_noise: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Standard deviation of the noise in the number of clipped updates, with adaptive clipping;"
        " must be above noise_multiplier; if unset, a 20th of the clients in the round",
    )
    secure_aggregation: bool = Field(
        default=False, description="Use SecAgg+, with which the server only sees the sum of the updates"
    )
    shares: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the participants that hold a share of each key, with secure_aggregation",
    )
    threshold: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of the key shares that is necessary to compute the sum, with secure_aggregation",
    )
    value_range: float = Field(
        default=1.0,
        gt=0,
        le=1e4,
        description="Largest change of a component of an update, with secure_aggregation; it is clipped to this"
        " range and quantized",
    )
