"""Protocols: what clients train on and what they are tested on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from inspect import signature
from itertools import product
from typing import Any

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
from fedpgp.data.settings import TaskConfig
from fedpgp.data.sources import ImageDataset, Source
from fedpgp.data.sources.names import plain
from fedpgp.data.tasks import Client, EvaluationSet, Task, check_softmaxes, halves
from fedpgp.errors import ConfigError, DataError, nearest

CLASSES, NATURAL = "classes", "natural"


def base_to_novel(source: Source, config: TaskConfig, seed: int) -> Task:
    """Apply the paper's base-to-novel protocol: the first half of the classes is base, the second half novel.

    Clients hold only images of base classes. Base is tested on all base classes. Novel is tested on the novel classes,
    with only their names in the softmax. Unseen is tested in the same way on the probe classes, if the source has some.
    Local is tested on the test images of a client's own classes, or on test images that are divided among the clients
    like the training images.

    With config.evaluate_on = "validation", for choosing settings, the same protocol is applied within the base classes
    (their first half is base, their second half novel) on validation images, so that neither a novel class nor a test
    image is used.

    Raises
    ------
    DataError
        If the source has too little data.
    """
    classes = _known(source)
    probe = source.probe if config.evaluate_on == "test" else ()
    if config.evaluate_on == "validation":
        classes, _ = halves(classes)
    dataset = _evaluated(source, config)
    base, novel = halves(classes)
    check_softmaxes(source.name, {"base": base, "novel": novel}, "base-to-novel", config.evaluate_on)
    tests = {"base": _test_set(dataset, base), "novel": _test_set(dataset, novel)}
    if probe:
        tests["unseen"] = _test_set(dataset, probe)
    return _task("base-to-novel", source, config, seed, base, tests, "classes")


def personalization(source: Source, config: TaskConfig, seed: int) -> Task:
    """Train on all classes, without anything novel: few-shot personalization and every kind of label shift.

    Local is tested on a client's own test images: all test images of its classes if each class belongs to one client
    (the paper's few-shot experiment), else test images that are divided in the proportions of the training images,
    without overlap. Base is tested on the test images of all classes. Probe classes are left out.

    Raises
    ------
    DataError
        If the source has too little data.
    """
    classes = _known(source)
    tests = {"base": _test_set(_evaluated(source, config), classes)}
    return _task("personalization", source, config, seed, classes, tests, "nothing")


def one_test_set(source: Source, config: TaskConfig, seed: int) -> Task:
    """Apply the global protocol: like personalization, but every client is tested on all test images.

    Local therefore equals Base. The protocol is meant for the shared part, which all evaluations report in addition to
    the clients' models.
    """
    task = personalization(source, config, seed)
    everything = {"base": task.tests["base"].images, "validation": task.validation.images}
    return replace(
        task,
        name="global",
        clients=tuple(replace(client, own=everything) for client in task.clients),
        new_clients=tuple(replace(client, own=everything) for client in task.new_clients),
    )


def cross_data_set(source: Source, config: TaskConfig, seed: int) -> Task:
    """Train on one dataset and test on others, each with its own classes in the softmax.

    Local and Base are as in personalization. Novel is tested on the first of the source's targets, and each other
    target has its own column. Classes of a target and of the source with one name are the same class. A target can
    therefore have other images of the same classes (ImageNet → V2, Sketch, A, R).

    On validation images (config.evaluate_on) there are no targets.

    Raises
    ------
    DataError
        If the source has no targets.
    """
    classes = _known(source)
    tests = {"base": _test_set(_evaluated(source, config), classes)}
    if config.evaluate_on == "validation":
        return _task("cross-data-set", source, config, seed, classes, tests, "nothing")
    if not source.targets:
        raise DataError(
            where="task.targets",
            allowed=f"a list of one or more datasets to test on, in addition to {source.name}",
            got=list(config.targets),
            remedy="Add datasets, for example with --set 'task.targets=[\"oxford_pets\"]'",
        )
    names: dict[str, str] = {}
    for dataset in (source.train, *source.targets.values()):
        for name in dataset.class_names:
            names.setdefault(plain(name), name)
    class_names = tuple(names.values())
    tests["base"] = replace(tests["base"], dataset=tests["base"].dataset.with_classes(class_names))
    for column, dataset in zip(["novel", *list(source.targets)[1:]], source.targets.values(), strict=True):
        own = set(map(plain, dataset.class_names))
        columns = tuple(label for label, name in enumerate(names) if name in own)
        tests[column] = EvaluationSet(dataset.with_classes(class_names), columns, np.arange(len(dataset)))
    task = _task("cross-data-set", source, config, seed, classes, tests, "data sets")
    return replace(task, class_names=class_names)


def leave_one_domain_out(source: Source, config: TaskConfig, seed: int) -> Task:
    """Apply the paper's leave-one-domain-out protocol: one client for each domain but one, which no client trains on.

    Every client has images of its own domain. If several clients share a domain, each domain is divided separately.
    Probe classes are left out. Local is tested on a client's own test images in its domain. Base is tested on all
    classes in all training domains. Novel is tested on the same classes in the held-out domain. No image of that
    domain is in the training or the validation set.

    The number of clients, including new ones, is a multiple of the number of training domains. config.held_out lists
    the held-out domains; several can be held out together, for example two similar styles of drawing. An empty list
    holds out the last domain. With config.evaluate_on = "validation", for choosing settings, the last training domain
    takes the role of the held-out domain, on validation images, so that neither a held-out domain nor a test image is
    used.

    Raises
    ------
    DataError
        If the source has too little data.
    """
    names = source.train.domain_names
    unknown = next((name for name in config.held_out if name not in names), None)
    if unknown is not None:
        raise DataError(
            where="task.held_out",
            allowed="a list of domains of the dataset",
            got=unknown,
            remedy=nearest(unknown, names),
        )
    out = {names.index(name) for name in config.held_out} or {len(names) - 1}
    kept, novel = [i for i in range(len(names)) if i not in out], sorted(out)
    if config.evaluate_on == "validation":
        kept, novel = kept[:-1], kept[-1:]
    if not kept:
        raise DataError(
            f"all domains of {source.name} ({', '.join(names)}) are held out, and none is left to train on",
            where="task.held_out",
            remedy="Hold out fewer domains",
        )
    if config.everybody % len(kept):
        raise DataError(
            where="task.clients",
            allowed=f"a multiple of {len(kept)} (with task.new_clients), because the clients train on the domains"
            f" {', '.join(names[i] for i in kept)}",
            got=config.everybody,
            remedy=f"Use --set task.clients={config.clients - config.everybody % len(kept) or len(kept)}",
        )
    dataset = _evaluated(source, config)
    classes = _known(source)
    tests = {"base": _test_set(dataset, classes, kept), "novel": _test_set(dataset, classes, novel)}
    return _task("leave-one-domain-out", source, config, seed, classes, tests, "domains", kept)


PROTOCOLS: Mapping[str, Callable[[Source, TaskConfig, int], Task]] = {
    "base-to-novel": base_to_novel,
    "personalization": personalization,
    "leave-one-domain-out": leave_one_domain_out,
    "cross-data-set": cross_data_set,
    "global": one_test_set,
}


def _task(
    name: str,
    source: Source,
    config: TaskConfig,
    seed: int,
    base: tuple[int, ...],
    tests: dict[str, EvaluationSet],
    novel: Any,
    kept: Sequence[int] | None = None,
) -> Task:
    """Return a task. `kept`: the training domains of leave-one-domain-out, each of which is divided separately."""
    classes_of = {name: test.classes for name, test in tests.items()}
    check_softmaxes(source.name, classes_of, config.protocol, config.evaluate_on)
    validation = _test_set(source.validation, base, kept)
    domains: Sequence[int | None] = [None] * config.everybody
    if kept is not None:
        domains = [kept[i % len(kept)] for i in range(config.everybody)]
    elif config.domain_per_client:
        domains = deal_domains(len(source.train.domain_names), config.everybody, seed)
    groups = 1 if kept is None else len(kept)  # which are divided separately
    try:
        if config.partition == CLASSES:
            clients = _by_classes(source, config, seed, base, domains, groups)
        else:
            groups = len(set(domains))
            clients = _by_images(source, config, seed, base, domains, {"base": tests["base"], "validation": validation})
    except TooManyClientsError as error:
        raise TooManyClientsError(error.most, config.everybody, error.why, groups, config.new_clients) from error
    _check_own_images(clients, tests["base"], validation)
    return Task(
        name=name,
        class_names=source.class_names,
        base=base,
        train=source.train,
        clients=tuple(clients[: config.clients]),
        tests=tests,
        validation=validation,
        templates=source.templates,
        novel=novel,
        partition=config.partition,
        new_clients=tuple(replace(late, id=late.id - config.clients) for late in clients[config.clients :]),
    )


def _by_classes(
    source: Source, config: TaskConfig, seed: int, base: Sequence[int], domains: Sequence[int | None], among: int
) -> list[Client]:
    """Return clients with classes of their own; `among` domains have the same division of the classes."""
    dealt = deal_classes(base, config.everybody // among, config.classes_per_client, seed, config.class_division)
    clients = []
    for number, domain in enumerate(domains):
        classes = dealt[number // among]
        drawn = [draw_shots(source.train, label, config.shots, seed, domain, config.fewer_shots) for label in classes]
        clients.append(Client(number, classes, np.concatenate(drawn), None if domain is None else (domain,)))
    return clients


def _by_images(
    source: Source,
    config: TaskConfig,
    seed: int,
    base: Sequence[int],
    domains: Sequence[int | None],
    tests: Mapping[str, EvaluationSet],
) -> list[Client]:
    """Return clients with shares of the training images, and of base and validation images in proportion."""
    train, share = source.train, PARTITIONS[config.partition]
    settings = {name: getattr(config, name) for name in signature(share).parameters if name != "pool"}
    if config.partition == NATURAL and config.domain_per_client:
        raise DataError(
            where="task.domain_per_client",
            allowed="false with the partition natural, in which each client keeps all its images",
            got=True,
            remedy="Use --set task.domain_per_client=false",
        )
    clients = []
    for domain in dict.fromkeys(domains):
        members = [number for number, other in enumerate(domains) if other == domain]
        drawn = [draw_shots(train, label, config.shots, seed, domain, config.fewer_shots) for label in base]
        here = () if domain is None else (domain,)
        if not sum(map(len, drawn)):
            raise DataError(
                f"domain {train.domain_names[domain or 0]!r} has no training image",
                where=train.name,
                remedy="Add images, or remove the domain",
            )
        pool = Pool(train, np.concatenate(drawn), len(members), source.superclasses, seed, here)
        held = share(pool, **settings)
        own = {name: _own(test, held, domain, config.partition, pool) for name, test in tests.items()}
        for place, (number, images) in enumerate(zip(members, held, strict=True)):
            whose = train.clients[images[0]] if config.partition == NATURAL and train.clients is not None else None
            client = Client(
                id=number,
                classes=tuple(np.unique(train.labels[images]).tolist()),
                train=images,
                domains=here or None,
                own={name: shares[place] for name, shares in own.items()},
                name=None if whose is None else train.client_names[whose],
            )
            clients.append(client)
    return sorted(clients, key=lambda client: client.id)


def _own(
    test: EvaluationSet, held: Sequence[NDArray[np.int64]], domain: int | None, partition: str, pool: Pool
) -> Sequence[NDArray[np.int64]]:
    """Return each client's own images of a test set."""
    dataset, images = test.dataset, test.images
    if domain is not None:
        images = images[dataset.domains[images] == domain]
    if partition != NATURAL:
        return share_out(dataset, [pool.dataset.labels[own] for own in held], images, pool)
    if dataset.clients is None or dataset.client_names != pool.dataset.client_names:
        raise DataError(
            f"the {dataset.split} split does not say who owns each image",
            where=dataset.name,
            remedy="Add the owners to its table",
        )
    whose = [pool.dataset.clients[own[0]] for own in held if pool.dataset.clients is not None]
    shares = [images[dataset.clients[images] == client] for client in whose]
    for client, images, own in zip(whose, held, shares, strict=True):
        if not len(own):
            larger = sum(len(other) > len(images) for other in held)  # only they remain if there are fewer clients
            raise DataError(
                f"client {dataset.client_names[client]!r} has no {dataset.split} image of a class that is trained on",
                where=dataset.name,
                remedy="Add an image" + (f", or use --set task.clients={larger}" if larger else ""),
            )
    return shares


def _check_own_images(clients: Sequence[Client], *tests: EvaluationSet) -> None:
    """Raise DataError if a client has no image to test one of its classes in one of its domains."""
    needed = [
        (client.id, label, domain)
        for client in clients
        if client.own is None
        for label, domain in product(client.classes, client.domains or ())
    ]
    for test in tests:
        dataset = test.dataset
        held = set(zip(dataset.labels[test.images].tolist(), dataset.domains[test.images].tolist(), strict=True))
        for client, label, domain in needed:
            if (label, domain) not in held:
                raise DataError(
                    f"{dataset.lack(label, domain)}, but client {client} must be tested on this class",
                    where=dataset.name,
                    remedy="Add an image, or remove the class from the domain",
                )


def _known(source: Source) -> tuple[int, ...]:
    """Return the classes that are not probe classes."""
    return tuple(label for label in range(len(source.class_names)) if label not in source.probe)


def _evaluated(source: Source, config: TaskConfig) -> ImageDataset:
    """Return the split to test on."""
    if config.evaluate_on == "validation":
        return source.validation
    if source.test is None:
        raise DataError(
            "the test split was not read",
            where=source.name,
            remedy="Read it, or use --set task.evaluate_on=validation",
        )
    return source.test


def _test_set(dataset: ImageDataset, classes: Sequence[int], domains: Sequence[int] | None = None) -> EvaluationSet:
    """Return the images of some classes in some domains; None means all domains."""
    images = dataset.of_classes(classes)
    where = ""
    if domains is not None:
        images = images[np.isin(dataset.domains[images], domains)]
        where = f" in {', '.join(dataset.domain_names[i] for i in domains)}"
    empty = set(classes) - set(dataset.labels[images].tolist())
    if empty:
        raise DataError(
            f"{dataset.lack(min(empty))}{where}",
            where=dataset.name,
            remedy="Add an image, or remove the class; `fedpgp data check` lists all such classes",
        )
    return EvaluationSet(dataset, tuple(classes), images)


def task_of(task: TaskConfig, source: Source, seed: int) -> Task:
    """Return the task that a section [task] describes, on a source.

    Raises
    ------
    ConfigError
        If a field is set that the protocol and the partition do not use.
    DataError
        If the source has too little data.
    """
    of_partition = {"classes_per_client", "class_division"}
    if task.partition != CLASSES:
        of_partition = set(signature(PARTITIONS[task.partition]).parameters) - {"pool"}
    of_all = {"protocol", "partition", "clients", "new_clients", "shots", "fewer_shots", "evaluate_on"}
    of_all.add("held_out" if task.protocol == "leave-one-domain-out" else "domain_per_client")
    if task.protocol == "cross-data-set":
        of_all.add("targets")
    for field in fields(TaskConfig):
        value = getattr(task, field.name)
        if field.name not in of_partition | of_all and value != getattr(TaskConfig(), field.name):
            raise ConfigError(
                where=f"task.{field.name}",
                allowed=f"unset with the protocol {task.protocol} and the partition {task.partition}, which ignore it",
                got=value,
                remedy="Leave it out",
            )
    return PROTOCOLS[task.protocol](source, task, seed)
