"""Differential privacy of clients at the server, and the privacy that they spend.

`fedpgp.flower.client_app.mods` has the steps that a client does.

Neighbours, for every mechanism here: two federations have the same clients in the same rounds, but the changes of the
shared part of one client are zero in one of them. This changes the sum of a round's clipped changes by at most C, and
the number of clipped changes by at most 1, because a change of zero is not clipped. With local privacy, ε also holds
for any two updates of the client, whose distance is at most 2 C.
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

NORM, BIT = "clipping_norm", "norm_bit"  # Flower's names of a number sent to a client, and of a number in its answer


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Private(Aggregator):
    """The noisy mean of the clients' changes, each clipped to a norm of at most C.

    The standard deviation of the noise is z C / m for m clients. All clients have the same weight. Changes that the
    clients clipped are clipped again, so that neither rounding nor a hostile client makes a change longer than C.

    With adaptive clipping, C becomes C exp(−η (b − γ)) after a round, where b is the noisy share of the changes that
    were not clipped, γ the target quantile and η the clipping rate. The mean has more noise than z C / m then, so that
    mean and share together cost as much privacy as the mean costs without adaptive clipping; see `_multiplier`.

    The noise comes from NumPy and is seeded by the operating system, unless a program seeds NumPy. It does not depend
    on the run's seed.
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
            norm = math.sqrt(sum(float(value.square().sum()) for value in change.values()))
            scale = bound / norm if norm > bound else 1.0
            cut += norm > bound if self.privacy.clipped_by == "server" else upload.figures.get(BIT, 0)
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
        """Return ε and δ of a client that has taken part in `rounds` rounds, or nothing if ε is infinite."""
        spent = epsilon(self.privacy, rounds)
        return {"epsilon": spent, "delta": self.privacy.delta} if math.isfinite(spent) else {}


def _multiplier(wanted: float, count_noise: float) -> float:
    """Return the noise multiplier of the mean that costs, together with the noisy count, as much as `wanted`.

    The sum of the changes and the number of clipped changes are one Gaussian mechanism. A client changes the sum by C
    and the number by 1, so the multipliers z_Δ of the sum and σ_b of the number give 1/z² = 1/z_Δ² + 1/σ_b². Andrew et
    al. have (2 σ_b)² here, because a missing client counts there as half a clipped change; here, a client without
    changes counts as not clipped.

    Raises
    ------
    TooFewError
        The noise of the count is too small for any multiplier.
    """
    if not wanted:
        return 0.0
    if wanted >= count_noise:
        raise TooFewError(
            where="privacy.count_noise",
            allowed=f"above {wanted:g} for adaptive clipping with privacy.noise_multiplier = {wanted:g}",
            got=count_noise,
            remedy=f"Use --set privacy.count_noise={2 * wanted:g}, or leave it unset and use more than {20 * wanted:g}"
            " clients in a round",
        )
    return float((wanted**-2 - count_noise**-2) ** -0.5)


def longest_change(download: Download) -> float:
    """Return the upper bound of the norm of a change that the client had to clip, or infinity if the server clips.

    It exceeds the C that the client received by a thousandth of C, and by the rounding of the shared part in its type.
    """
    rounding = sum(torch.finfo(value.dtype).eps * float(value.double().norm()) for value in download.shared.values())
    return 1.001 * download.figures.get(NORM, math.inf) + rounding


