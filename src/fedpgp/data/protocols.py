"""Protocols: what clients train on, and on what they are tested."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.partition import (
    PARTITIONS,
    Pool,
    TooManyClientsError,
    deal_classes,
    deal_domains,
    draw_shots,
    share_out,
)
from fedpgp.data.sources import ImageDataset, Source
from fedpgp.data.sources.names import plain
from fedpgp.data.tasks import Client, EvaluationSet, Task
from fedpgp.errors import DataError, nearest

CLASSES, NATURAL = "classes", "natural"


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """Who holds which training images: `shots` of each class, or with 0 all, shared out by a partition.

    partition: "classes" (each class is one client's), or one of `PARTITIONS`, whose other arguments are `settings`.
    new_clients: so many beside `clients`, who take part in nothing before training is over.
    class_division: how "classes" divides them, see `deal_classes`.
    domain_per_client: a client's images, and its own test images, are of one domain; domains are dealt out in turn, and
    a partition of images shares out each domain by itself.
    """

    clients: int
    shots: int
    seed: int
    partition: str = CLASSES
    new_clients: int = 0
    classes_per_client: int | None = None
    class_division: str = "even"
    domain_per_client: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def everybody(self) -> int:
        return self.clients + self.new_clients


def base_to_novel(source: Source, holdings: Holdings, *, evaluate_on: str = "test") -> Task:
    """The paper's base-to-novel protocol: the first half of the classes is base, the second half novel.

    Only images of base classes are held by clients. Base is tested on all base classes; Novel on the novel classes with
    only their names in the softmax; Unseen, where the source has probe classes, on those, likewise. Local is tested on
    the test images of a client's own classes, or those shared out to it as the training images are.

    evaluate_on: "test", or "validation" for choosing settings: the same protocol within the base classes (their first
    half is base, their second half novel) on validation images, so that neither a novel class nor a test image is used.
    Raises DataError if the data do not suffice.
    """
    classes = _known(source)
    probe = source.probe if evaluate_on == "test" else ()
    if evaluate_on == "validation":
        classes = classes[: _half(classes)]
    dataset = _evaluated(source, evaluate_on)
    base, novel = tuple(classes[: _half(classes)]), tuple(classes[_half(classes) :])
    if not novel:
        raise DataError(f"base-to-novel needs at least 2 classes, half of them novel; {source.name} has {len(classes)}")
    tests = {"base": _test_set(dataset, base), "novel": _test_set(dataset, novel)}
    if probe:
        tests["unseen"] = _test_set(dataset, probe)
    return _task("base-to-novel", source, holdings, base, tests, "classes")


def personalization(source: Source, holdings: Holdings, *, evaluate_on: str = "test") -> Task:
    """All classes are trained on and nothing is novel: few-shot personalization and every kind of label shift.

    Local is tested on a client's own test images: those of its classes where each class is one client's (the paper's
    few-shot experiment), else those shared out in the proportions of its training images, without overlap. Base is
    tested on the test images of all classes. Probe classes are left out. Raises DataError if the data do not suffice.
    """
    classes = tuple(_known(source))
    tests = {"base": _test_set(_evaluated(source, evaluate_on), classes)}
    return _task("personalization", source, holdings, classes, tests, "nothing")


def one_test_set(source: Source, holdings: Holdings, *, evaluate_on: str = "test") -> Task:
    """The global protocol: as personalization, but everybody is tested on all test images, so that Local equals Base.

    What it is for is the shared part alone, which all evaluations report beside the clients' models.
    """
    task = personalization(source, holdings, evaluate_on=evaluate_on)
    everything = {"base": task.tests["base"].images, "validation": task.validation.images}
    return replace(
        task,
        name="global",
        clients=tuple(replace(client, own=everything) for client in task.clients),
        new_clients=tuple(replace(client, own=everything) for client in task.new_clients),
    )


def cross_data_set(source: Source, holdings: Holdings, *, evaluate_on: str = "test") -> Task:
    """Trained on one data set and tested on others, each with its own classes in the softmax.

    Local and Base are those of personalization; Novel is tested on the first of the source's targets, and a column of
    its own has every other one. A class of a target that has the name of one of the source's is that class: so a target
    may be of other images of the same classes (ImageNet → V2, Sketch, A, R).

    evaluate_on: on validation images there are no targets. Raises DataError where the source has none.
    """
    if evaluate_on == "test" and not source.targets:
        raise DataError(f"task.targets must name what is tested beside {source.name}: one or more data sets")
    classes = tuple(_known(source))
    tests = {"base": _test_set(_evaluated(source, evaluate_on), classes)}
    names = list(source.class_names)
    if evaluate_on == "test":
        place = {plain(name): label for label, name in enumerate(names)}
        for number, (title, dataset) in enumerate(source.targets.items()):
            for name in dataset.class_names:
                if plain(name) not in place:
                    place[plain(name)] = len(names)
                    names.append(name)
            labels = np.array([place[plain(name)] for name in dataset.class_names])
            joined = replace(dataset, labels=labels[dataset.labels])
            column = "novel" if number == 0 else title
            tests[column] = EvaluationSet(joined, tuple(np.unique(labels).tolist()), np.arange(len(dataset)))
        tests = {
            name: replace(test, dataset=replace(test.dataset, class_names=tuple(names))) for name, test in tests.items()
        }
    novel: Any = "data sets" if evaluate_on == "test" else "nothing"
    task = _task("cross-data-set", source, holdings, classes, tests, novel)
    return replace(task, class_names=tuple(names))


def leave_one_domain_out(
    source: Source, holdings: Holdings, *, held_out: Sequence[str], evaluate_on: str = "test"
) -> Task:
    """The paper's leave-one-domain-out protocol: a client for each domain but one, which nobody trains on.

    Every client has images of its own domain; where several clients share a domain, it is shared out to them by itself.
    Probe classes are left out. Local is tested on a client's own test images in its domain; Base on those of all
    classes in all domains that are trained on; Novel on those of the same classes in the held-out domain. No image of
    that domain is trained on or in the validation set.

    holdings.everybody: a multiple of the number of domains that are trained on. held_out: by name; several are held out
    together, as two drawings of one kind should be; none takes the last.
    evaluate_on: "test", or "validation" for choosing settings: the last of the domains that are trained on plays the
    held-out one, on validation images, so that neither a held-out domain nor a test image is used.
    Raises DataError if the data do not suffice.
    """
    names = source.train.domain_names
    out = {names.index(name) if name in names else _unknown(name, names) for name in held_out} or {len(names) - 1}
    kept, novel = [i for i in range(len(names)) if i not in out], sorted(out)
    if evaluate_on == "validation":
        kept, novel = kept[:-1], kept[-1:]
    if not kept:
        raise DataError(
            f"leave-one-domain-out needs a domain to train on beside those held out; {source.name} has"
            f" {', '.join(names)}: hold out fewer (task.held_out)"
        )
    if holdings.everybody % len(kept):
        raise DataError(
            f"task.clients must be a multiple of {len(kept)}, got {holdings.everybody}: the domains that are trained on"
            f" are {', '.join(names[i] for i in kept)}"
        )
    dataset = _evaluated(source, evaluate_on)
    classes = tuple(_known(source))
    tests = {"base": _test_set(dataset, classes, kept), "novel": _test_set(dataset, classes, novel)}
    return _task("leave-one-domain-out", source, holdings, classes, tests, "domains", kept)


PROTOCOLS: Mapping[str, Callable[..., Task]] = {
    "base-to-novel": base_to_novel,
    "personalization": personalization,
    "leave-one-domain-out": leave_one_domain_out,
    "cross-data-set": cross_data_set,
    "global": one_test_set,
}


def _task(
    name: str,
    source: Source,
    holdings: Holdings,
    base: tuple[int, ...],
    tests: dict[str, EvaluationSet],
    novel: Any,
    kept: Sequence[int] | None = None,
) -> Task:
    """kept: the domains of leave-one-domain-out, each of which is shared out by itself."""
    validation = _test_set(source.validation, base, kept)
    domains: Sequence[int | None] = [None] * holdings.everybody
    if kept is not None:
        domains = [kept[i % len(kept)] for i in range(holdings.everybody)]
    elif holdings.domain_per_client:
        domains = deal_domains(len(source.train.domain_names), holdings.everybody, holdings.seed)
    try:
        if holdings.partition == CLASSES:
            clients = _by_classes(source, holdings, base, domains, 1 if kept is None else len(kept))
        else:
            clients = _by_images(source, holdings, base, domains, {"base": tests["base"], "validation": validation})
    except TooManyClientsError as error:
        if error.got == holdings.clients == holdings.everybody:
            raise DataError(f"{error}; --set task.clients={error.most}") from error
        raise DataError(f"{error}; each domain counts by itself, and task.new_clients count, too") from error
    _check_own_images(clients, tests["base"], validation)
    late = range(holdings.clients, holdings.everybody)
    return Task(
        name=name,
        class_names=source.class_names,
        base=base,
        train=source.train,
        clients=tuple(clients[: holdings.clients]),
        tests=tests,
        validation=validation,
        templates=source.templates,
        novel=novel,
        partition=holdings.partition,
        new_clients=tuple(replace(clients[i], id=i - holdings.clients) for i in late),
    )


def _by_classes(
    source: Source, holdings: Holdings, base: Sequence[int], domains: Sequence[int | None], among: int
) -> list[Client]:
    """Clients with classes of their own. among: so many domains have the same deal."""
    seed, everybody = holdings.seed, holdings.everybody
    dealt = deal_classes(base, everybody // among, holdings.classes_per_client, seed, holdings.class_division)
    clients = []
    for number, domain in enumerate(domains):
        classes = dealt[number // among]
        drawn = [draw_shots(source.train, label, holdings.shots, seed, domain) for label in classes]
        clients.append(Client(number, classes, np.concatenate(drawn), None if domain is None else (domain,)))
    return clients


def _by_images(
    source: Source,
    holdings: Holdings,
    base: Sequence[int],
    domains: Sequence[int | None],
    tests: Mapping[str, EvaluationSet],
) -> list[Client]:
    """Clients to whom images are shared out, and of the base and validation images in the same proportions."""
    train, seed = source.train, holdings.seed
    if holdings.partition == NATURAL and holdings.domain_per_client:
        raise DataError(
            "task.domain_per_client must be false with the partition natural: everybody's images stay whole"
        )
    clients: list[Client | None] = [None] * len(domains)
    for domain in dict.fromkeys(domains):
        members = [number for number, other in enumerate(domains) if other == domain]
        drawn = [draw_shots(train, label, holdings.shots, seed, domain) for label in base]
        here = () if domain is None else (domain,)
        pool = Pool(train, np.concatenate(drawn), len(members), source.superclasses, seed, here)
        if not len(pool.images):
            raise DataError(
                f"{train.name} has no training image in domain"
                f" {train.domain_names[domain or 0]!r}: add some, or take the domain out"
            )
        held = PARTITIONS[holdings.partition](pool, **holdings.settings)
        own = {name: _own(test, held, domain, holdings, pool) for name, test in tests.items()}
        for place, (number, images) in enumerate(zip(members, held, strict=True)):
            clients[number] = Client(
                id=number,
                classes=tuple(np.unique(train.labels[images]).tolist()),
                train=images,
                domains=here or None,
                own={name: shares[place] for name, shares in own.items()},
                name=_owner(train, images) if holdings.partition == NATURAL else None,
            )
    return [client for client in clients if client is not None]


def _own(
    test: EvaluationSet, held: Sequence[NDArray[np.int64]], domain: int | None, holdings: Holdings, pool: Pool
) -> Sequence[NDArray[np.int64]]:
    """The images of a test set that are each client's own."""
    dataset, images = test.dataset, test.images
    if domain is not None:
        images = images[dataset.domains[images] == domain]
    shared_out = [pool.dataset.labels[own] for own in held]
    if holdings.partition != NATURAL:
        return share_out(dataset, shared_out, images, pool)
    if dataset.clients is None or dataset.client_names != pool.dataset.client_names:
        raise DataError(f"the {dataset.split} split of {dataset.name} does not say whose an image is: name its clients")
    whose = [pool.dataset.clients[own[0]] for own in held if pool.dataset.clients is not None]
    found = [images[dataset.clients[images] == client] for client in whose]
    for client, own in zip(whose, found, strict=True):
        if not len(own):
            raise DataError(
                f"client {dataset.client_names[client]!r} of {dataset.name} has no {dataset.split} image of a class"
                " that is trained on: add one, or take fewer clients (task.clients)"
            )
    return found


def _owner(dataset: ImageDataset, images: NDArray[np.int64]) -> str | None:
    return None if dataset.clients is None else dataset.client_names[dataset.clients[images[0]]]


def _check_own_images(clients: Sequence[Client], *tests: EvaluationSet) -> None:
    """Raises DataError where a client has no image of a class of its own to be tested on."""
    for test in tests:
        dataset = test.dataset
        held = set(zip(dataset.labels[test.images].tolist(), dataset.domains[test.images].tolist(), strict=True))
        for client in clients:
            if client.own is not None:
                continue
            for label, domain in product(client.classes, client.domains or ()):
                if (label, domain) not in held:
                    raise DataError(
                        f"class {dataset.class_names[label]!r} of {dataset.name} has no {dataset.split} image in domain"
                        f" {dataset.domain_names[domain]!r}, which client {client.id} is to be tested on:"
                        " add one, or take the class out of the domain"
                    )


def _known(source: Source) -> list[int]:
    """The classes that are no probe classes."""
    return [label for label in range(len(source.class_names)) if label not in source.probe]


def _half(classes: Sequence[int]) -> int:
    """The middle class of an odd number is base, as in CoOp's split."""
    return (len(classes) + 1) // 2


def _unknown(name: str, names: Sequence[str]) -> NoReturn:
    raise DataError(f"task.held_out must name domains of the data set, got {name!r}; {nearest(name, names)}")


def _evaluated(source: Source, split: str) -> ImageDataset:
    """The split that is tested on."""
    if split == "validation":
        return source.validation
    if source.test is None:
        raise DataError(
            f"the test split of {source.name} was not read: read it with load_source, or test on validation"
        )
    return source.test


def _test_set(dataset: ImageDataset, classes: Sequence[int], domains: Sequence[int] | None = None) -> EvaluationSet:
    """The images of some classes in some domains; None: in all."""
    images = dataset.of_classes(classes)
    where = ""
    if domains is not None:
        images = images[np.isin(dataset.domains[images], domains)]
        where = f" in {', '.join(dataset.domain_names[i] for i in domains)}"
    empty = set(classes) - set(dataset.labels[images].tolist())
    if empty:
        raise DataError(
            f"class {dataset.class_names[min(empty)]!r} of {dataset.name} has no {dataset.split} image{where}:"
            " add one, or take the class out (fedpgp data check lists all such classes)"
        )
    return EvaluationSet(dataset, tuple(classes), images)
