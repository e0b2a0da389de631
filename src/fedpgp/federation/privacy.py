"""Differential privacy of clients through Flower's own strategies and mods, and what it costs.

Neighbours are two federations that differ in one client, whose changes of the shared part are zero in the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic.dataclasses import dataclass

from fedpgp.aggregators import Aggregator, Download, FedAvg, Server, Tensors, Upload
from fedpgp.errors import ConfigError
from fedpgp.federation.settings import FederationConfig, PrivacyConfig
from fedpgp.methods import Method
from fedpgp.runtime.validation import STRICT

if TYPE_CHECKING:
    from flwr.app import ArrayRecord
    from flwr.serverapp.strategy import Strategy

NORM, BIT = "clipping_norm", "norm_bit"  # Flower's names, of what a client is sent and of what it answers
NUDGE = 1e-18  # of one number of an update that changes nothing: Flower divides by the norm of a change


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Private(Aggregator):
    """The mean of clients' changes, each cut to a norm of at most C, with noise of z C / m for m clients.

    Flower plans with the number of clients that were asked; here m is how many were averaged, since the mean of fewer
    depends more on each. All clients have the same weight. Noise is NumPy's, from the operating system's entropy unless
    somebody seeds NumPy; the run's seed does not decide it.
    """

    name: ClassVar[str] = "differential-privacy"
    source: ClassVar[str] = "McMahan et al. 2018, arXiv 1710.06963; Andrew et al. 2021, arXiv 1905.03871; Flower"

    privacy: PrivacyConfig

    @property
    def answered(self) -> tuple[str, ...]:
        there = self.privacy.differential_privacy == "central" and self.privacy.clipped_by == "client"
        return (BIT,) if there and self.privacy.clipping == "adaptive" else ()

    def begin(self, shared: Tensors, clients: int) -> Server:
        return Server(shared, {NORM: torch.tensor(self.privacy.clipping_norm, dtype=torch.float64)})

    def download(self, server: Server, client: int) -> Download:
        clipped_there = self.privacy.differential_privacy == "central" and self.privacy.clipped_by == "client"
        return Download(server.shared, figures={NORM: float(server.memory[NORM])} if clipped_there else {})

    def aggregate(self, server: Server, uploads: Sequence[Upload]) -> Server:
        if self.privacy.differential_privacy == "local":
            return FedAvg().aggregate(server, [Upload(one.client, 1, one.shared) for one in uploads])
        strategy = _strategy(self.privacy, len(uploads), float(server.memory[NORM]))
        names = sorted(server.shared)
        list(strategy.configure_train(1, _arrays(names, server.shared), _config(), None))  # type: ignore[arg-type]
        replies = [_reply(names, server.shared, upload) for upload in uploads]
        found, _ = strategy.aggregate_train(1, replies)
        assert found is not None, "no reply is an error"
        shared = {name: torch.from_numpy(found[name].numpy().copy()).to(server.shared[name]) for name in names}
        norm = getattr(strategy, NORM)
        return Server(shared, {NORM: torch.tensor(float(norm), dtype=torch.float64)})

    def privacy_spent(self, rounds: int) -> dict[str, float]:
        """ε at δ of a client that has taken part in so many rounds, see `epsilon`; nothing where it is infinite."""
        found = epsilon(self.privacy, rounds)
        return {"epsilon": found, "delta": self.privacy.delta} if math.isfinite(found) else {}


def epsilon(privacy: PrivacyConfig, rounds: int) -> float:
    """ε at δ of a client that takes part in so many rounds: Gaussian mechanisms, composed exactly.

    Who takes part is drawn from the run's seed, which all know: that a client may have been left out protects nobody,
    and is not counted. Local: two updates of norm C are 2 C apart, and Flower's noise for ε₀ a round is
    2 C √(2 ln(1.25/δ)) / ε₀. Raises ConfigError where dp-accounting is missing.
    """
    if not rounds:
        return 0.0
    multiplier = privacy.noise_multiplier
    if privacy.differential_privacy == "local":
        multiplier = math.sqrt(2 * math.log(1.25 / privacy.delta)) / privacy.local_epsilon
    if not multiplier:
        return math.inf
    try:
        from dp_accounting import get_epsilon_gaussian
    except ImportError as error:
        raise ConfigError(
            '[privacy] counts ε with dp-accounting, which is missing: pip install "fedpgp[flower]"'
        ) from error
    return float(get_epsilon_gaussian(multiplier / math.sqrt(rounds), privacy.delta))


def assumptions(
    privacy: PrivacyConfig, settings: FederationConfig, method: Method, clients: int, rounds: int
) -> list[str]:
    """What a person should know before a run. rounds: of the client that takes part most often."""
    of_method = method.assumptions(rounds * settings.local_epochs + method.finetune_epochs)
    if privacy.differential_privacy == "none":
        return of_method
    where = {
        "local": "each client adds noise itself: it holds against the server, too",
        "central": "the server adds noise: it holds against those who see the prompts, not against the server",
    }
    return [
        *of_method,
        f"differential privacy of a client: ε = {epsilon(privacy, rounds):.3g} at δ = {privacy.delta:g} after"
        f" {rounds} rounds, of {clients} clients",
        where[privacy.differential_privacy],
        "two federations are neighbours where one client's changes of the shared part are zero in the other",
        "who takes part is drawn from a seed that all know: sampling adds nothing, and each client is counted for the"
        " rounds that it is in",
        "all clients have the same weight, whatever they have of examples",
        "losses, accuracies and numbers of examples are not protected",
    ]


def check_privacy(privacy: PrivacyConfig, engine: str, method: str, aggregator: Aggregator, own: bool) -> None:
    """Raises ConfigError where [privacy] does not go with the rest. own: the method has an aggregator of its own."""
    differs, secure = privacy.differential_privacy, privacy.secure_aggregation
    if differs == "none" and not secure:
        return
    what = "differential_privacy" if differs != "none" else "secure_aggregation"
    if engine == "local":
        raise ConfigError(f"privacy.{what} needs Flower: take federation.engine=simulation, or deployment, got local")
    if own or aggregator != FedAvg():
        name = f"{method}, whose server is its own" if own else f"federation.aggregator={aggregator.name}"
        why = "averages, and no more" if differs != "none" else "hides single updates, and shows their sum alone"
        raise ConfigError(
            f"privacy.{what} does not go with {name}: it {why}. Take fedavg, or leave {what} out where a server must"
            " see each update, as robust aggregation and a prompt for each client do"
        )
    if secure and differs == "central" and privacy.clipped_by == "server":
        raise ConfigError(
            "privacy.clipped_by must be client with secure_aggregation, whose server sees no single update, got server"
        )
    if secure and privacy.clipping == "adaptive" and differs != "none":
        raise ConfigError(
            "privacy.clipping must be fixed with secure_aggregation: adaptive clipping shows each client's norm"
        )
    if differs == "local" and privacy.clipping == "adaptive":
        raise ConfigError("privacy.clipping must be fixed where differential_privacy is local, got adaptive")


def _strategy(privacy: PrivacyConfig, clients: int, norm: float) -> Strategy:
    """Flower's, around a mean in which all weigh the same."""
    from flwr.serverapp import strategy as flower

    inner = _mean()
    if privacy.clipping == "fixed":
        fixed = {
            "server": flower.DifferentialPrivacyServerSideFixedClipping,
            "client": flower.DifferentialPrivacyClientSideFixedClipping,
        }
        return fixed[privacy.clipped_by](inner, privacy.noise_multiplier, norm, clients)
    adaptive = {
        "server": flower.DifferentialPrivacyServerSideAdaptiveClipping,
        "client": flower.DifferentialPrivacyClientSideAdaptiveClipping,
    }[privacy.clipped_by]

    class OfThisRound(adaptive):  # type: ignore[misc,valid-type]
        """Flower's noise is for the norm of the next round, which may be smaller than that of the updates."""

        clipping_norm: float

        def _add_noise_to_aggregated_arrays(self, aggregated: ArrayRecord) -> ArrayRecord:
            following: float = self.clipping_norm
            self.clipping_norm = norm
            noised = super()._add_noise_to_aggregated_arrays(aggregated)
            self.clipping_norm = following
            return noised

    return OfThisRound(
        inner,
        privacy.noise_multiplier,
        clients,
        norm,
        privacy.target_quantile,
        privacy.clipping_rate,
        privacy.count_noise,
    )


