"""Differential privacy of clients at the server, and what it costs; what a client does itself is `fedpgp.flower.mods`.

Neighbours are two federations that differ in one client, whose changes of the shared part are zero in the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from pydantic.dataclasses import dataclass

from fedpgp.aggregators import Aggregator, Download, FedAvg, Server, Tensors, Upload
from fedpgp.errors import ConfigError, TooFewError
from fedpgp.federation.settings import FederationConfig, PrivacyConfig
from fedpgp.methods import Method
from fedpgp.runtime.validation import STRICT

NORM, BIT = "clipping_norm", "norm_bit"  # Flower's names, of what a client is sent and of what it answers


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Private(Aggregator):
    """The mean of clients' changes, each cut to a norm of at most C, with noise of z C / m for m averaged clients.

    All clients have the same weight. Adaptive: after a round C becomes C exp(−η (b − γ)), where b is the noisy share of
    the changes that were not cut, γ the target quantile and η the clipping rate. Noise is NumPy's, from the operating
    system's entropy unless somebody seeds NumPy; the run's seed does not decide it.
    """

    name: ClassVar[str] = "differential-privacy"
    source: ClassVar[str] = "McMahan et al. 2018, arXiv 1710.06963; Andrew et al. 2021, arXiv 1905.03871"

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
            return FedAvg().aggregate(server, [Upload(upload.client, 1, upload.shared) for upload in uploads])
        bound, clients = float(server.memory[NORM]), len(uploads)
        total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in server.shared.items()}
        cut = 0.0
        for upload in uploads:
            change = {name: upload.shared[name].double() - value.double() for name, value in server.shared.items()}
            scale = 1.0
            if self.privacy.clipped_by == "server":
                norm = math.sqrt(sum(float(value.square().sum()) for value in change.values()))
                scale = bound / norm if norm > bound else 1.0
                cut += norm > bound
            else:
                cut += upload.figures.get(BIT, 0)
            for name, value in change.items():
                total[name] += scale * value
        multiplier, following = self.privacy.noise_multiplier, bound
        if self.privacy.clipping == "adaptive":
            deviation = self.privacy.count_noise or clients / 20
            multiplier = _multiplier(multiplier, deviation)
            within = 1 - np.random.normal(cut, deviation if multiplier else 0.0) / clients
            following = bound * math.exp(-self.privacy.clipping_rate * (within - self.privacy.target_quantile))
        shared = {}
        for name, value in sorted(server.shared.items()):
            noise = torch.from_numpy(np.random.normal(0, multiplier * bound / clients, value.shape))
            shared[name] = (value.double() + total[name] / clients + noise.to(value.device)).to(value)
        return Server(shared, {NORM: torch.tensor(following, dtype=torch.float64)})

    def privacy_spent(self, rounds: int) -> dict[str, float]:
        """ε at δ of a client that has taken part in so many rounds, see `epsilon`; nothing where it is infinite."""
        spent = epsilon(self.privacy, rounds)
        return {"epsilon": spent, "delta": self.privacy.delta} if math.isfinite(spent) else {}


def _multiplier(wanted: float, count_noise: float) -> float:
    """The noise multiplier of the mean that, with the noise of the count of cut updates, is `wanted` (Andrew et al.).

    Raises TooFewError where the noise of the count alone shows too much.
    """
    if not wanted:
        return 0.0
    if wanted >= 2 * count_noise:
        raise TooFewError(
            f"privacy.count_noise must be above {wanted / 2:g} for a noise_multiplier of {wanted:g} with adaptive"
            f" clipping, got {count_noise:g} (unset it is a 20th of the clients in the round): set it higher, or take"
            " more clients"
        )
    return float((wanted**-2 - (2 * count_noise) ** -2) ** -0.5)


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


def protected(privacy: PrivacyConfig, aggregator: Aggregator) -> Aggregator:
    """The aggregator of a run: that of the config, or the private mean."""
    return aggregator if privacy.differential_privacy == "none" else Private(privacy=privacy)
