"""Divide classes and training images among the clients.

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

AUTHORS_SEED = 2023  # seed of their division of the classes, which does not depend on the seed of the run


class TooManyClientsError(DataError):
    """More clients than classes or images, in the whole task or in one domain.

    Attributes
    ----------
    most
        The largest number of clients, including new clients.
    why
        What limits the number.
    """

    def __init__(self, most: int, got: int, why: str, groups: int = 1, new_clients: int = 0):
        self.most, self.why = most, why
        total = groups * most
        new = min(new_clients, total - 1)
        fewer_new = "" if new == new_clients else f" --set task.new_clients={new}"
        notes = [f"in each of {groups} domains"] * (groups > 1)
        notes += [f"with the {new_clients} of task.new_clients"] * (new_clients > 0)
        super().__init__(
            where="task.clients",
            allowed=f"at most {', '.join([str(most), *notes])} ({why})",
            got=got,
            remedy=f"Use --set task.clients={total - new}{fewer_new}",
        )


def _check_classes_per_client(per_client: int, classes: Sequence[int]) -> None:
    if per_client > len(classes):
        raise DataError(
            where="task.classes_per_client",
            allowed=f"at most {len(classes)}, the number of classes",
            got=per_client,
            remedy=f"Use --set task.classes_per_client={len(classes)}",
        )


def deal_classes(
    classes: Sequence[int], clients: int, per_client: int | None, seed: int, division: str = "even"
) -> tuple[tuple[int, ...], ...]:
    """Divide classes among the clients at random and without overlap.

    Parameters
    ----------
    classes
        The classes.
    clients
        The number of clients.
    per_client
        The number of classes of each client; None divides all classes as evenly as possible.
    seed
        The seed of the draw.
    division
        "authors" divides all classes by the rule and with the seed of the authors' code; `seed` is not used then.

    Returns
    -------
    The classes of each client, ascending.

    Raises
    ------
    DataError
        If there are too few classes, if the authors' rule leaves a client without a class, or if `per_client` is given
        with that rule.
    """
    if per_client and division == "authors":
        raise DataError(
            where="task.classes_per_client",
            allowed='unset with task.class_division = "authors", whose rule sets the number of classes of a client',
            got=per_client,
            remedy="Leave it out, or use --set task.class_division=even",
        )
    needed = clients * (per_client or 1)
    _check_classes_per_client(per_client or 1, classes)
    if needed > len(classes):
        each = f"{per_client} (task.classes_per_client)" if per_client else "at least 1"
        why = f"{len(classes)} classes are divided without overlap, and each client needs {each}"
        raise TooManyClientsError(len(classes) // (per_client or 1), clients, why)
    if division == "authors":
        return _as_authors(classes, clients)
    order = torch.randperm(len(classes), generator=generator(seed, "partition")).tolist()
    dealt = [classes[i] for i in order][: needed if per_client else None]
    return tuple(tuple(sorted(dealt[client::clients])) for client in range(clients))


def _as_authors(classes: Sequence[int], clients: int) -> tuple[tuple[int, ...], ...]:
    """Give every client but the last round(C / N) of the shuffled classes, and the last client the rest.

    HongxiaLee/FedOTP (27421e9), Dassl/dassl/data/datasets/base_dataset.py. round(5.5) is 6, and round(4.5) is 4.
    """
    each = round(len(classes) / clients)
    rest = (clients - 1) * each
    if rest >= len(classes):
        raise DataError(
            where="task.class_division",
            allowed=f'"even" for {len(classes)} classes and {clients} clients, because'
            f" round({len(classes)} / {clients}) = {each} classes for each other client leave none for the last one",
            got="authors",
            remedy="Use --set task.class_division=even",
        )
    order = list(classes)
    random.Random(AUTHORS_SEED).shuffle(order)
    dealt = [order[i * each : (i + 1) * each] for i in range(clients - 1)]
    return tuple(tuple(sorted(own)) for own in [*dealt, order[rest:]])


def deal_domains(domains: int, clients: int, seed: int) -> tuple[int, ...]:
    """Return the domain of each client: in turn, in a random order, so that the counts differ by at most one."""
    order = torch.randperm(domains, generator=generator(seed, "domains")).tolist()
    return tuple(order[client % domains] for client in range(clients))


def draw_shots(
    dataset: ImageDataset, label: int, shots: int, seed: int, domain: int | None = None, at_most: bool = False
) -> NDArray[np.int64]:
    """Draw training images of one class evenly from all domains, or from one domain.

    The numbers of images from two domains differ by at most one while both have images left. The draw depends only on
    the seed, the class and the domain.

    Parameters
    ----------
    dataset
        The split to draw from.
    label
        The class.
    shots
        The number of images; 0 takes all.
    seed
        The seed of the draw.
    domain
        The domain to draw from; None draws from all.
    at_most
        Take all images of a class that has fewer than `shots`, instead of raising DataError.

    Returns
    -------
    The indices of the images, ascending.

    Raises
    ------
    DataError
        If the class has too few images.
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
            where="task.shots",
            allowed=f"at most {len(images)}, the number of {dataset.split} images of class"
            f" {dataset.class_names[label]!r}{where} of {dataset.name}",
            got=shots,
            remedy=f"Use --set task.shots={len(images)}, --set task.shots=0 for all images, or"
            " --set task.fewer_shots=true to take all images of such a class",
        )
    shuffled = images[torch.randperm(len(images), generator=rng).numpy()]
    domain_rank = torch.randperm(len(dataset.domain_names), generator=rng).numpy()
    domains = dataset.domains[shuffled]
    turn = np.empty(len(shuffled), dtype=np.int64)  # number of earlier images of the same domain
    for domain in np.unique(domains):
        here = np.flatnonzero(domains == domain)
        turn[here] = np.arange(len(here))
    return np.sort(shuffled[np.lexsort((domain_rank[domains], turn))[:shots]])


