"""Where images come from -> `ImageDataset`: images, labels, class names and domains."""

import csv
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedpgp import assets
from fedpgp.errors import DataError, nearest

EMBEDDED = "pictograms"
STYLES = ("noto", "twemoji", "openmoji", "fluent-emoji", "fluent-emoji-flat", "fxemoji")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class ImageDataset:
    """One split of n images.

    labels: [n] index into `class_names`, whose order is that of the source's label file.
    domains: [n] index into `domain_names`; a source without domains has one.
    image: index -> decoded picture; nothing is decoded before it is asked for. It can be pickled, for other processes.
    fingerprint: changes when an image, or the order of the images, does.
    numbers: [n] of the images in the split that they were selected from; None for a whole split.
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

    def __len__(self) -> int:
        return len(self.labels)

    def number(self, index: int) -> int:
        """Of an image in the whole split, on which its random crops depend, whatever is selected beside it."""
        return index if self.numbers is None else int(self.numbers[index])

    def describe(self, index: int) -> str:
        """One image in words, for a message."""
        return (
            f"image {self.number(index)} of the {self.split} split of {self.name}"
            f" (class {self.class_names[self.labels[index]]!r}, {self.domain_names[self.domains[index]]})"
        )

    def select(self, images: NDArray[np.int64]) -> "ImageDataset":
        """The split with these of its images alone, in the order of the indices."""
        return replace(
            self,
            labels=self.labels[images],
            domains=self.domains[images],
            image=_Selected(self.image, images),
            fingerprint=hashlib.sha256(f"{self.fingerprint} {images.tolist()}".encode()).hexdigest(),
            numbers=images if self.numbers is None else self.numbers[images],
        )

    def of_classes(self, classes: Sequence[int]) -> NDArray[np.int64]:
        """The indices of the images of some classes, ascending."""
        return np.flatnonzero(np.isin(self.labels, list(classes)))


@dataclass(frozen=True)
class _Files:
    """Decodes images from the bytes of their files."""

    contents: Sequence[bytes]

    def __call__(self, index: int) -> Image.Image:
        return Image.open(io.BytesIO(self.contents[index])).convert("RGB")


@dataclass(frozen=True)
class _Selected:
    image: Callable[[int], Image.Image]
    indices: NDArray[np.int64]

    def __call__(self, index: int) -> Image.Image:
        return self.image(int(self.indices[index]))


@dataclass(frozen=True)
class Source:
    """A data set with its fixed splits.

    test: None where it was not read, so that nothing can touch a test image while settings are chosen.
    probe: classes that the checkpoint never saw by name; they are reported apart and are neither base nor novel.
    templates: hand-written prompts that suit its images, each with {} for the class name.
    """

    name: str
    train: ImageDataset
    validation: ImageDataset
    test: ImageDataset | None = None
    probe: tuple[int, ...] = ()
    templates: tuple[str, ...] = ("a photo of a {}.",)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names


def load_source(name: str, splits: Sequence[str] = SPLITS) -> Source:
    """The data set of a name; raises DataError for one that is unknown or damaged.

    splits: those to read; the others may be missing, and of them only "test" may be left out.
    """
    if name != EMBEDDED:
        raise DataError(f"data.source must be the name of a data set, got {name!r}; {nearest(name, [EMBEDDED])}")
    directory = assets.verified(EMBEDDED, [f"{split}.parquet" for split in SPLITS if split not in splits])
    with (directory / "classes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = tuple(row["name"] for row in rows)
    read = {split: _read_pictograms(split, names) for split in splits}
    return Source(
        name,
        **read,
        probe=tuple(i for i, row in enumerate(rows) if row["split"] == "unseen"),
        templates=("an icon of a {}.",),
    )


def _read_pictograms(split: str, class_names: tuple[str, ...]) -> ImageDataset:
    import pyarrow.parquet as parquet

    pictures: list[bytes] = []
    labels: list[int] = []
    domains: list[int] = []
    for domain, style in enumerate(STYLES):
        table = parquet.read_table(assets.DIRECTORY / EMBEDDED / style / f"{split}.parquet", columns=["image", "label"])
        pictures += [image["bytes"] for image in table["image"].to_pylist()]
        labels += table["label"].to_pylist()
        domains += [domain] * len(table)
    shipped = assets.checksums(EMBEDDED)
    content = "".join(digest for path, digest in shipped.items() if path.endswith(f"/{split}.parquet"))
    return ImageDataset(
        name=EMBEDDED,
        split=split,
        class_names=class_names,
        domain_names=STYLES,
        labels=np.array(labels),
        domains=np.array(domains),
        image=_Files(pictures),
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
    )
