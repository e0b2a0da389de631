"""Images with labels, and what else a source says of them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fedpgp.data.sources.names import plain

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class StoredFeatures:
    """Features of n images that are not here, computed by one image tower.

    values: [n, D] of unit length, in half precision; checkpoint: the name of the tower's checkpoint; encoder: the
    fingerprint of the tower.
    """

    values: Tensor
    checkpoint: str
    encoder: str

    def select(self, images: NDArray[np.int64]) -> "StoredFeatures":
        """The features of some of the images, in the order of the indices."""
        return replace(self, values=self.values[images])


@dataclass(frozen=True)
class ImageDataset:
    """One split of n images.

    labels: [n] index into `class_names`, whose order is that of the source's label file.
    domains: [n] index into `domain_names`; a source without domains has one.
    image: index -> decoded picture; nothing is decoded before it is asked for. It can be pickled, for other processes.
    fingerprint: changes when an image, or the order of the images, does.
    numbers: [n] of the images in the split that they were selected from; None for a whole split. whole: the fingerprint
    of that split; "" for a whole one, which has its own.
    clients: [n] index into `client_names`: whose image it is, where the source says so.
    features: stand in for images that are not here, so that `image` raises DataError; None where the images are here.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    domain_names: tuple[str, ...]
    labels: NDArray[np.int64]
    domains: NDArray[np.int64]
    image: Callable[[int], Image.Image]
    fingerprint: str
    numbers: NDArray[np.int64] | None = None
    whole: str = ""
    clients: NDArray[np.int64] | None = None
    client_names: tuple[str, ...] = ()
    features: StoredFeatures | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def origin(self) -> str:
        """The fingerprint of the whole split that `numbers` count in."""
        return self.whole or self.fingerprint

    def number(self, index: int) -> int:
        """Of an image in the whole split, on which its random crops depend, whatever is selected beside it."""
        return index if self.numbers is None else int(self.numbers[index])

    def numbers_of(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """`number` of several."""
        return images if self.numbers is None else self.numbers[images]

    def describe(self, index: int) -> str:
        """One image in words, for a message, with its file where it has one."""
        place = place_of(self.image, index)
        return (
            f"image {self.number(index)} of the {self.split} split of {self.name}"
            f" (class {self.class_names[self.labels[index]]!r}, {self.domain_names[self.domains[index]]}"
            f"{place and ', '}{place})"
        )

    def lack(self, label: int, domain: int | None = None) -> str:
        """That no image of a class is in the split, or in one of its domains, in words, for a message."""
        where = "" if domain is None else f" in domain {self.domain_names[domain]!r}"
        return f"class {self.class_names[label]!r} of {self.name} has no {self.split} image{where}"

    def select(self, images: NDArray[np.int64]) -> "ImageDataset":
        """The split with these of its images alone, in the order of the indices."""
        return replace(
            self,
            labels=self.labels[images],
            domains=self.domains[images],
            image=SelectedPictures(self.image, images),
            fingerprint=hashlib.sha256(f"{self.fingerprint} {images.tolist()}".encode()).hexdigest(),
            numbers=self.numbers_of(images),
            whole=self.origin,
            clients=None if self.clients is None else self.clients[images],
            features=None if self.features is None else self.features.select(images),
        )

    def with_classes(self, names: Sequence[str]) -> "ImageDataset":
        """The split with other class names, among which each of its own must be, but for case and underscores."""
        place = {plain(name): label for label, name in enumerate(names)}
        labels = np.array([place[plain(name)] for name in self.class_names])
        return replace(self, class_names=tuple(names), labels=labels[self.labels])

    def of_classes(self, classes: Sequence[int]) -> NDArray[np.int64]:
        """The indices of the images of some classes, ascending."""
        return np.flatnonzero(np.isin(self.labels, list(classes)))


@dataclass(frozen=True)
class SelectedPictures:
    """Some of other pictures, in the order of the indices."""

    image: Callable[[int], Image.Image]
    indices: NDArray[np.int64]

    def __call__(self, index: int) -> Image.Image:
        return self.image(int(self.indices[index]))

    def place(self, index: int) -> str:
        return place_of(self.image, int(self.indices[index]))


def place_of(pictures: Callable[[int], Image.Image], index: int) -> str:
    """Where a picture lies, or "" if its pictures cannot say so."""
    return pictures.place(index) if hasattr(pictures, "place") else ""


@dataclass(frozen=True)
class Source:
    """A dataset with its fixed splits.

    test: None where it was not read, so that nothing can touch a test image while settings are chosen.
    probe: classes that the checkpoint never saw by name; they are reported apart and are neither base nor novel.
    templates: hand-written prompts that suit its images, each with {} for the class name.
    superclasses: of each class, a number, where the source has a hierarchy (CIFAR-100's coarse labels).
    targets: test splits of other datasets, by name, for tasks that are tested on those.
    """

    name: str
    train: ImageDataset
    validation: ImageDataset
    test: ImageDataset | None = None
    probe: tuple[int, ...] = ()
    templates: tuple[str, ...] = ("a photo of a {}.",)
    superclasses: tuple[int, ...] | None = None
    targets: Mapping[str, ImageDataset] = field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    def changed(self, change: Callable[[ImageDataset], ImageDataset]) -> "Source":
        """The source after a change of each of its splits; targets stay as they are."""
        test = None if self.test is None else change(self.test)
        return replace(self, train=change(self.train), validation=change(self.validation), test=test)
