"""CIFAR-10 and CIFAR-100 in their Python version, unpacked or in the official archive (Krizhevsky 2009)."""

import gzip
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import unpickle
from fedpgp.data.sources.known import KNOWN
from fedpgp.data.sources.listing import TEST, TRAIN, Listing
from fedpgp.data.sources.names import reading, renamed, superclasses_of
from fedpgp.data.sources.unpacked import unpack
from fedpgp.errors import DataError

AGAIN = "Get the dataset again"
SIZE = 32  # pixels, in height and in width
LARGEST = 1 << 28  # largest file of the dataset, in bytes; CIFAR-100's training images have 155 million
LARGEST_ARCHIVE = 1 << 30  # most bytes of an unpacked archive; CIFAR-10's has 186 million
SUPERCLASSES, SUPERCLASS_COUNT = "coarse_labels", 20  # key and number in CIFAR-100


@dataclass(frozen=True)
class CifarForm:
    """The files of CIFAR-10 or CIFAR-100 on a disk.

    Attributes
    ----------
    name
        The name of the dataset.
    train, test
        The files of images.
    meta
        The file of class names.
    labels
        The key of the labels in a file of images.
    """

    name: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str

    @property
    def folder(self) -> str:
        return KNOWN[self.name].places[0]

    @property
    def archive(self) -> str:
        return KNOWN[self.name].places[1]


FORMS = (
    CifarForm("cifar10", tuple(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta", "labels"),
    CifarForm("cifar100", ("train",), "test", "meta", "fine_labels"),
)


def read(path: Path, data: DataConfig) -> Listing:
    """Return training and test images.

    Raises
    ------
    DataError
        If a file is missing or damaged, or contains code.
    """
    location = located(path)
    if location is None:
        wanted = " or ".join(f"{form.folder} or {form.archive}" for form in FORMS)
        raise DataError(
            f"this is not {wanted}, and contains none of them",
            where=str(path),
            remedy=f"Get the dataset from {KNOWN[FORMS[0].name].page}",
        )
    place, form = location
    contents = _contents(place, form)
    names = _names(_loaded(contents.pop(form.meta), f"{place}: {form.meta}"), form, f"{place}: {form.meta}")
    files = (*form.train, form.test)
    pixels: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.int64]] = []
    superclasses: list[NDArray[np.int64]] = []
    for file in files:
        where = f"{place}: {file}"
        content = _loaded(contents.pop(file), where)
        pixels.append(_pixels(content, where))
        labels.append(_numbers(content, form.labels, len(pixels[-1]), len(names), where))
        if form.name == "cifar100":
            superclasses.append(_numbers(content, SUPERCLASSES, len(pixels[-1]), SUPERCLASS_COUNT, where))
    all_labels = np.concatenate(labels)
    above = superclasses_of(all_labels, np.concatenate(superclasses), names, str(place)) if superclasses else None
    return Listing(
        name=form.name,
        where=str(place),
        pictures=unpack(
            [place] if place.is_file() else [place / file for file in files],
            (len(all_labels), SIZE, SIZE, 3),
            lambda: np.concatenate(pixels).reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1),
        ),
        class_names=renamed(names, str(place), data),
        labels=all_labels,
        splits=np.repeat([*(TRAIN for _ in form.train), TEST], list(map(len, labels))),
        superclasses=above,
    )


def located(path: Path) -> tuple[Path, CifarForm] | None:
    """Return the folder or archive at or below a path, and whether it is CIFAR-10 or CIFAR-100; or None."""
    for form in FORMS:
        for place in (path, path / form.folder, path / form.archive):
            if place.name == form.archive and place.is_file():
                return place, form
            if all((place / file).is_file() for file in (form.meta, form.train[0])):
                return place, form
    return None


def _contents(place: Path, form: CifarForm) -> dict[str, bytes]:
    """Return the files that are read. Files of an archive are never extracted to the disk."""
    wanted = {form.meta, *form.train, form.test}
    contents = {}
    if place.is_dir():
        for file in wanted:
            with reading(place, AGAIN), (place / file).open("rb") as unpacked:
                contents[file] = unpacked.read(LARGEST + 1)
            if len(contents[file]) > LARGEST:
                raise DataError(
                    where=f"{place / file}", allowed=f"a file of at most {LARGEST:,} bytes", got="more", remedy=AGAIN
                )
        return contents
    with reading(place, AGAIN), gzip.open(place) as packed, tarfile.TarFile(fileobj=_Limited(packed)) as archive:  # type: ignore[arg-type]
        for member in archive:  # a compressed archive is read once from the beginning to the end
            file = member.name.removeprefix(f"{form.folder}/")
            if file in wanted and member.isreg() and member.size <= LARGEST:
                opened = archive.extractfile(member)
                assert opened is not None, "the member is a regular file"
                contents[file] = opened.read()
    if contents.keys() != wanted:
        lacking = ", ".join(sorted(wanted - contents.keys()))
        raise DataError(
            f"{form.folder} in this archive lacks {lacking} of less than {LARGEST:,} bytes",
            where=str(place),
            remedy=AGAIN,
        )
    return contents


class _Limited:
    """An unpacked archive as `tarfile` reads it, whose headers cannot make it unpack or keep more than the limits."""

    def __init__(self, file: gzip.GzipFile):
        self.file, self.tell = file, file.tell

    def read(self, length: int) -> bytes:
        if length > LARGEST:
            raise tarfile.ReadError(f"a part of it has more than {LARGEST:,} bytes")
        self._check(self.tell() + length)
        return self.file.read(length)

    def seek(self, place: int) -> int:
        self._check(place)
        return self.file.seek(place)

    def _check(self, end: int) -> None:
        if end > LARGEST_ARCHIVE:
            raise tarfile.ReadError(f"it has more than {LARGEST_ARCHIVE:,} bytes if unpacked")


def _loaded(content: bytes, where: str) -> dict[str, Any]:
    with reading(where, f"{AGAIN}: this file must be a pickle of arrays of bytes"):
        loaded = unpickle.load(content)
    if not isinstance(loaded, dict):
        raise DataError(where=where, allowed="a dict", got=type(loaded).__name__, remedy=AGAIN)
    return loaded


def _names(content: dict[str, Any], form: CifarForm, where: str) -> list[str]:
    key = form.labels.removesuffix("s") + "_names"
    names = content.get(key)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(where=f"{where}: {key}", allowed="a list of names", got=type(names).__name__, remedy=AGAIN)
    return names


def _pixels(content: dict[str, Any], where: str) -> NDArray[np.uint8]:
    """Return [n, 3072] bytes: all of red, then green, then blue."""
    pixels = content.get("data")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3 * SIZE * SIZE,):
        raise DataError(
            where=f"{where}: data", allowed=f"an array of {3 * SIZE * SIZE} bytes for each image", remedy=AGAIN
        )
    return pixels


def _numbers(content: dict[str, Any], key: str, count: int, below: int, where: str) -> NDArray[np.int64]:
    numbers = content.get(key)
    if (
        not isinstance(numbers, list)
        or len(numbers) != count
        or not all(type(number) is int and 0 <= number < below for number in numbers)
    ):
        raise DataError(
            where=f"{where}: {key}", allowed=f"a list of {count} numbers from 0 to {below - 1}", remedy=AGAIN
        )
    return np.array(numbers, dtype=np.int64)
