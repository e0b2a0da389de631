"""Protection of the shared part against hostile clients: limits of each client's change and weight in a round.

The limits are multiples of the round's medians, so they fit every method and learning rate. If fewer than half of the
clients are hostile, a median is at most the largest value of an honest client. The constants were chosen by
measurement, see docs/federation.md.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from fedpgp.aggregators import Aggregator, Tensors
from fedpgp.errors import ConfigError
from fedpgp.federation.client import ClientUpdate
from fedpgp.federation.run_spec import participant_count
from fedpgp.federation.settings import FederationConfig, PrivacyConfig

# A longer change is shortened to this multiple of the round's median norm. With 1.5, a hostile client of five that
# knows the limit costs up to a point of Novel, with 2 five to twelve points, and with 3 everything.
LARGEST = 1.0
# A change above this multiple of the median norm is refused: four times the largest ratio of an honest client (7).
IMPLAUSIBLE = 30.0
# A larger number of examples counts as this multiple of the round's median number. With more, a client of five that
# reports a large number would have more than a fifth of the weight.
HEAVIEST = 1.0
FEWEST = 3  # clients in a round; a hostile client among fewer is not a minority


class Protected(NamedTuple):
    """The updates of a round after protection.

    Attributes
    ----------
    updates
        The updates that count, with limited changes and weights.
    clipped
        Numbers of the clients whose change was shortened.
    refused
        By client, the reason why its update does not count.
    """

    updates: list[ClientUpdate]
    clipped: list[int]
    refused: dict[int, str]


def protect(
    updates: Sequence[ClientUpdate], received: Mapping[int, Tensors], examples: Sequence[int] = ()
) -> Protected:
    """Limit the changes and the weights of the clients in a round.

    The change of the shared part, over all of its tensors, has one norm; the aggregator's control tensors have another
    norm. Both have the same limits. A change within the limits keeps its bytes.

    Parameters
    ----------
    updates
        At least one update, ascending by client.
    received
        By client, the shared part that it received.
    examples
        By client, the number of examples that the operator knows. If empty, the reported numbers count, with a limit.
    """
    clipped: set[int] = set()
    refused: dict[int, str] = {}
    for part in ("shared", "control"):
        starts = received if part == "shared" else {}
        norms = {u.upload.client: _norm(getattr(u.upload, part), starts.get(u.upload.client, {})) for u in updates}
        median = _median([norm for norm in norms.values() if math.isfinite(norm)])
        kept = []
        for update in updates:
            client, norm = update.upload.client, norms[update.upload.client]
            if not norm <= IMPLAUSIBLE * median:  # also true for NaN
                refused[client] = (
                    f"the {part} part moved by {norm:.3g}, more than {IMPLAUSIBLE:g} times the median {median:.3g} of"
                    " the round (federation.protection)"
                )
                continue
            if norm > LARGEST * median:
                clipped.add(client)
                start = starts.get(client, {})
                shorter = _shortened(getattr(update.upload, part), start, LARGEST * median / norm)
                sent = update.upload
                sent = replace(sent, shared=shorter) if part == "shared" else replace(sent, control=shorter)
                update = replace(update, upload=sent)
            kept.append(update)
        updates = kept
    heaviest = int(HEAVIEST * _median([update.upload.examples for update in updates]))
    weighted = []
    for update in updates:
        known = examples[update.upload.client] if examples else min(update.upload.examples, heaviest)
        weighted.append(replace(update, upload=replace(update.upload, examples=known)))
    return Protected(weighted, sorted(clipped - refused.keys()), refused)


def _norm(tensors: Tensors, start: Tensors) -> float:
    """Return the L2 norm of tensors minus their start, or of the tensors if they have none, in float64."""
    squares = [(value.double() - start.get(name, 0)).square().sum() for name, value in sorted(tensors.items())]
    return math.sqrt(sum(float(square) for square in squares))


def _shortened(tensors: Tensors, start: Tensors, factor: float) -> dict[str, torch.Tensor]:
    """Return tensors whose distance to their start is `factor` times as long."""
    starts = {name: start.get(name, torch.zeros_like(value)).double() for name, value in tensors.items()}
    return {
        name: (starts[name] + factor * (value.double() - starts[name])).to(value.dtype)
        for name, value in tensors.items()
    }


def _median(values: Sequence[float]) -> float:
    """Return the median, the lower one of an even number of values, or 0 if there are none."""
    return sorted(values)[(len(values) - 1) // 2] if values else 0.0


def check_protection(settings: FederationConfig, privacy: PrivacyConfig, aggregator: Aggregator, clients: int) -> None:
    """Raise ConfigError if a setting against hostile clients cannot work.

    Parameters
    ----------
    settings
        The section [federation].
    privacy
        The section [privacy].
    aggregator
        The aggregator of the run.
    clients
        Number of clients of the run.
    """
    count = participant_count(clients, settings.participation, settings.participation_rounding)
    if aggregator.robust and not aggregator.survives(count):
        raise ConfigError(
            f"{aggregator.name} protects against no hostile client if {count} clients take part in a round",
            where="federation.aggregator",
            remedy=aggregator.remedy(count),
        )
    if settings.protection and (reason := conflict(privacy)):
        raise ConfigError(
            where="federation.protection",
            allowed=f"false with {reason}",
            got=settings.protection,
            remedy="Use --set federation.protection=false",
        )
    if settings.examples and not settings.protection:
        raise ConfigError(
            where="federation.examples",
            allowed="left out without federation.protection, which uses it",
            got=list(settings.examples),
            remedy="Use --set federation.protection=true",
        )
    if settings.examples and len(settings.examples) != clients:
        raise ConfigError(
            where="federation.examples",
            allowed=f"a list of {clients} numbers, one for each client",
            got=list(settings.examples),
            remedy="Write the number of training images of every client",
        )


def conflict(privacy: PrivacyConfig) -> str:
    """Return which setting of [privacy] excludes protection, and why; "" if none does."""
    if privacy.secure_aggregation:
        return "privacy.secure_aggregation, because the server does not see the change of a single client"
    if privacy.differential_privacy == "central":
        return (
            "privacy.differential_privacy = central, which bounds each change by privacy.clipping_norm, because limits"
            " that depend on other clients would make ε wrong"
        )
    return ""


def with_protection(settings: FederationConfig, privacy: PrivacyConfig) -> FederationConfig:
    """Return the settings of a federation of strangers: with protection, unless [privacy] excludes it."""
    return replace(settings, protection=not conflict(privacy))


def protection_notes(
    settings: FederationConfig, privacy: PrivacyConfig, aggregator: Aggregator, clients: int
) -> list[str]:
    """Return sentences about hostile clients that a user should read before a run. For the parameters, see above."""
    count = participant_count(clients, settings.participation, settings.participation_rounding)
    notes = []
    if aggregator.robust:
        notes.append(
            f"the aggregator {aggregator.name} survives {_clients(aggregator.survives(count))} among the {count}"
            " clients of a round"
        )
    if settings.protection:
        weights = "the numbers in federation.examples" if settings.examples else "its number of examples, at most"
        weights += "" if settings.examples else f" {HEAVIEST:g} times the median"
        notes.append(
            f"federation.protection shortens a client's change to {LARGEST:g} times the median norm of the round, and"
            f" refuses changes above {IMPLAUSIBLE:g} times the median; a client's weight is {weights}"
        )
        if count < FEWEST:
            notes.append(
                f"federation.protection protects against no hostile client, because only {count} of the clients take"
                f" part in a round; it needs at least {FEWEST}"
            )
    elif settings.engine == "deployment" and not aggregator.robust and privacy.differential_privacy != "central":
        why = f" (it cannot be on with {conflict(privacy)})" if conflict(privacy) else ""
        notes.append(f"federation.protection is off{why}, so a single hostile client can ruin the shared part")
    return notes


def _clients(count: int) -> str:
    return f"{count} hostile client{'s' * (count != 1)}"
