"""Images with labels, and other facts about them."""

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
    """Features of n images that are not available, computed by one image tower.

    Attributes
    ----------
    values
        [n, D] of unit length, in half precision.
    checkpoint
        The name of the tower's checkpoint.
    encoder
        The fingerprint of the tower.
    """

    values: Tensor
    checkpoint: str
    encoder: str

    def select(self, images: NDArray[np.int64]) -> "StoredFeatures":
        """Return the features of some of the images, in the order of the indices."""
        return replace(self, values=self.values[images])


@dataclass(frozen=True)
class ImageDataset:
    """One split of n images.

    Attributes
    ----------
    name
        The name of the dataset.
    split
        The name of the split.
    class_names
        The class names.
    domain_names
        The domain names.
    labels
        [n] indices into `class_names`, whose order is the order of the source's label file.
    domains
        [n] indices into `domain_names`; a source without domains has one domain.
    image
        A function from an index to the picture, which is decoded when the function is called. It can be pickled for
        other processes.
    fingerprint
        A text that changes if an image or the order of the images changes.
    numbers
        [n] the indices of the images in the split that they were selected from; None for a whole split.
    whole
        The fingerprint of that split; "" for a whole split, which has its own.
    clients
        [n] indices into `client_names`, the owner of each image, if the source has owners.
    client_names
        The names of the owners.
    features
        Features that replace images that are not available, so that `image` raises DataError; None if the images are
        available.
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
        """The fingerprint of the whole split that `numbers` refer to."""
        return self.whole or self.fingerprint

    def number(self, index: int) -> int:
        """Return the index of an image in the whole split, which determines its random crops in any selection."""
        return index if self.numbers is None else int(self.numbers[index])

    def numbers_of(self, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return `number` of several images."""
        return images if self.numbers is None else self.numbers[images]

    def describe(self, index: int) -> str:
        """Describe one image for a message, with its file if it has one."""
        place = place_of(self.image, index)
        return (
            f"image {self.number(index)} of the {self.split} split of {self.name}"
            f" (class {self.class_names[self.labels[index]]!r}, {self.domain_names[self.domains[index]]}"
            f"{place and ', '}{place})"
        )

    def lack(self, label: int, domain: int | None = None) -> str:
        """Return a clause saying that a class has no image in the split, or in one of its domains."""
        where = "" if domain is None else f" in domain {self.domain_names[domain]!r}"
        return f"class {self.class_names[label]!r} has no {self.split} image{where}"

    def select(self, images: NDArray[np.int64]) -> "ImageDataset":
        """Return the split with only these images, in the order of the indices."""
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
        """Return the split with other class names.

        Each of its own names must be among them, up to case and underscores.
        """
        place = {plain(name): label for label, name in enumerate(names)}
        labels = np.array([place[plain(name)] for name in self.class_names])
        return replace(self, class_names=tuple(names), labels=labels[self.labels])

    def of_classes(self, classes: Sequence[int]) -> NDArray[np.int64]:
        """Return the indices of the images of some classes, ascending."""
        return np.flatnonzero(np.isin(self.labels, list(classes)))


@dataclass(frozen=True)
class SelectedPictures:
    """A selection of pictures, in the order of the indices."""

    image: Callable[[int], Image.Image]
    indices: NDArray[np.int64]

    def __call__(self, index: int) -> Image.Image:
        return self.image(int(self.indices[index]))

    def place(self, index: int) -> str:
        return place_of(self.image, int(self.indices[index]))

    def name(self, index: int) -> str:
        return name_of(self.image, int(self.indices[index]))


def place_of(pictures: Callable[[int], Image.Image], index: int) -> str:
    """Return the place of a picture, or "" if it has none."""
    return pictures.place(index) if hasattr(pictures, "place") else ""


def name_of(pictures: Callable[[int], Image.Image], index: int) -> str:
    """Return the file of a picture; the place, or the index, of a picture that has no file of its own."""
    return pictures.name(index) if hasattr(pictures, "name") else place_of(pictures, index) or f"image {index}"


@dataclass(frozen=True)
class Source:
    """A dataset with its fixed splits.

    Attributes
    ----------
    name
        The name of the dataset.
    train
        The training split.
    validation
        The validation split.
    test
        The test split; None if it was not read, so that no test image is touched while settings are chosen.
    probe
        Classes whose names the checkpoint never saw. They are reported separately and are neither base nor novel.
    templates
        Hand-written prompts for its images, each with {} for the class name.
    superclasses
        The number of the superclass of each class, if the source has a hierarchy (CIFAR-100's coarse labels).
    targets
        Test splits of other datasets by name, for tasks that are tested on these.
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
        """Return the source with each of its splits changed; targets stay as they are."""
        test = None if self.test is None else change(self.test)
        return replace(self, train=change(self.train), validation=change(self.validation), test=test)
