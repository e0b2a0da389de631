"""The task of a client that has its own images, and the task of a server without images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NoReturn

import numpy as np

from fedpgp.data.partition import draw_shots
from fedpgp.data.settings import DataConfig, TaskConfig
from fedpgp.data.sources import ImageDataset, Source
from fedpgp.data.sources.known import TEMPLATE
from fedpgp.data.sources.names import plain
from fedpgp.data.tasks import Client, EvaluationSet, Task, check_softmaxes, halves
from fedpgp.errors import ConfigError, DataError, NamesError, nearest

OWN: Final = "own"  # the partition in which every client has its own images


def classes_of(task: TaskConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the base and the novel classes of task.class_names; raise ConfigError if they are unclear."""
    names, protocol = task.class_names, task.protocol
    if len(names) < 2 or len({plain(name) for name in names}) < len(names):
        raise ConfigError(
            where="task.class_names",
            allowed=f"2 or more different names with the partition {OWN}",
            got=list(names),
            remedy="List the class names of all clients in one order, the same for all clients",
        )
    if protocol == "base-to-novel":
        base, novel = halves(range(len(names)))
        check_softmaxes("the federation", {"base": base, "novel": novel}, protocol, key="task.class_names")
        return base, novel
    if protocol == "personalization":
        return tuple(range(len(names))), ()
    raise ConfigError(
        where="task.protocol",
        allowed=f"base-to-novel or personalization with the partition {OWN}",
        got=protocol,
        remedy="Use --set task.protocol=base-to-novel or --set task.protocol=personalization",
    )


def own_task(data: DataConfig, task: TaskConfig, source: Source, seed: int) -> Task:
    """Return the task of the one client that holds all images of a source.

    The labels are numbered as in task.class_names. Base, and with base-to-novel also Novel, are tested on the classes
    that have test images, with all of their classes in the softmax.

    Raises
    ------
    NamesError
        If the source has a class that task.class_names lacks.
    DataError
        If there are too few images.
    """
    base, _ = classes_of(task)
    source = _renamed(source, task.class_names)
    held = sorted({*base} & {*source.train.labels.tolist()})
    if len(held) < 2:
        raise DataError(
            f"there are training images of {len(held)} of the {len(base)} classes that are trained on, and a client"
            " needs at least 2 classes",
            where=source.name,
            remedy=f"Add images of {', '.join(source.class_names[label] for label in base[:5])}",
        )
    few = task.fewer_shots
    images = np.concatenate([draw_shots(source.train, label, task.shots, seed, at_most=few) for label in held])
    assert source.test is not None, "a node reads the test split"
    tests = {name: _tested(source.test, classes) for name, classes in _tests(task).items()}
    validation = _tested(source.validation, base)
    own = {name: test.dataset.of_classes(held) for name, test in (("base", tests["base"]), ("validation", validation))}
    for name, mine in own.items():
        if not len(mine):
            raise DataError(
                f"there is no {name} image of the client's classes, so Local cannot be tested",
                where=source.name,
                remedy="Add an image of one of these classes to that split",
            )
    client = Client(0, tuple(held), images, own=own)
    return replace(_task(data, task), train=source.train, clients=(client,), tests=tests, validation=validation)


@dataclass(frozen=True)
class Counts:
    """Numbers of images of a client.

    Attributes
    ----------
    examples
        The number of images that the client trains on.
    tests
        The number of images in each test set, by its name.
    """

    examples: int
    tests: Mapping[str, int]


def counts_of(task: Task) -> Counts:
    """Return the numbers of images of a task with one client."""
    return Counts(len(task.clients[0].train), {name: len(test.images) for name, test in task.tests.items()})


def task_elsewhere(data: DataConfig, task: TaskConfig, held: Mapping[int, Counts]) -> Task:
    """Return the task as its server knows it: clients and numbers of images, but no image and no label.

    Parameters
    ----------
    held
        The numbers of images of each client that has reported them.
    """
    ends = np.cumsum([0, *(held[i].examples if i in held else 0 for i in range(task.clients))])
    tests = {
        name: _somewhere(task.class_names, "test", sum(counts.tests.get(name, 0) for counts in held.values()), classes)
        for name, classes in _tests(task).items()
    }
    train = _somewhere(task.class_names, "train", int(ends[-1]), ()).dataset
    clients = tuple(Client(i, (), np.arange(ends[i], ends[i + 1])) for i in range(task.clients))
    return replace(_task(data, task), train=train, clients=clients, tests=tests)


def named_task(class_names: Sequence[str], templates: Sequence[str]) -> Task:
    """Return a task with only its base classes and the hand-written prompts."""
    names, base = tuple(class_names), tuple(range(len(class_names)))
    return Task(
        name="global",
        class_names=names,
        base=base,
        train=_somewhere(names, "train", 0, base).dataset,
        clients=(),
        tests={},
        validation=_somewhere(names, "validation", 0, base),
        templates=tuple(templates),
        novel="nothing",
        partition=OWN,
    )


def _task(data: DataConfig, task: TaskConfig) -> Task:
    """Return the task without images."""
    base, novel = classes_of(task)
    return replace(
        named_task(task.class_names, (data.template or TEMPLATE,)),
        name=task.protocol,
        base=base,
        validation=_somewhere(task.class_names, "validation", 0, base),
        novel="classes" if novel else "nothing",
    )


def _renamed(source: Source, names: Sequence[str]) -> Source:
    """Return the source with the labels that its classes have among the given names."""
    known = set(map(plain, names))
    unknown = [name for name in source.class_names if plain(name) not in known]
    if unknown:
        raise NamesError(
            f"{len(unknown)} of {len(source.class_names)} class names are not among the {len(names)} class names of the"
            f" federation: {', '.join(map(repr, unknown[:5]))}",
            where=source.name,
            remedy=nearest(unknown[0], names),
        )
    return replace(source.changed(lambda dataset: dataset.with_classes(names)), probe=())


def _tests(task: TaskConfig) -> dict[str, tuple[int, ...]]:
    """Return the classes of each test set by its name."""
    return {name: classes for name, classes in zip(("base", "novel"), classes_of(task), strict=True) if classes}


def _tested(dataset: ImageDataset, classes: Sequence[int]) -> EvaluationSet:
    images = dataset.of_classes(classes)
    if not len(images):
        raise DataError(
            f"{dataset.lack(classes[0])}, and neither has any other of the {len(classes)} classes that are tested",
            where=dataset.name,
            remedy="Add images, or use --set task.protocol=personalization, in which nothing is novel",
        )
    return EvaluationSet(dataset, tuple(classes), images)


def _somewhere(names: tuple[str, ...], split: str, count: int, classes: tuple[int, ...]) -> EvaluationSet:
    nothing = np.zeros(count, dtype=np.int64)
    dataset = ImageDataset("the clients' own", split, names, ("",), nothing, nothing, _no_image, f"{split} elsewhere")
    return EvaluationSet(dataset, classes, np.arange(count))


def _no_image(index: int) -> NoReturn:
    raise AssertionError(f"image {index} is on another machine")
