"""CIFAR-10 and CIFAR-100 in their Python version, unpacked or in the official archive (Krizhevsky 2009)."""

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.sources import unpickle
from fedpgp.data.sources.listing import Listing
from fedpgp.data.sources.names import renamed
from fedpgp.data.sources.unpacked import unpack
from fedpgp.errors import DataError

if TYPE_CHECKING:
    from fedpgp.data.settings import DataConfig

PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
SIZE = 32  # pixels, in height and in width
LARGEST = 1 << 28  # bytes of a file in an archive; CIFAR-100's training images have 155 million


@dataclass(frozen=True)
class CifarForm:
    """How one of the two lies on a disk.

    files: of images, with the number of their split; names: the file of class names, under `names_key`; labels_key and
    above_key: of an image's class and of its superclass, of which there are above_count, if any.
    """

    name: str
    archive: str
    folder: str
    files: tuple[tuple[str, int], ...]
    names: str
    names_key: str
    labels_key: str
    above_key: str = ""
    above_count: int = 0


CIFAR10 = CifarForm(
    name="cifar10",
    archive="cifar-10-python.tar.gz",
    folder="cifar-10-batches-py",
    files=(*((f"data_batch_{number}", 0) for number in range(1, 6)), ("test_batch", 2)),
    names="batches.meta",
    names_key="label_names",
    labels_key="labels",
)
CIFAR100 = CifarForm(
    name="cifar100",
    archive="cifar-100-python.tar.gz",
    folder="cifar-100-python",
    files=(("train", 0), ("test", 2)),
    names="meta",
    names_key="fine_label_names",
    labels_key="fine_labels",
    above_key="coarse_labels",
    above_count=20,
)
FORMS = (CIFAR10, CIFAR100)


def recognises(path: Path) -> bool:
    """The folder or the archive of one of them, or a directory that holds either."""
    return _located(path) is not None


def read(path: Path, data: "DataConfig") -> Listing:
    """Training and test images; raises DataError for files that are missing, damaged, or name code."""
    located = _located(path)
    if located is None:
        wanted = " or ".join(f"{form.folder} or {form.archive}" for form in FORMS)
        raise DataError(f"{path}: is not {wanted}, nor holds one: get it from {PAGE}")
    place, form = located
    contents = dict(_contents(place, form))
    names = _names(contents[form.names], form, f"{place}: {form.names}")
    pixels: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.int64]] = []
    above: list[NDArray[np.int64]] = []
    splits: list[int] = []
    for file, split in form.files:
        where, content = f"{place}: {file}", contents.pop(file)
        some = _pixels(content, where)
        pixels.append(some)
        labels.append(_numbers(content, form.labels_key, len(some), len(names), where))
        if form.above_key:
            above.append(_numbers(content, form.above_key, len(some), form.above_count, where))
        splits += [split] * len(some)
    all_labels = np.concatenate(labels)
    files = [place] if place.is_file() else [place / file for file, _ in form.files]
    return Listing(
        name=form.name,
        where=str(place),
        pictures=unpack(files, (len(all_labels), SIZE, SIZE, 3), map(_upright, pixels)),
        class_names=renamed(names, str(place), data),
        labels=all_labels,
        splits=np.array(splits, dtype=np.int64),
        superclasses=_above(all_labels, np.concatenate(above), names, str(place)) if above else None,
    )


def _located(path: Path) -> tuple[Path, CifarForm] | None:
    for form in FORMS:
        if path.is_file() and path.name == form.archive:
            return path, form
        if not path.is_dir():
            continue
        for folder in (path, path / form.folder):
            if (folder / form.names).is_file() and (folder / form.files[0][0]).is_file():
                return folder, form
        if (path / form.archive).is_file():
            return path / form.archive, form
    return None


def _contents(place: Path, form: CifarForm) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each file with what it holds."""
    wanted = [form.names, *(file for file, _ in form.files)]
    try:
        if place.is_dir():
            for file in wanted:
                yield file, _loaded((place / file).read_bytes(), f"{place}: {file}")
            return
        found = set()
        with tarfile.open(place, "r:gz") as archive:
            for member in archive:  # an archive that is packed is read once, from its beginning to its end
                file = member.name.removeprefix(f"{form.folder}/")
                if file not in wanted or not member.isreg():
                    continue
                opened = archive.extractfile(member)
                if opened is None or member.size > LARGEST:
                    raise DataError(f"{place}: {member.name} has {member.size:,} bytes: get the archive again")
                found.add(file)
                yield file, _loaded(opened.read(), f"{place}: {file}")
        if len(found) < len(wanted):
            raise DataError(f"{place}: lacks some of {', '.join(wanted)} in {form.folder}: get it again")
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{place}: cannot be read: {error}; get it again") from error


def _loaded(content: bytes, where: str) -> dict[str, Any]:
    try:
        loaded = unpickle.load(content)
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"{where}: is no pickle of images that is read: {error}; get it again") from error
    if not isinstance(loaded, dict):
        raise DataError(f"{where}: holds a {type(loaded).__name__} where a dict must be: get it again")
    return loaded


def _names(content: dict[str, Any], form: CifarForm, where: str) -> list[str]:
    names = content.get(form.names_key)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}: {form.names_key} must be a list of names: get it again")
    return names


def _pixels(content: dict[str, Any], where: str) -> NDArray[np.uint8]:
    """[n, 3072], all of red, then green, then blue."""
    pixels = content.get("data")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3 * SIZE * SIZE,):
        raise DataError(f"{where}: data must be an array of {3 * SIZE * SIZE} bytes for each image: get it again")
    return pixels


def _upright(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[n, 3072] -> [n, height, width, 3]"""
    return pixels.reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)


def _numbers(content: dict[str, Any], key: str, count: int, below: int, where: str) -> NDArray[np.int64]:
    numbers = content.get(key)
    if (
        not isinstance(numbers, list)
        or len(numbers) != count
        or not all(type(number) is int and 0 <= number < below for number in numbers)
    ):
        raise DataError(f"{where}: {key} must be a list of {count} numbers from 0 to {below - 1}: get it again")
    return np.array(numbers, dtype=np.int64)


def _above(labels: NDArray[np.int64], above: NDArray[np.int64], names: list[str], where: str) -> tuple[int, ...]:
    """Of each class, its superclass; raises DataError for a class that is in several."""
    pairs = np.unique(np.stack([labels, above]), axis=1)
    classes, counts = np.unique(pairs[0], return_counts=True)
    if (counts > 1).any():
        name = names[classes[counts > 1][0]]
        raise DataError(f"{where}: the images of {name!r} are in more than one superclass: get it again")
    of = dict(zip(*pairs.tolist(), strict=True))
    return tuple(of.get(label, 0) for label in range(len(names)))
