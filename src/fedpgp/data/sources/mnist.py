"""Data sets in the files of MNIST, gzipped or not: http://yann.lecun.com/exdb/mnist, "file formats"."""

import gzip
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.sources.listing import Listing
from fedpgp.data.sources.names import named, renamed
from fedpgp.data.sources.unpacked import unpack
from fedpgp.errors import DataError

if TYPE_CHECKING:
    from fedpgp.data.settings import DataConfig

PARTS = ("train", "t10k")  # training and test images
IMAGES, LABELS = ("images", 3), ("labels", 1)  # kind and number of dimensions
UNSIGNED_BYTES = 8
AT_ONCE = 4096  # pictures that are read together


@dataclass(frozen=True)
class MnistForm:
    """What the files do not say. classes: the name of each label."""

    classes: tuple[str, ...]
    template: str = "a photo of a {}."


FORMS: Mapping[str, MnistForm] = {
    "mnist": MnistForm(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
        "a photo of the number {}.",
    ),
    "fashion-mnist": MnistForm(
        ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
    ),
    "kmnist": MnistForm(
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"), "a photo of the hiragana character {}."
    ),
}
SPELLINGS = {"fashionmnist": "fashion-mnist"}


def recognises(path: Path) -> bool:
    """A directory with such files, or one that holds them in `raw`, as torchvision lays them."""
    return path.is_dir() and _file(path, PARTS[0], IMAGES) is not None


def read(path: Path, data: "DataConfig") -> Listing:
    """Training and test images; raises DataError for files that are missing or damaged, and labels without a name."""
    files: list[Path] = []
    counts: list[int] = []
    sizes: list[tuple[int, ...]] = []
    labels: list[NDArray[np.int64]] = []
    for part in PARTS:
        images, of_labels = (_needed(path, part, kind) for kind in (IMAGES, LABELS))
        count, *size = _shape(images, IMAGES)
        found = _labels(of_labels)
        if len(found) != count:
            raise DataError(f"{of_labels}: has {len(found)} labels, and {images} {count} images: get both again")
        files.append(images)
        counts.append(count)
        sizes.append(tuple(size))
        labels.append(found)
    if sizes[0] != sizes[1]:
        raise DataError(f"{files[1]}: its images have the size {sizes[1]}, and those of {files[0]} {sizes[0]}")
    name = _name(path)
    class_names, all_labels = _classes(name, np.concatenate(labels), path, data)
    return Listing(
        name=name,
        where=str(path),
        pictures=unpack(files, (sum(counts), *sizes[0]), _blocks(files, counts, sizes[0])),
        class_names=class_names,
        labels=all_labels,
        splits=np.repeat(np.array([0, 2], dtype=np.int64), counts),
        templates=(FORMS[name].template,) if name in FORMS else ("a photo of a {}.",),
    )


def _classes(
    name: str, labels: NDArray[np.int64], path: Path, data: "DataConfig"
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    if name not in FORMS:
        found, codes = np.unique(labels, return_inverse=True)
        place = "image {}".format
        return named([str(one) for one in found], codes, str(path), path, data, place, needed=True)
    classes = FORMS[name].classes
    if labels.max(initial=0) >= len(classes):
        raise DataError(
            f"{path}: the labels of {name} must be 0 to {len(classes) - 1}, got {labels.max()}: get it again"
        )
    return renamed(classes, str(path), data), labels


def _name(path: Path) -> str:
    """Of the data set, which only its directory says."""
    directory = path.resolve()
    name = (directory.parent if directory.name == "raw" else directory).name.lower().replace("_", "-")
    return SPELLINGS.get(name, name)


def _file(path: Path, part: str, kind: tuple[str, int]) -> Path | None:
    stems = [f"{part}-{kind[0]}{mark}idx{kind[1]}-ubyte" for mark in "-."]
    places = [folder / f"{stem}{end}" for folder in (path, path / "raw") for stem in stems for end in ("", ".gz")]
    return next((place for place in places if place.is_file()), None)


def _needed(path: Path, part: str, kind: tuple[str, int]) -> Path:
    file = _file(path, part, kind)
    if file is None:
        raise DataError(f"{path}: lacks {part}-{kind[0]}-idx{kind[1]}-ubyte, gzipped or not: get it again")
    return file


@contextmanager
def _reading(file: Path) -> Iterator[Any]:
    """The content of a file; raises DataError for one that cannot be read or unpacked."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
            yield opened
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read: {error}; get it again") from error


def _shape(file: Path, kind: tuple[str, int]) -> tuple[int, ...]:
    """What the header says; raises DataError for another file."""
    with _reading(file) as opened:
        return _header(file, opened, kind)


def _header(file: Path, opened: Any, kind: tuple[str, int]) -> tuple[int, ...]:
    dimensions = kind[1]
    start = opened.read(4 + 4 * dimensions)
    if len(start) < 4 + 4 * dimensions or start[:4] != bytes((0, 0, UNSIGNED_BYTES, dimensions)):
        raise DataError(f"{file}: does not begin like an idx file of {kind[0]} in bytes: get it again")
    return tuple(int(one) for one in np.frombuffer(start, ">u4", offset=4))


def _labels(file: Path) -> NDArray[np.int64]:
    with _reading(file) as opened:
        (count,) = _header(file, opened, LABELS)
        content = opened.read()
    if len(content) != count:
        raise DataError(f"{file}: its header says {count:,} labels, and it holds {len(content):,}: get it again")
    return np.frombuffer(content, np.uint8).astype(np.int64)


def _blocks(files: list[Path], counts: list[int], size: tuple[int, ...]) -> Iterator[NDArray[np.uint8]]:
    """The pixels of all images, some at a time; raises DataError for files that do not hold what their header says."""
    bytes_each = math.prod(size)
    for file, count in zip(files, counts, strict=True):
        with _reading(file) as opened:
            _header(file, opened, IMAGES)
            for start in range(0, count, AT_ONCE):
                some = min(AT_ONCE, count - start)
                content = opened.read(some * bytes_each)
                if len(content) != some * bytes_each:
                    raise DataError(f"{file}: ends before the {count:,} images that its header says: get it again")
                yield np.frombuffer(content, np.uint8)
            if opened.read(1):
                raise DataError(f"{file}: goes on after the {count:,} images that its header says: get it again")
