"""A task: which client holds which images, and what is tested."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.sources import ImageDataset
from fedpgp.errors import DataError


def halves(classes: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the base and the novel classes; the middle class of an odd number is base, as in CoOp's split."""
    base = (len(classes) + 1) // 2
    return tuple(classes[:base]), tuple(classes[base:])


def check_softmaxes(
    where: str, tests: Mapping[str, Sequence[int]], protocol: str, evaluated_on: str = "test", key: str = ""
) -> None:
    """Raise DataError if a test set has only one class in the softmax, so that any model is right.

    Parameters
    ----------
    where
        The dataset or federation that has the classes.
    tests
        The classes of each test set, by its name.
    protocol
        The value of task.protocol.
    evaluated_on
        The value of task.evaluate_on.
    key
        The config key that lists the classes, if there is one.
    """
    for name, classes in tests.items():
        if len(classes) > 1:
            continue
        needed = {"test": 4, "validation": 7}[evaluated_on] if protocol == "base-to-novel" else 2
        choosing = " to choose settings on validation images" if evaluated_on == "validation" else ""
        remedy = "Add classes" + (f" to {key}" if key else "")
        if protocol == "base-to-novel" and evaluated_on == "test":
            remedy += ", or use --set task.protocol=personalization, in which nothing is novel"
        raise DataError(
            f"{name} has {len(classes)} class{'es' * (len(classes) != 1)} in its softmax, so every prediction is right;"
            f" task.protocol {protocol} needs at least {needed} classes{choosing}",
            where=where,
            remedy=remedy,
        )


@dataclass(frozen=True)
class Client:
    """The classes and images of one client.

    Attributes
    ----------
    id
        The number of the client.
    classes
        The classes of its training images.
    train
        The indices of its images in the training split.
    domains
        The domains of its images; None if they come from all domains.
    own
        Its own test images by the name of the test set: indices into the dataset of the test set. None if they are all
        test images of its classes in its domains.
    name
        The owner of the images, if the dataset has owners.
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

    Attributes
    ----------
    dataset
        The dataset of the images.
    classes
        Indices of class names.
    images
        Indices into `dataset`; all of these images belong to `classes`.
    """

    dataset: ImageDataset
    classes: tuple[int, ...]
    images: NDArray[np.int64]

    @property
    def targets(self) -> NDArray[np.int64]:
        """[n] the correct column of the softmax for each image."""
        column = {label: i for i, label in enumerate(self.classes)}
        return np.array([column[label] for label in self.dataset.labels[self.images]], dtype=np.int64)


@dataclass(frozen=True)
class Task:
    """A protocol applied to a dataset with a seed.

    Attributes
    ----------
    name
        The protocol.
    class_names
        The class names.
    base
        The classes that the clients train on: the columns of the softmax in training, Local and Base.
    train
        The training split.
    clients
        The clients; the id of a client is its index.
    tests
        "base", "novel" if something is novel, and other test sets that are reported with these.
    validation
        Images of the base classes that are neither trained on nor tested.
    templates
        Hand-written prompts for the images of the dataset.
    novel
        What no client trains on and Novel tests. With "nothing" there is no Novel test set.
    partition
        The division of the training images among the clients.
    new_clients
        Clients that have data like the others and join after training. They are also numbered from 0.
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