def _mean() -> Strategy:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Strategy

    class Mean(Strategy):
        def configure_train(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            return []

        def aggregate_train(
            self, server_round: int, replies: Iterable[Message]
        ) -> tuple[ArrayRecord | None, MetricRecord | None]:
            every = [next(iter(reply.content.array_records.values())) for reply in replies]
            mean = {name: np.mean([record[name].numpy() for record in every], axis=0) for name in every[0]}
            like = {name: array.numpy().dtype for name, array in every[0].items()}
            return ArrayRecord({name: Array(value.astype(like[name])) for name, value in mean.items()}), None

        def configure_evaluate(
            self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
        ) -> Iterable[Message]:
            return []

        def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
            return None

        def summary(self) -> None:
            return None

    return Mean()


def _reply(names: Sequence[str], received: Tensors, upload: Upload) -> Any:
    from flwr.app import Message, MetricRecord, RecordDict

    shared = {name: upload.shared[name] for name in names}
    if all(torch.equal(value, received[name]) for name, value in shared.items()):
        first = shared[names[0]].double().clone()
        first.view(-1)[0] += max(NUDGE, 1e-6 * abs(float(first.view(-1)[0])))
        shared[names[0]] = first.to(shared[names[0]])
    figures = {BIT: int(upload.figures.get(BIT, 0))}
    content = RecordDict({"arrays": _arrays(names, shared), "metrics": MetricRecord({**figures})})
    return Message(content, dst_node_id=1 + upload.client, message_type="train")


def _arrays(names: Sequence[str], shared: Tensors) -> ArrayRecord:
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({name: Array(shared[name].detach().cpu().numpy()) for name in names})


def _config() -> Any:
    from flwr.app import ConfigRecord

    return ConfigRecord()


def protected(privacy: PrivacyConfig, aggregator: Aggregator) -> Aggregator:
    """The aggregator of a run: that of the config, or the private mean."""
    return aggregator if privacy.differential_privacy == "none" else Private(privacy=privacy)
