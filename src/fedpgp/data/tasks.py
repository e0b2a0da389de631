"""Protocols: which classes and images each client trains on, and on what it is tested."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.partition import deal_classes, draw_shots
from fedpgp.data.sources import ImageDataset, Source
from fedpgp.errors import DataError


@dataclass(frozen=True)
class Client:
    """What one client holds: its classes, and the indices of its images in the training split."""

    id: int
    classes: tuple[int, ...]
    train: NDArray[np.int64]
    domains: tuple[int, ...] | None = None


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
    """A protocol applied to a data set with a seed.

    clients: by id, which is the place in the tuple.
    base: the classes that the clients train on, and the columns of the softmax in training, Local and Base.
    validation: images of the base classes that are neither trained on nor tested.
    templates: hand-written prompts that suit the data set's images.
    """

    name: str
    class_names: tuple[str, ...]
    base: tuple[int, ...]
    train: ImageDataset
    clients: tuple[Client, ...]
    tests: dict[str, EvaluationSet]
    validation: EvaluationSet
    templates: tuple[str, ...] = ("a photo of a {}.",)
    novel: Literal["classes", "domains"] = "classes"


def base_to_novel(
    source: Source, *, clients: int, classes_per_client: int | None, shots: int, seed: int, evaluate_on: str = "test"
) -> Task:
    """The paper's base-to-novel protocol: the first half of the classes is base, the second half novel.

    Base classes are dealt out to the clients without overlap; each class has `shots` training images. Base is tested on
    all base classes; Novel on the novel classes with only their names in the softmax; Unseen, where the source has
    probe classes, on those, likewise.

    evaluate_on: "test", or "validation" for choosing settings: the same protocol within the base classes (their first
    half is base, their second half novel) on validation images, so that neither a novel class nor a test image is used.
    Raises DataError if the data do not suffice.
    """
    classes = [label for label in range(len(source.class_names)) if label not in source.probe]
    dataset, probe = source.test, source.probe
    if evaluate_on == "validation":
        classes, dataset, probe = classes[: _half(classes)], source.validation, ()
    base, novel = tuple(classes[: _half(classes)]), tuple(classes[_half(classes) :])
    if not novel:
        raise DataError(f"base-to-novel needs at least 2 classes, half of them novel; {source.name} has {len(classes)}")
    tests = {"base": _test_set(dataset, base), "novel": _test_set(dataset, novel)}
    if probe:
        tests["unseen"] = _test_set(dataset, probe)
    return Task(
        name="base-to-novel",
        class_names=source.class_names,
        base=base,
        train=source.train,
        clients=tuple(
            Client(i, dealt, np.concatenate([draw_shots(source.train, label, shots, seed) for label in dealt]))
            for i, dealt in enumerate(deal_classes(base, clients, classes_per_client, seed))
        ),
        tests=tests,
        validation=_test_set(source.validation, base),
        templates=source.templates,
    )


def _half(classes: Sequence[int]) -> int:
    """The middle class of an odd number is base, as in CoOp's split."""
    return (len(classes) + 1) // 2


def _test_set(dataset: ImageDataset, classes: Sequence[int]) -> EvaluationSet:
    images = dataset.of_classes(classes)
    empty = set(classes) - set(dataset.labels[images].tolist())
    if empty:
        raise DataError(f"class {dataset.class_names[min(empty)]!r} of {dataset.name} has no {dataset.split} image")
    return EvaluationSet(dataset, tuple(classes), images)
