"""CIFAR-10 and CIFAR-100 in their Python version, unpacked or in the official archive (Krizhevsky 2009)."""

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

SIZE = 32  # pixels, in height and in width
LARGEST = 1 << 28  # bytes of a file in an archive; CIFAR-100's training images have 155 million
SUPERCLASSES, SUPERCLASS_COUNT = "coarse_labels", 20  # of CIFAR-100


@dataclass(frozen=True)
class CifarForm:
    """How one of the two lies on a disk. train, test: files of images; meta: the file of names; labels: their key."""

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
    """Training and test images; raises DataError for files that are missing, damaged, or name code."""
    location = located(path)
    if location is None:
        wanted = " or ".join(f"{form.folder} or {form.archive}" for form in FORMS)
        raise DataError(f"{path}: is not {wanted}, nor holds one: get it from {KNOWN[FORMS[0].name].page}")
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
    """The folder or the archive of one of them, which a path is or holds, and which of the two it is."""
    for form in FORMS:
        for place in (path, path / form.folder, path / form.archive):
            if place.name == form.archive and place.is_file():
                return place, form
            if all((place / file).is_file() for file in (form.meta, form.train[0])):
                return place, form
    return None


def _contents(place: Path, form: CifarForm) -> dict[str, bytes]:
    """The files that are read; those of an archive are never extracted to the disk."""
    wanted = {form.meta, *form.train, form.test}
    if place.is_dir():
        with reading(place, "get it again"):
            return {file: (place / file).read_bytes() for file in wanted}
    contents = {}
    with reading(place, "get it again"), tarfile.open(place, "r:gz") as archive:
        for member in archive:  # an archive that is packed is read once, from its beginning to its end
            file = member.name.removeprefix(f"{form.folder}/")
            if file in wanted and member.isreg() and member.size <= LARGEST:
                opened = archive.extractfile(member)
                assert opened is not None, "it is a regular file"
                contents[file] = opened.read()
    if contents.keys() != wanted:
        lacking = ", ".join(sorted(wanted - contents.keys()))
        raise DataError(f"{place}: lacks {lacking} of less than {LARGEST:,} bytes in {form.folder}: get it again")
    return contents


def _loaded(content: bytes, where: str) -> dict[str, Any]:
    with reading(where, "it must be a pickle of arrays of bytes: get it again"):
        loaded = unpickle.load(content)
    if not isinstance(loaded, dict):
        raise DataError(f"{where}: holds a {type(loaded).__name__} where a dict must be: get it again")
    return loaded


def _names(content: dict[str, Any], form: CifarForm, where: str) -> list[str]:
    key = form.labels.removesuffix("s") + "_names"
    names = content.get(key)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: {key} must be a list of names: get it again")
    return names


def _pixels(content: dict[str, Any], where: str) -> NDArray[np.uint8]:
    """[n, 3072], all of red, then green, then blue."""
    pixels = content.get("data")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3 * SIZE * SIZE,):
        raise DataError(f"{where}: data must be an array of {3 * SIZE * SIZE} bytes for each image: get it again")
    return pixels


def _numbers(content: dict[str, Any], key: str, count: int, below: int, where: str) -> NDArray[np.int64]:
    numbers = content.get(key)
    if (
        not isinstance(numbers, list)
        or len(numbers) != count
        or not all(type(number) is int and 0 <= number < below for number in numbers)
    ):
        raise DataError(f"{where}: {key} must be a list of {count} numbers from 0 to {below - 1}: get it again")
    return np.array(numbers, dtype=np.int64)