@dataclass(frozen=True)
class Pool:
    """Training images to divide among N clients.

    Attributes
    ----------
    dataset
        The training split.
    images
        [n] indices into `dataset`.
    clients
        The number of clients N.
    superclasses
        The superclass of each class, if there are superclasses.
    seed
        The seed of the draws.
    draw
        Numbers that distinguish the draws of this pool from the draws of other pools.

    Raises
    ------
    TooManyClientsError
        There are more clients than images.
    """

    dataset: ImageDataset
    images: NDArray[np.int64]
    clients: int
    superclasses: tuple[int, ...] | None
    seed: int
    draw: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.clients > len(self.images):
            raise TooManyClientsError(len(self.images), self.clients, "the number of training images")

    @cached_property
    def by_class(self) -> Mapping[int, NDArray[np.int64]]:
        """The images of every class that has images, by its label, ascending."""
        return _grouped(self.images, self.dataset.labels[self.images])

    def rng(self, purpose: str, *index: int) -> np.random.Generator:
        """Return a separate generator for each purpose and index."""
        return np.random.default_rng(generator(self.seed, purpose, *self.draw, *index).initial_seed() % 2**64)

    def shuffled(self, label: int) -> NDArray[np.int64]:
        """Return the images of a class in random order."""
        return self.rng("deal", label).permutation(self.by_class[label])


Shares = list[NDArray[np.int64]]  # [N] the images of each client, ascending


def dirichlet(pool: Pool, *, concentration: float) -> Shares:
    """Give each client a share of every class that is drawn from Dir(concentration) (Hsu et al., 2019).

    The shares are drawn once and not repeated. A client without an image then gets one from the client with the most.
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
    """Let every client draw n / N images without replacement: a superclass, a class in it, and one of its images.

    A client's shares of superclasses come from Dir(concentration), and its shares of the classes of a superclass from
    Dir(fine_concentration); empty classes are left out (pachinko allocation, Reddi et al., 2021, appendix C.1).

    Raises
    ------
    DataError
        If the dataset has no superclasses.
    """
    if pool.superclasses is None:
        raise DataError(
            where="task.partition",
            allowed=f"a partition that needs no superclasses, such as dirichlet ({pool.dataset.name} has none)",
            got="pachinko",
            remedy="Use --set task.partition=dirichlet",
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
            open_now = np.where(taken < left, wanted + 1e-12, 0.0)  # an unwanted class is taken last, but not never
            drawn = np.minimum(rng.multinomial(missing, open_now / open_now.sum()), left - taken)
            taken, missing = taken + drawn, missing - int(drawn.sum())
        held.append(np.sort(np.concatenate([stock[:count] for stock, count in zip(stocks, taken, strict=True)])))
        stocks = [stock[count:] for stock, count in zip(stocks, taken, strict=True)]
        left -= taken
    return held


def pathological(pool: Pool, *, classes_per_client: int | None) -> Shares:
    """Give every client a number of classes, and the clients of a class equal parts of its images.

    The numbers of clients of two classes differ by at most one. If the images of a class do not divide evenly, the
    clients that get one more are drawn.

    Parameters
    ----------
    pool
        The images.
    classes_per_client
        The number of classes of each client; None means two.
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
    """Cut the images, sorted by class, into N × shards_per_client equal shards, and assign the shards to the clients.

    McMahan et al., 2017, section 3.

    Raises
    ------
    DataError
        If there are more shards than images.
    """
    count = pool.clients * shards_per_client
    if count > len(pool.images):
        most = len(pool.images) // pool.clients
        raise DataError(
            where="task.shards_per_client",
            allowed=f"at most {most} for {len(pool.images)} images and {pool.clients} clients",
            got=shards_per_client,
            remedy=f"Use --set task.shards_per_client={most}",
        )
    ordered = np.concatenate([pool.shuffled(label) for label in pool.by_class])
    cut = np.array_split(ordered, count)
    dealt = pool.rng("shards").permutation(count).reshape(pool.clients, shards_per_client)
    return [np.sort(np.concatenate([cut[shard] for shard in own])) for own in dealt]


