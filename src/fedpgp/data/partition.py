"""Who gets which classes and which training images.

Letters: n images, N clients, C classes.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from fedpgp.data.sources import ImageDataset
from fedpgp.errors import DataError
from fedpgp.runtime.randomness import generator

AUTHORS_SEED = 2023  # of their division of the classes, whatever the seed of the run


def _too_many_clients(most: int, got: int, why: str) -> DataError:
    return DataError(
        f"task.clients must be at most {most}, got {got}: {why} (task.new_clients count, too, and each domain by"
        f" itself); --set task.clients={most}"
    )


def _check_classes_per_client(per_client: int, classes: Sequence[int]) -> None:
    if per_client > len(classes):
        raise DataError(
            f"task.classes_per_client must be at most {len(classes)}, the classes of the task, got {per_client}"
        )


def deal_classes(
    classes: Sequence[int], clients: int, per_client: int | None, seed: int, division: str = "even"
) -> tuple[tuple[int, ...], ...]:
    """Deals classes out to the clients at random and without overlap; each client's are ascending.

    per_client: None deals all classes, as evenly as they divide. division: "authors" deals all classes by the rule and
    with the seed of the authors' code; `seed` is not read. Raises DataError if there are too few classes, if that rule
    leaves a client without a class, or if it is given per_client.
    """
    if per_client and division == "authors":
        raise DataError(
            'task.classes_per_client must be left out with task.class_division = "authors", whose rule says how many'
            f" classes a client has, got {per_client}. Leave it out, or use --set task.class_division=even"
        )
    needed = clients * (per_client or 1)
    _check_classes_per_client(per_client or 1, classes)
    if needed > len(classes):
        each = f"{per_client} (task.classes_per_client)" if per_client else "at least 1"
        why = f"the task has {len(classes)} classes to deal out, {each} to each client, without overlap"
        raise _too_many_clients(len(classes) // (per_client or 1), clients, why)
    if division == "authors":
        return _as_authors(classes, clients)
    order = torch.randperm(len(classes), generator=generator(seed, "partition")).tolist()
    dealt = [classes[i] for i in order][: needed if per_client else None]
    return tuple(tuple(sorted(dealt[client::clients])) for client in range(clients))


def _as_authors(classes: Sequence[int], clients: int) -> tuple[tuple[int, ...], ...]:
    """Every client but the last gets round(C / N) of the shuffled classes, and the last client gets the rest.

    HongxiaLee/FedOTP (27421e9), Dassl/dassl/data/datasets/base_dataset.py. round(5.5) is 6, and round(4.5) is 4.
    """
    each = round(len(classes) / clients)
    rest = (clients - 1) * each
    if rest >= len(classes):
        raise DataError(
            f'task.class_division must be "even" for {len(classes)} classes and {clients} clients, got "authors":'
            f" round({len(classes)} / {clients}) = {each} classes for each client but the last leave none for the last."
            " Use --set task.class_division=even, or another task.clients"
        )
    order = list(classes)
    random.Random(AUTHORS_SEED).shuffle(order)
    dealt = [order[i * each : (i + 1) * each] for i in range(clients - 1)]
    return tuple(tuple(sorted(own)) for own in [*dealt, order[rest:]])


def deal_domains(domains: int, clients: int, seed: int) -> tuple[int, ...]:
    """The domain of each client: in turn, in an order that is drawn, so that the counts differ by at most one."""
    order = torch.randperm(domains, generator=generator(seed, "domains")).tolist()
    return tuple(order[client % domains] for client in range(clients))


def draw_shots(
    dataset: ImageDataset, label: int, shots: int, seed: int, domain: int | None = None, at_most: bool = False
) -> NDArray[np.int64]:
    """The indices of `shots` training images of one class, drawn evenly over the domains or from one, ascending.

    The counts of two domains differ by at most one while both have images left. at_most: a class with fewer images
    gives all that it has; otherwise it raises DataError. The draw depends on the seed, the class and the domain alone.
    shots: 0 takes all images.
    """
    rng = generator(seed, "shots", label, *(() if domain is None else (domain,)))
    images = dataset.of_classes([label])
    where = ""
    if domain is not None:
        images = images[dataset.domains[images] == domain]
        where = f" in domain {dataset.domain_names[domain]!r}"
    if not shots or (at_most and shots > len(images)):
        return images
    if shots > len(images):
        raise DataError(
            f"task.shots must be at most {len(images)}, got {shots}: class {dataset.class_names[label]!r} of"
            f" {dataset.name} has {len(images)} {dataset.split} images{where};"
            f" --set task.shots={len(images)} fits, 0 takes all, --set task.fewer_shots=true takes all of such a class"
        )
    shuffled = images[torch.randperm(len(images), generator=rng).numpy()]
    domain_rank = torch.randperm(len(dataset.domain_names), generator=rng).numpy()
    domains = dataset.domains[shuffled]
    turn = np.empty(len(shuffled), dtype=np.int64)  # how many of its domain come before an image
    for domain in np.unique(domains):
        here = np.flatnonzero(domains == domain)
        turn[here] = np.arange(len(here))
    return np.sort(shuffled[np.lexsort((domain_rank[domains], turn))[:shots]])


@dataclass(frozen=True)
class Pool:
    """Training images that are to be shared out among N clients.

    images: [n] indices into `dataset`; superclasses: of each class, where there are any; draw: what tells this pool's
    draws from those of others.
    """

    dataset: ImageDataset
    images: NDArray[np.int64]
    clients: int
    superclasses: tuple[int, ...] | None
    seed: int
    draw: tuple[int, ...] = ()

    @cached_property
    def by_class(self) -> Mapping[int, NDArray[np.int64]]:
        """The images of every class that has some, by its label, ascending."""
        return _grouped(self.images, self.dataset.labels[self.images])

    def rng(self, purpose: str, *index: int) -> np.random.Generator:
        """A generator of its own for each purpose and index."""
        return np.random.default_rng(generator(self.seed, purpose, *self.draw, *index).initial_seed() % 2**64)

    def shuffled(self, label: int) -> NDArray[np.int64]:
        """The images of a class in an order that is drawn."""
        return self.rng("deal", label).permutation(self.by_class[label])


Shares = list[NDArray[np.int64]]  # [N] the images of each client, ascending


def dirichlet(pool: Pool, *, concentration: float) -> Shares:
    """Of every class each client gets a share that is drawn from Dir(concentration) (Hsu et al., 2019).

    One draw, whatever comes of it: a client that is left without an image is given one by whoever holds most.
    """
    held: list[list[NDArray[np.int64]]] = [[] for _ in range(pool.clients)]
    for label in pool.by_class:
        images = pool.shuffled(label)
        rng = pool.rng("dirichlet", label)
        shares = rng.dirichlet(np.full(pool.clients, concentration))
        counts = largest_remainders(shares * len(images), len(images), rng)
        for own, part in zip(held, np.split(images, np.cumsum(counts)[:-1]), strict=True):
            own.append(part)
    return _nobody_without([np.concatenate(own) for own in held])


def pachinko(pool: Pool, *, concentration: float, fine_concentration: float) -> Shares:
    """Every client draws n / N images: a superclass, a class in it, and one of its images, without replacement.

    A client's shares of superclasses come from Dir(concentration), those of the classes of one from
    Dir(fine_concentration); what is used up is left out (pachinko allocation, Reddi et al., 2021, appendix C.1).
    Raises DataError for a dataset without superclasses.
    """
    if pool.superclasses is None:
        raise DataError(
            f"task.partition must be one that needs no superclasses for {pool.dataset.name}, such as dirichlet"
        )
    labels = np.array(list(pool.by_class))
    stocks = [pool.shuffled(label) for label in pool.by_class]
    left = np.array([len(stock) for stock in stocks])
    above = np.array(pool.superclasses)[labels]
    coarse = np.unique(above)
    held: Shares = []
    for client in range(pool.clients):
        rng = pool.rng("pachinko", client)
        of_coarse = rng.dirichlet(np.full(len(coarse), concentration))
        wanted = np.zeros(len(labels))
        for share, group in zip(of_coarse, coarse, strict=True):
            inside = above == group
            wanted[inside] = share * rng.dirichlet(np.full(inside.sum(), fine_concentration))
        missing = len(pool.images) // pool.clients + (client < len(pool.images) % pool.clients)
        taken = np.zeros(len(labels), dtype=np.int64)
        while missing:
            open_now = np.where(taken < left, wanted + 1e-12, 0.0)  # what nobody wants is taken last, not never
            drawn = np.minimum(rng.multinomial(missing, open_now / open_now.sum()), left - taken)
            taken, missing = taken + drawn, missing - int(drawn.sum())
        held.append(np.sort(np.concatenate([stock[:count] for stock, count in zip(stocks, taken, strict=True)])))
        stocks = [stock[count:] for stock, count in zip(stocks, taken, strict=True)]
        left -= taken
    return held


def pathological(pool: Pool, *, classes_per_client: int | None) -> Shares:
    """Every client has so many classes, and whoever has a class an equal part of its images; None: two.

    Classes are dealt out so that the numbers of their holders differ by at most one. Of images that do not divide
    evenly, it is drawn for each class who has one more.
    """
    labels, count = list(pool.by_class), classes_per_client or 2
    _check_classes_per_client(count, labels)
    rng, holders = pool.rng("pathological"), np.zeros(len(labels), dtype=np.int64)
    holding: list[list[int]] = [[] for _ in labels]
    for client in range(pool.clients):
        chosen = np.lexsort([rng.random(len(labels)), holders])[:count]
        holders[chosen] += 1
        for place in chosen.tolist():
            holding[place].append(client)
    held: list[list[NDArray[np.int64]]] = [[] for _ in range(pool.clients)]
    for label, clients in zip(labels, holding, strict=True):
        if not clients:
            continue
        images = pool.shuffled(label)
        quotas = np.full(len(clients), len(images) / len(clients))
        counts = largest_remainders(quotas, len(images), pool.rng("pathological", label))
        for client, part in zip(clients, np.split(images, np.cumsum(counts)[:-1]), strict=True):
            held[client].append(part)
    return _nobody_without([np.concatenate(own) for own in held])


def shards(pool: Pool, *, shards_per_client: int) -> Shares:
    """The images, sorted by class, are cut into N × shards_per_client shards of one size, which are dealt out.

    McMahan et al., 2017, section 3. Raises DataError where there are more shards than images.
    """
    count = pool.clients * shards_per_client
    if count > len(pool.images):
        raise DataError(
            f"task.shards_per_client must be at most {len(pool.images) // pool.clients} for {len(pool.images)} images"
            f" and {pool.clients} clients, got {shards_per_client}"
        )
    ordered = np.concatenate([pool.shuffled(label) for label in pool.by_class])
    cut = np.array_split(ordered, count)
    dealt = pool.rng("shards").permutation(count).reshape(pool.clients, shards_per_client)
    return [np.sort(np.concatenate([cut[shard] for shard in own])) for own in dealt]


def iid(pool: Pool) -> Shares:
    """The images are shuffled and cut into N parts whose sizes differ by at most one."""
    return _nobody_without(np.array_split(pool.rng("iid").permutation(pool.images), pool.clients))


def natural(pool: Pool) -> Shares:
    """Everybody keeps their own: the N clients of the dataset that have the most images, in its order of clients.

    Raises DataError where the dataset does not say whose its images are, or knows fewer clients.
    """
    dataset = pool.dataset
    if dataset.clients is None:
        raise DataError(
            f"{dataset.name} does not say whose an image is, as task.partition = natural needs: set data.client_column"
            " to a column of its table, or another partition and task.domain_per_client = true for a domain each"
        )
    whose = dataset.clients[pool.images]
    counts = np.bincount(whose, minlength=len(dataset.client_names))
    if pool.clients > (most := int(np.count_nonzero(counts))):
        raise _too_many_clients(most, pool.clients, f"so many clients of {dataset.name} have training images")
    chosen = np.sort(np.argsort(-counts, kind="stable")[: pool.clients])
    return [np.sort(pool.images[whose == client]) for client in chosen]


PARTITIONS: Mapping[str, Callable[..., Shares]] = {
    "dirichlet": dirichlet,
    "pachinko": pachinko,
    "pathological": pathological,
    "shards": shards,
    "iid": iid,
    "natural": natural,
}


def share_out(
    dataset: ImageDataset, holdings: Sequence[NDArray[np.int64]], images: NDArray[np.int64], pool: Pool
) -> Shares:
    """Images of another split, to the same clients in the same proportions of each class, without overlap.

    holdings: [N] the classes of every client's training images, one entry for each image. A client that would be left
    without one shares one of its most frequent class with whoever was dealt it. Raises DataError where there is none.
    """
    counts = np.stack([np.bincount(labels, minlength=len(dataset.class_names)) for labels in holdings])
    held: list[list[int]] = [[] for _ in holdings]
    nothing = images[:0]
    by_class = _grouped(images, dataset.labels[images])
    for label in np.flatnonzero(counts.sum(0)).tolist():
        rng = pool.rng(f"share out {dataset.split}", label)
        drawn = rng.permutation(by_class.get(label, nothing))
        quotas = len(drawn) * counts[:, label] / counts[:, label].sum()
        dealt = largest_remainders(quotas, len(drawn), rng)
        for own, part in zip(held, np.split(drawn, np.cumsum(dealt)[:-1]), strict=True):
            own += part.tolist()
    for client, own in enumerate(held):
        if not own:
            own += by_class.get(int(counts[client].argmax()), nothing)[:1].tolist()
        if not own:
            lack = dataset.lack(int(counts[client].argmax()))
            raise DataError(f"{lack}, the class of which client {client} has most: add some")
    return [np.sort(np.array(own, dtype=np.int64)) for own in held]


def largest_remainders(quotas: NDArray[np.float64], total: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """[N] whole numbers with a sum of `total`, each its quota rounded down or up (Hamilton's method).

    quotas: [N] with a sum of `total`. Those with the largest fractions are rounded up; of equal ones it is drawn which.
    """
    counts = np.floor(quotas).astype(np.int64)
    up = np.lexsort([rng.random(len(quotas)), counts - quotas])[: total - counts.sum()]
    counts[up] += 1
    return counts


def _grouped(images: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """The images of every label that occurs, in their order."""
    order = np.argsort(labels, kind="stable")
    distinct, starts = np.unique(labels[order], return_index=True)
    return dict(zip(distinct.tolist(), np.split(images[order], starts[1:]), strict=True))


def _nobody_without(shares: Shares) -> Shares:
    """Ascending; whoever has nothing is given an image by whoever has most.

    Raises DataError if there are more clients than images.
    """
    images = sum(map(len, shares))
    if len(shares) > images:
        raise _too_many_clients(images, len(shares), "so many training images are to be shared out")
    for client, own in enumerate(shares):
        if not len(own):
            richest = max(range(len(shares)), key=lambda other: len(shares[other]))
            shares[client], shares[richest] = shares[richest][-1:], shares[richest][:-1]
    return [np.sort(own) for own in shares]
