"""Turn the images that a reader found into a source: check names, and give every image a split."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fedpgp.data.settings import DataConfig
from fedpgp.data.sources.dataset import SPLITS, ImageDataset, SelectedPictures, Source, StoredFeatures, name_of
from fedpgp.data.sources.names import is_text
from fedpgp.data.sources.names import plain as plain_name
from fedpgp.errors import DataError, shown
from fedpgp.runtime.randomness import generator

SEED = 0  # seed of the division into splits, which is part of the data and the same in every run
TRAIN, VALIDATION, TEST = range(3)
UNLABELLED = ("row without a label", "image without a label")  # kinds of `Listing.ignored`
OUTSIDE = re.compile(r"^\s*$|^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)|\x00")  # a path that may lead out of a directory


class Pictures(Protocol):
    """A sequence of n pictures that are decoded on demand.

    Objects can be pickled for other processes.
    """

    def __call__(self, index: int) -> Image.Image: ...

    def place(self, index: int) -> str:
        """Return the place of a picture, for a message."""
        ...

    def fingerprint(self, images: NDArray[np.int64]) -> str:
        """Return a text that changes if one of these pictures or their order changes."""
        ...


@dataclass(frozen=True)
class Listing:
    """All n images that a reader found, in a fixed order.

    The other attributes are as in `ImageDataset` and `Source`.

    Attributes
    ----------
    name
        The name of the dataset, for tables and messages.
    where
        The place of a fault, for messages.
    splits
        [n] 0 for train, 1 for validation, 2 for test; None if the source has no splits.
    ignored
        The numbers of other files or rows, by their kind.
    """

    name: str
    where: str
    pictures: Pictures
    class_names: tuple[str, ...]
    labels: NDArray[np.int64]
    splits: NDArray[np.int64] | None = None
    domain_names: tuple[str, ...] = ("all",)
    domains: NDArray[np.int64] | None = None
    client_names: tuple[str, ...] = ()
    clients: NDArray[np.int64] | None = None
    templates: tuple[str, ...] = ("a photo of a {}.",)
    superclasses: tuple[int, ...] | None = None
    ignored: Mapping[str, int] = field(default_factory=dict)
    features: StoredFeatures | None = None

    def without_unused(self) -> "Listing":
        """Return the listing without classes that have no image."""
        used, labels = np.unique(self.labels, return_inverse=True)
        above = None if self.superclasses is None else tuple(self.superclasses[label] for label in used)
        names = tuple(self.class_names[label] for label in used)
        unused = len(self.class_names) - len(names)
        ignored = {**self.ignored, **({"class without an image": unused} if unused else {})}
        return replace(self, class_names=names, labels=labels, superclasses=above, ignored=ignored)


@dataclass(frozen=True)
class ChosenPictures:
    """A selection of pictures, in the order of the rows."""

    pictures: Pictures
    rows: NDArray[np.int64]

    def __call__(self, index: int) -> Image.Image:
        return self.pictures(int(self.rows[index]))

    def place(self, index: int) -> str:
        return self.pictures.place(int(self.rows[index]))

    def name(self, index: int) -> str:
        return name_of(self.pictures, int(self.rows[index]))

    def fingerprint(self, images: NDArray[np.int64]) -> str:
        return self.pictures.fingerprint(self.rows[images])


def to_source(listing: Listing, data: DataConfig, splits: Sequence[str] = SPLITS) -> Source:
    """Return the source that a listing describes.

    Parameters
    ----------
    listing
        All images.
    data
        The section [data] of the config.
    splits
        The splits to read, as in `load_source`.

    Raises
    ------
    DataError
        If the listing cannot be used.
    """
    check_names(listing)
    counts = np.bincount(listing.labels, minlength=len(listing.class_names))
    if not counts.all():
        empty = [listing.class_names[label] for label in np.flatnonzero(counts == 0)]
        raise DataError(
            f"{len(empty)} of {len(listing.class_names)} classes have no image, starting with {empty[0]!r}",
            where=listing.where,
            remedy="Add images, or leave such classes out with --set data.drop_unused_classes=true",
        )
    of_split = divided(listing, data)

    def split(name: str) -> ImageDataset:
        return _dataset(listing, name, np.flatnonzero(of_split == SPLITS.index(name)))

    return Source(
        name=listing.name,
        train=split("train"),
        validation=split("validation"),
        test=split("test") if "test" in splits else None,
        templates=(data.template,) if data.template else listing.templates,
        superclasses=listing.superclasses,
    )


def to_target(listing: Listing) -> ImageDataset:
    """Return the images to test of another dataset: its test split, else its validation split, else all images.

    Raises
    ------
    DataError
        If two class names cannot be distinguished.
    """
    check_names(listing)
    images = np.arange(len(listing.labels))
    for split in (TEST, VALIDATION):
        if listing.splits is not None and (listing.splits == split).any():
            images = np.flatnonzero(listing.splits == split)
            break
    return _dataset(listing, "test", images)


def _dataset(listing: Listing, split: str, images: NDArray[np.int64]) -> ImageDataset:
    return ImageDataset(
        name=listing.name,
        split=split,
        class_names=listing.class_names,
        domain_names=listing.domain_names,
        labels=listing.labels[images],
        domains=np.zeros(len(images), dtype=np.int64) if listing.domains is None else listing.domains[images],
        image=SelectedPictures(listing.pictures, images),
        fingerprint=listing.pictures.fingerprint(images),
        clients=None if listing.clients is None else listing.clients[images],
        client_names=listing.client_names,
        features=None if listing.features is None else listing.features.select(images),
    )


def check_names(listing: Listing) -> None:
    """Raise DataError for names that are not text, missing class names, and class names that are equal for CLIP.

    Names are equal up to case, spaces and underscores.
    """
    for kind, names in (("class", listing.class_names), ("domain", listing.domain_names)):
        wrong = next((name for name in names if not is_text(name)), None)
        if wrong is not None:
            raise DataError(
                f"the {kind} name '{shown(wrong)}' is not text in UTF-8 without control characters",
                where=listing.where,
                remedy="Rename its folder, or correct it in the table",
            )
    seen: dict[str, str] = {}
    for label, name in enumerate(listing.class_names):
        plain = plain_name(name)
        if not plain:
            raise DataError(
                f"class {label} has no name",
                where=listing.where,
                remedy="Name all classes in a file, and set data.names to it",
            )
        if plain in seen:
            raise DataError(
                f"classes {seen[plain]!r} and {name!r} have the same name for CLIP",
                where=listing.where,
                remedy="Merge them, or give them different names with data.names",
            )
        seen[plain] = name


def divided(listing: Listing, data: DataConfig) -> NDArray[np.int64]:
    """Return [n] the split of every image: the split of the source, or a drawn one if the source lacks splits.

    Without any split, shares of every class, in every domain and of every client, become test and validation. If only
    validation is missing, it is drawn from train. A source with only train and validation is tested on validation, as
    CoOp does with ImageNet. The draw depends only on the listing.

    Raises
    ------
    DataError
        If a source has splits but an empty train split.
    """
    n = len(listing.labels)
    of_split = np.full(n, TRAIN) if listing.splits is None else listing.splits.copy()
    have = set(np.unique(of_split).tolist())
    if TRAIN not in have:
        raise DataError(
            "no image is in the train split",
            where=listing.where,
            remedy="Add a train split, or remove all splits, so that fedpgp divides the images",
        )
    if VALIDATION in have and TEST not in have:
        of_split[of_split == VALIDATION] = TEST
        have = {TRAIN, TEST}
    for split, share in ((TEST, data.test_share), (VALIDATION, data.validation_share)):
        if split not in have:
            of_split[_share(listing, of_split == TRAIN, share, split)] = split
    return of_split


def _share(listing: Listing, among: NDArray[np.bool_], share: float, purpose: int) -> NDArray[np.int64]:
    """Return a share of some images from every class, domain and client: at least one of two or more, never all.

    A client whose images all have different classes would get none. It gets one if the class has other images left.
    """
    images = np.flatnonzero(among)
    shuffled = images[torch.randperm(len(images), generator=generator(SEED, "split", purpose)).numpy()]
    keys = [key[shuffled] for key in (listing.labels, listing.domains, listing.clients) if key is not None]
    order = np.lexsort(keys)
    together = np.stack(keys)[:, order]
    starts = np.flatnonzero(np.r_[True, (together[:, 1:] != together[:, :-1]).any(0)])
    sizes = np.diff(np.r_[starts, len(order)])
    wanted = np.minimum(np.maximum(1, np.rint(share * sizes)), sizes - 1)
    place = np.arange(len(order)) - np.repeat(starts, sizes)
    taken = shuffled[order][place < np.repeat(wanted, sizes)]
    if listing.clients is None:
        return taken
    clients, labels = listing.clients, listing.labels
    have, given = (np.bincount(clients[which], minlength=len(listing.client_names)) for which in (images, taken))
    lacking = set(np.flatnonzero((have > 1) & (given == 0)).tolist())
    left = np.bincount(labels[np.setdiff1d(images, taken)], minlength=len(listing.class_names))
    more = []
    for image in shuffled[np.isin(clients[shuffled], list(lacking))].tolist():
        client, label = clients[image], labels[image]
        if client in lacking and left[label] > 1:
            lacking.remove(client)
            left[label] -= 1
            more.append(image)
    return np.concatenate([taken, np.array(more, dtype=np.int64)])