def iid(pool: Pool) -> Shares:
    """Shuffle the images and cut them into N parts whose sizes differ by at most one."""
    return _nobody_without(np.array_split(pool.rng("iid").permutation(pool.images), pool.clients))


def natural(pool: Pool) -> Shares:
    """Give each client its own images: the N owners with the most images, in the order of the dataset.

    Raises
    ------
    DataError
        If the dataset does not say who owns each image, or has fewer owners.
    """
    dataset = pool.dataset
    if dataset.clients is None:
        raise DataError(
            "the dataset does not say who owns each image, which task.partition natural needs",
            where=dataset.name,
            remedy="Set data.client_column to a column of its table, or use another partition with"
            " --set task.domain_per_client=true, which gives each client one domain",
        )
    whose = dataset.clients[pool.images]
    counts = np.bincount(whose, minlength=len(dataset.client_names))
    if pool.clients > (most := int(np.count_nonzero(counts))):
        raise TooManyClientsError(
            most, pool.clients, f"the number of owners in {dataset.name} that have training images"
        )
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
    """Divide the images of another split among the same clients in the same proportions of each class, without overlap.

    A client that would get no image gets one of its most frequent class, which it shares with the client that got it.

    Parameters
    ----------
    dataset
        The other split.
    holdings
        [N] the classes of the training images of every client, one entry for each image.
    images
        The indices of the images to divide.
    pool
        The pool of the training images.

    Returns
    -------
    The images of each client, ascending.

    Raises
    ------
    DataError
        If the most frequent class of a client has no image.
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
            raise DataError(
                f"{dataset.lack(int(counts[client].argmax()))}, but this is the most frequent class of client {client}",
                where=dataset.name,
                remedy="Add an image of this class",
            )
    return [np.sort(np.array(own, dtype=np.int64)) for own in held]


def largest_remainders(quotas: NDArray[np.float64], total: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Round quotas down or up to whole numbers with the same sum (Hamilton's method).

    Quotas with the largest fractions are rounded up; ties are broken at random.

    Parameters
    ----------
    quotas
        [N] with a sum of `total`.
    total
        The sum.
    rng
        The generator for ties.

    Returns
    -------
    [N] whole numbers.
    """
    counts = np.floor(quotas).astype(np.int64)
    up = np.lexsort([rng.random(len(quotas)), counts - quotas])[: total - counts.sum()]
    counts[up] += 1
    return counts


def _grouped(images: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """Return the images of every label that occurs, in their order."""
    order = np.argsort(labels, kind="stable")
    distinct, starts = np.unique(labels[order], return_index=True)
    return dict(zip(distinct.tolist(), np.split(images[order], starts[1:]), strict=True))


def _nobody_without(shares: Shares) -> Shares:
    """Sort the images of each client, and give a client without images one from the client with the most."""
    for client, own in enumerate(shares):
        if not len(own):
            richest = max(range(len(shares)), key=lambda other: len(shares[other]))
            shares[client], shares[richest] = shares[richest][-1:], shares[richest][:-1]
    return [np.sort(own) for own in shares]
