"""What a reader finds -> a source: names checked, every image in a split, one `ImageDataset` for each."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fedpgp.data.sources.dataset import SPLITS, ImageDataset, SelectedPictures, Source
from fedpgp.data.sources.names import plain as plain_name
from fedpgp.errors import DataError
from fedpgp.runtime.randomness import generator

if TYPE_CHECKING:
    from fedpgp.data.settings import DataConfig

SEED = 0  # of a division into splits: it belongs to the data, and is the same for every run
TRAIN, VALIDATION, TEST = range(3)
OUTSIDE = re.compile(r"^\s*$|^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)|\x00")  # a path that may lead out of a directory


class Pictures(Protocol):
    """n pictures, none of them decoded before it is asked for. It can be pickled, for other processes."""

    def __call__(self, index: int) -> Image.Image: ...

    def place(self, index: int) -> str:
        """Where one of them lies, for a message."""
        ...

    def fingerprint(self, images: NDArray[np.int64]) -> str:
        """Changes when one of these pictures, or their order, does."""
        ...


@dataclass(frozen=True)
class Listing:
    """All n images that a reader found, in a fixed order.

    name: of the data set, for tables and messages; where: what a message names as the place of a fault.
    splits: [n] 0 train, 1 validation, 2 test; None where the source has none. ignored: what else lies there -> how
    much. The rest as in `ImageDataset` and `Source`.
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
    probe: tuple[int, ...] = ()
    superclasses: tuple[int, ...] | None = None
    ignored: Mapping[str, int] = field(default_factory=dict)


def to_source(found: Listing, data: "DataConfig", splits: Sequence[str] = SPLITS) -> Source:
    """The source that a listing describes; raises DataError for one that cannot be used.

    splits: those to read, as in `load_source`.
    """
    check_names(found)
    counts = np.bincount(found.labels, minlength=len(found.class_names))
    if not counts.all():
        empty = [found.class_names[label] for label in np.flatnonzero(counts == 0)]
        raise DataError(
            f"{found.where}: {len(empty)} of {len(found.class_names)} classes have no image, the first is {empty[0]!r}:"
            " add images, or remove the class: its folder, or its line in the file of names"
        )
    of_split = divided(found, data)

    def split(name: str) -> ImageDataset:
        return _dataset(found, name, np.flatnonzero(of_split == SPLITS.index(name)))

    return Source(
        name=found.name,
        train=split("train"),
        validation=split("validation"),
        test=split("test") if "test" in splits else None,
        probe=found.probe,
        templates=(data.template,) if data.template else found.templates,
        superclasses=found.superclasses,
    )


def to_target(found: Listing) -> ImageDataset:
    """What is tested of a data set that nobody trains on: its test split, else its validation, else all of it.

    Raises DataError for class names that cannot be told apart.
    """
    check_names(found)
    images = np.arange(len(found.labels))
    for split in (TEST, VALIDATION):
        if found.splits is not None and (found.splits == split).any():
            images = np.flatnonzero(found.splits == split)
            break
    return _dataset(found, "test", images)


def _dataset(found: Listing, split: str, images: NDArray[np.int64]) -> ImageDataset:
    return ImageDataset(
        name=found.name,
        split=split,
        class_names=found.class_names,
        domain_names=found.domain_names,
        labels=found.labels[images],
        domains=np.zeros(len(images), dtype=np.int64) if found.domains is None else found.domains[images],
        image=SelectedPictures(found.pictures, images),
        fingerprint=found.pictures.fingerprint(images),
        clients=None if found.clients is None else found.clients[images],
        client_names=found.client_names,
    )


def check_names(found: Listing) -> None:
    """Raises DataError for class names that are missing, or the same but for case, spaces and underscores."""
    seen: dict[str, str] = {}
    for label, name in enumerate(found.class_names):
        plain = plain_name(name)
        if not plain:
            raise DataError(f"{found.where}: class {label} has no name: give each one with data.names")
        if plain in seen:
            raise DataError(
                f"{found.where}: classes {seen[plain]!r} and {name!r} are the same name to CLIP: join them, or tell"
                " them apart with data.names"
            )
        seen[plain] = name


def divided(found: Listing, data: "DataConfig") -> NDArray[np.int64]:
    """[n] the split of every image: the source's own, and what it lacks drawn from it.

    Without any split, shares of every class, in every domain and of every client, become test and validation. Without
    validation, that is drawn from train; a source with train and validation alone is tested on the latter, as CoOp does
    with ImageNet. The draw depends on the listing alone. Raises DataError where a source has splits and train is empty.
    """
    n = len(found.labels)
    of_split = np.full(n, TRAIN) if found.splits is None else found.splits.copy()
    have = set(np.unique(of_split).tolist())
    if TRAIN not in have:
        raise DataError(f"{found.where}: no image is in the train split: name one, or none at all to have it divided")
    if VALIDATION in have and TEST not in have:
        of_split[of_split == VALIDATION] = TEST
        have = {TRAIN, TEST}
    missing = [(split, share) for split, share in ((TEST, data.test_share), (VALIDATION, data.validation_share))]
    for split, share in missing:
        if split not in have:
            of_split[_share(found, of_split == TRAIN, share, split)] = split
    return of_split


def _share(found: Listing, among: NDArray[np.bool_], share: float, purpose: int) -> NDArray[np.int64]:
    """A share of some images, of every class, domain and client: at least one of two or more, never all.

    A client that would have none, since each of its images is of another class, gets one, if its class keeps others.
    """
    import pandas

    images = np.flatnonzero(among)
    shuffled = images[torch.randperm(len(images), generator=generator(SEED, "split", purpose)).numpy()]
    keys = [key[shuffled] for key in (found.labels, found.domains, found.clients) if key is not None]
    groups = pandas.Series(shuffled).groupby(keys)
    sizes = groups.transform("size").to_numpy()
    wanted = np.minimum(np.maximum(1, np.rint(share * sizes)), sizes - 1)
    taken = shuffled[groups.cumcount().to_numpy() < wanted]
    if found.clients is None:
        return taken
    have, given = (np.bincount(found.clients[which], minlength=len(found.client_names)) for which in (images, taken))
    lacking = set(np.flatnonzero((have > 1) & (given == 0)).tolist())
    of_class, gone = (np.bincount(found.labels[which], minlength=len(found.class_names)) for which in (images, taken))
    left = of_class - gone
    more = []
    for image in shuffled[np.isin(found.clients[shuffled], list(lacking))].tolist():
        client, label = found.clients[image], found.labels[image]
        if client in lacking and left[label] > 1:
            lacking.remove(client)
            left[label] -= 1
            more.append(image)
    return np.concatenate([taken, np.array(more, dtype=np.int64)])
