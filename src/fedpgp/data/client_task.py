"""The task of a client whose images are its own, and that of a server which has none."""

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

OWN: Final = "own"  # the partition: every client's images are its own


def classes_of(task: TaskConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The base and the novel classes of task.class_names; raises ConfigError where they cannot be told."""
    names, protocol = task.class_names, task.protocol
    if len(names) < 2 or len({plain(name) for name in names}) < len(names):
        raise ConfigError(
            f"task.class_names must be 2 or more different names with the partition {OWN}, got {list(names)}: name the"
            " classes of all clients, in the order that all of them shall have"
        )
    if protocol == "base-to-novel":
        base, novel = halves(range(len(names)))
        check_softmaxes("the federation", {"base": base, "novel": novel}, protocol, key="task.class_names")
        return base, novel
    if protocol == "personalization":
        return tuple(range(len(names))), ()
    raise ConfigError(f"task.protocol must be base-to-novel or personalization with partition {OWN}, got {protocol!r}")


def own_task(data: DataConfig, task: TaskConfig, source: Source, seed: int) -> Task:
    """The task of the one client that holds all images of a source; its labels go by the names of task.class_names.

    Base, and with base-to-novel Novel, are tested on those of the classes that it has test images of, with all of them
    in the softmax. Raises NamesError for a class that task.class_names has not, DataError where images are too few.
    """
    base, _ = classes_of(task)
    source = _renamed(source, task.class_names)
    held = sorted({*base} & {*source.train.labels.tolist()})
    if len(held) < 2:
        raise DataError(
            f"{source.name} has training images of {len(held)} of the {len(base)} classes that are trained on, and a"
            f" client needs 2: add images of {', '.join(source.class_names[label] for label in base[:5])}"
        )
    few = task.fewer_shots
    images = np.concatenate([draw_shots(source.train, label, task.shots, seed, at_most=few) for label in held])
    assert source.test is not None, "a node reads the test split"
    tests = {name: _tested(source.test, classes) for name, classes in _tests(task).items()}
    validation = _tested(source.validation, base)
    own = {name: test.dataset.of_classes(held) for name, test in (("base", tests["base"]), ("validation", validation))}
    for name, mine in own.items():
        if not len(mine):
            raise DataError(f"{source.name} has no image of its classes to test Local on ({name}): add some")
    client = Client(0, tuple(held), images, own=own)
    return replace(_task(data, task), train=source.train, clients=(client,), tests=tests, validation=validation)


@dataclass(frozen=True)
class Counts:
    """Of a client's images, how many it trains on, and how many are in each test set."""

    examples: int
    tests: Mapping[str, int]


def counts_of(task: Task) -> Counts:
    """Of a task with one client."""
    return Counts(len(task.clients[0].train), {name: len(test.images) for name, test in task.tests.items()})


def task_elsewhere(data: DataConfig, task: TaskConfig, held: Mapping[int, Counts]) -> Task:
    """The task as its server knows it: who takes part, and how many images are where; of no image even the label.

    held: of those clients that have said so.
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
    """A task of which nothing is known but its base classes and the hand-written prompts."""
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
    """The task without an image."""
    base, novel = classes_of(task)
    return replace(
        named_task(task.class_names, (data.template or TEMPLATE,)),
        name=task.protocol,
        base=base,
        validation=_somewhere(task.class_names, "validation", 0, base),
        novel="classes" if novel else "nothing",
    )


def _renamed(source: Source, names: Sequence[str]) -> Source:
    """The source with the labels that its classes have among the given names."""
    known = set(map(plain, names))
    unknown = [name for name in source.class_names if plain(name) not in known]
    if unknown:
        raise NamesError(
            f"{len(unknown)} of {len(source.class_names)} class names are not among the {len(names)} of the federation:"
            f" {', '.join(map(repr, unknown[:5]))}; {nearest(unknown[0], names)}"
        )
    return replace(source.changed(lambda dataset: dataset.with_classes(names)), probe=())


def _tests(task: TaskConfig) -> dict[str, tuple[int, ...]]:
    """The classes of each test set by its name."""
    return {name: classes for name, classes in zip(("base", "novel"), classes_of(task), strict=True) if classes}


def _tested(dataset: ImageDataset, classes: Sequence[int]) -> EvaluationSet:
    images = dataset.of_classes(classes)
    if not len(images):
        raise DataError(
            f"{dataset.lack(classes[0])}, nor has any other of the {len(classes)} classes that are tested: add some, or"
            " take task.protocol=personalization, in which nothing is novel"
        )
    return EvaluationSet(dataset, tuple(classes), images)


def _somewhere(names: tuple[str, ...], split: str, count: int, classes: tuple[int, ...]) -> EvaluationSet:
    nothing = np.zeros(count, dtype=np.int64)
    dataset = ImageDataset("the clients' own", split, names, ("",), nothing, nothing, _no_image, f"{split} elsewhere")
    return EvaluationSet(dataset, classes, np.arange(count))


def _no_image(index: int) -> NoReturn:
    raise AssertionError(f"image {index} is on another machine")
