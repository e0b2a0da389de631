"""A task: who holds which images, and what is tested."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.sources import ImageDataset
from fedpgp.errors import DataError


def halves(classes: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The base and the novel classes; the middle class of an odd number is base, as in CoOp's split."""
    base = (len(classes) + 1) // 2
    return tuple(classes[:base]), tuple(classes[base:])


def check_softmaxes(
    where: str, tests: Mapping[str, Sequence[int]], protocol: str, evaluated_on: str = "test", key: str = ""
) -> None:
    """Raise DataError for a test set with one class in the softmax, which any model gets right.

    where: of whose classes they are; tests: the classes of each test set by its name; key: of the config that names
    the classes, if there is one.
    """
    for name, classes in tests.items():
        if len(classes) > 1:
            continue
        needed = {"test": 4, "validation": 7}[evaluated_on] if protocol == "base-to-novel" else 2
        choosing = " to choose settings on validation images" if evaluated_on == "validation" else ""
        remedy = "add classes" + (f" to {key}" if key else "")
        if protocol == "base-to-novel" and evaluated_on == "test":
            remedy += ", or take --set task.protocol=personalization, in which nothing is novel"
        raise DataError(
            f"{where}: {name} has {len(classes)} class{'es' * (len(classes) != 1)} in its softmax, and one is"
            f" always right: task.protocol {protocol} needs at least {needed} classes{choosing}; {remedy}"
        )


@dataclass(frozen=True)
class Client:
    """What one client holds: its classes, and the indices of its images in the training split.

    domains: those of its images, where they are not of all.
    own: its own test images, by the name of the test set: indices into the set's dataset. None where they are all of
    its classes, in its domains.
    name: of whom the images are, where the dataset says so.
    """

    id: int
    classes: tuple[int, ...]
    train: NDArray[np.int64]
    domains: tuple[int, ...] | None = None
    own: Mapping[str, NDArray[np.int64]] | None = None
    name: str | None = None


@dataclass(frozen=True)
class EvaluationSet:
    """Images to classify, and the classes in the softmax.

    classes: indices of class names; images: indices into `dataset`, all of them of those classes.
    """

    dataset: ImageDataset
    classes: tuple[int, ...]
    images: NDArray[np.int64]

    @property
    def targets(self) -> NDArray[np.int64]:
        """[n] the right column of the softmax for each image."""
        column = {label: i for i, label in enumerate(self.classes)}
        return np.array([column[label] for label in self.dataset.labels[self.images]], dtype=np.int64)


@dataclass(frozen=True)
class Task:
    """A protocol applied to a dataset with a seed.

    clients: by id, which is the place in the tuple.
    tests: "base", where something is novel "novel", and others that are reported beside them.
    base: the classes that the clients train on, and the columns of the softmax in training, Local and Base.
    validation: images of the base classes that are neither trained on nor tested.
    templates: hand-written prompts that suit the dataset's images.
    novel: what nobody trains on, and Novel tests; with "nothing" there is no such test set.
    partition: how the training images were shared out.
    new_clients: hold data like the others, and join after training; they are numbered from 0, too.
    """

    name: str
    class_names: tuple[str, ...]
    base: tuple[int, ...]
    train: ImageDataset
    clients: tuple[Client, ...]
    tests: dict[str, EvaluationSet]
    validation: EvaluationSet
    templates: tuple[str, ...] = ("a photo of a {}.",)
    novel: Literal["classes", "domains", "data sets", "nothing"] = "classes"
    partition: str = "classes"
    new_clients: tuple[Client, ...] = ()
