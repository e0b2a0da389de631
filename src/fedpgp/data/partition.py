"""Which client gets which classes, and which images of a class are its shots."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedpgp.data.sources import ImageDataset
from fedpgp.errors import DataError
from fedpgp.randomness import generator


def deal_classes(
    classes: Sequence[int], clients: int, per_client: int | None, seed: int
) -> tuple[tuple[int, ...], ...]:
    """Deals classes out to the clients at random and without overlap; each client's are ascending.

    per_client: None deals all classes, as evenly as they divide. Raises DataError if there are too few classes.
    """
    needed = clients * (per_client or 1)
    if needed > len(classes):
        raise DataError(
            f"task.clients must be at most {len(classes) // (per_client or 1)}, got {clients}: the task has"
            f" {len(classes)} classes to deal out, {per_client or 'at least 1'} to each client, without overlap"
        )
    order = torch.randperm(len(classes), generator=generator(seed, "partition")).tolist()
    dealt = [classes[i] for i in order][: needed if per_client else None]
    return tuple(tuple(sorted(dealt[client::clients])) for client in range(clients))


def deal_domains(domains: int, clients: int, seed: int) -> tuple[int, ...]:
    """The domain of each client: in turn, in an order that is drawn, so that the counts differ by at most one."""
    order = torch.randperm(domains, generator=generator(seed, "domains")).tolist()
    return tuple(order[client % domains] for client in range(clients))


def draw_shots(
    dataset: ImageDataset, label: int, shots: int, seed: int, domain: int | None = None
) -> NDArray[np.int64]:
    """The indices of `shots` training images of one class, drawn evenly over the domains or from one, ascending.

    The counts of two domains differ by at most one while both have images left. Raises DataError if the class has
    fewer images. The draw depends on the seed, the class and the domain alone.
    """
    rng = generator(seed, "shots", label, *(() if domain is None else (domain,)))
    images = dataset.of_classes([label])
    where = ""
    if domain is not None:
        images = images[dataset.domains[images] == domain]
        where = f" in domain {dataset.domain_names[domain]!r}"
    if shots > len(images):
        raise DataError(
            f"task.shots must be at most {len(images)}, got {shots}: class {dataset.class_names[label]!r} of"
            f" {dataset.name} has {len(images)} {dataset.split} images{where}"
        )
    shuffled = images[torch.randperm(len(images), generator=rng).numpy()]
    domain_rank = torch.randperm(len(dataset.domain_names), generator=rng).numpy()
    domains = dataset.domains[shuffled]
    turn = np.empty(len(shuffled), dtype=np.int64)  # how many of its domain come before an image
    for domain in np.unique(domains):
        here = np.flatnonzero(domains == domain)
        turn[here] = np.arange(len(here))
    return np.sort(shuffled[np.lexsort((domain_rank[domains], turn))[:shots]])