def epsilon(privacy: PrivacyConfig, rounds: int) -> float:
    """Return ε for δ of a client that takes part in `rounds` rounds. Gaussian mechanisms are composed exactly.

    The docstring of this module says which federations are neighbours. The participants of a round are drawn from the
    run's seed, which all participants know. Therefore the draw does not protect a client, and ε is not reduced for it.
    With adaptive clipping, ε includes the noisy number of clipped changes. With local privacy, the distance of two
    updates of norm C is up to 2 C, and the noise for ε₀ in a round has the standard deviation
    2 C √(2 ln(1.25/δ)) / ε₀.

    Raises
    ------
    ConfigError
        The package dp-accounting is not installed.
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
            "the package dp-accounting, which computes ε, is not installed",
            where="[privacy]",
            remedy='Install it with `pip install "fedpgp[flower]"`',
        ) from error
    return float(get_epsilon_gaussian(multiplier / math.sqrt(rounds), privacy.delta))


def assumptions(
    privacy: PrivacyConfig, settings: FederationConfig, method: Method, clients: int, rounds: int
) -> list[str]:
    """Return sentences that a user should read before a run.

    Parameters
    ----------
    privacy
        The section [privacy].
    settings
        The section [federation].
    method
        The method.
    clients
        Number of clients.
    rounds
        Number of rounds of the client that takes part most often.
    """
    first = [*method.assumptions(rounds * settings.local_epochs + method.finetune_epochs)]
    if privacy.secure_aggregation:
        within = f"each component within ± {privacy.value_range:g} (privacy.value_range)"
        if privacy.differential_privacy == "central":
            within = f"a norm of at most {privacy.clipping_norm:g} (privacy.clipping_norm)"
        first.append(
            "with secure aggregation, the server cannot check any single update: one hostile client can replace the"
            f" mean change of a round by any other with {within}"
        )
    if privacy.differential_privacy == "none":
        return first
    where = {
        "local": "each client adds noise itself, so its update is also protected from the server",
        "central": "the server adds the noise, so updates are protected from others who see the prompts, but not from"
        " the server",
    }
    return [
        *first,
        f"differential privacy of a client: ε = {epsilon(privacy, rounds):.3g} at δ = {privacy.delta:g} after"
        f" {rounds} rounds, with {clients} clients",
        where[privacy.differential_privacy],
        "two federations are neighbours if one client's changes of the shared part are zero in one of them"
        + (", or any other changes" if privacy.differential_privacy == "local" else ""),
        "the participants of a round are drawn from a seed that all participants know, so sampling does not improve ε,"
        " and ε counts every round in which a client takes part",
        "all clients have the same weight, whatever their number of images",
        "losses, accuracies and numbers of images are not protected",
    ]


def check_privacy(privacy: PrivacyConfig, engine: str, method: str, aggregator: Aggregator, own: bool) -> None:
    """Raise ConfigError if [privacy] cannot be combined with the other settings of a run.

    Parameters
    ----------
    privacy
        The section [privacy].
    engine
        The value of federation.engine.
    method
        Name of the method.
    aggregator
        The aggregator in the config.
    own
        Whether the method has its own aggregator.
    """
    kind, secure = privacy.differential_privacy, privacy.secure_aggregation
    if kind == "none" and not secure:
        return
    key, off = ("differential_privacy", "none") if kind != "none" else ("secure_aggregation", "false")
    without = f"--set privacy.{key}={off}"
    if engine == "local":
        raise ConfigError(
            where="federation.engine",
            allowed=f"simulation or deployment with privacy.{key}",
            got=engine,
            remedy=f"Use --set federation.engine=simulation, or {without}",
        )
    if own or aggregator != FedAvg():
        name = f"the method {method}, which has its own aggregator" if own else f"the aggregator {aggregator.name}"
        reason = "only computes a mean" if kind != "none" else "hides single updates, which the aggregator needs"
        instead = "Use a method without its own aggregator" if own else "Use the aggregator fedavg with its defaults"
        raise ConfigError(
            f"it cannot be combined with {name}, because it {reason}",
            where=f"privacy.{key}",
            got=method if own else aggregator.name,
            remedy=f"{instead}, or {without}",
        )
    if secure and kind == "central" and privacy.clipped_by == "server":
        raise ConfigError(
            where="privacy.clipped_by",
            allowed="client with privacy.secure_aggregation, because the server does not see single updates",
            got=privacy.clipped_by,
            remedy="Use --set privacy.clipped_by=client",
        )
    if privacy.clipping == "adaptive" and (kind == "local" or (secure and kind != "none")):
        with_secure = "with privacy.secure_aggregation, because adaptive clipping reveals each client's norm"
        raise ConfigError(
            where="privacy.clipping",
            allowed=f"fixed {with_secure if secure else 'with privacy.differential_privacy = local'}",
            got=privacy.clipping,
            remedy="Use --set privacy.clipping=fixed",
        )


def protected(privacy: PrivacyConfig, aggregator: Aggregator) -> Aggregator:
    """Return the aggregator of a run: `aggregator`, or the noisy mean with differential privacy."""
    return aggregator if privacy.differential_privacy == "none" else Private(privacy=privacy)
