"""Datasets in the files of MNIST, gzipped or not: http://yann.lecun.com/exdb/mnist, "file formats"."""

import gzip
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.settings import DataConfig
from fedpgp.data.sources.known import KNOWN, TEMPLATE
from fedpgp.data.sources.listing import TEST, TRAIN, Listing
from fedpgp.data.sources.names import named, reading, renamed
from fedpgp.data.sources.unpacked import unpack
from fedpgp.errors import DataError

PARTS = ("train", "t10k")  # training and test images
DIMENSIONS = {"images": 3, "labels": 1}
UNSIGNED_BYTES = 8
SPELLINGS = {"fashionmnist": "fashion-mnist"}


def recognises(path: Path) -> bool:
    """A directory with such files, or one that holds them in `raw`, as torchvision lays them."""
    return path.is_dir() and _file(path, PARTS[0], "images") is not None


def read(path: Path, data: DataConfig) -> Listing:
    """Training and test images; raises DataError for files that are missing or damaged, and labels without a name."""
    files: dict[tuple[str, str], Path] = {}
    for part in PARTS:
        for kind, dimensions in DIMENSIONS.items():
            file = _file(path, part, kind)
            if file is None:
                raise DataError(f"{path}: lacks {part}-{kind}-idx{dimensions}-ubyte, gzipped or not: get it again")
            files[part, kind] = file
    images = [files[part, "images"] for part in PARTS]
    shapes = [_shape(file, "images") for file in images]
    labels = [_read(files[part, "labels"], "labels") for part in PARTS]
    for part, shape, of_part in zip(PARTS, shapes, labels, strict=True):
        if len(of_part) != shape[0]:
            counts = f"{len(of_part)} labels, and {files[part, 'images']} {shape[0]} images"
            raise DataError(f"{files[part, 'labels']}: has {counts}: get both again")
    (train, *size), (test, *other) = shapes
    if size != other:
        raise DataError(f"{images[1]}: its images have size {other}, those of {images[0]} {size}: get both again")
    name = _name(path)
    class_names, all_labels = _classes(name, np.concatenate(labels).astype(np.int64), path, data)
    return Listing(
        name=name,
        where=str(path),
        pictures=unpack(
            images, (train + test, *size), lambda: np.concatenate([_read(file, "images") for file in images])
        ),
        class_names=class_names,
        labels=all_labels,
        splits=np.repeat([TRAIN, TEST], [train, test]),
        templates=(KNOWN[name].template if name in KNOWN else TEMPLATE,),
    )


def _classes(
    name: str, labels: NDArray[np.int64], path: Path, data: DataConfig
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    classes = KNOWN[name].classes if name in KNOWN else ()
    if not classes:
        distinct, codes = np.unique(labels, return_inverse=True)
        return named(list(map(str, distinct)), codes, str(path), data, "image {}".format, needed=True)
    if labels.max(initial=0) >= len(classes):
        raise DataError(f"{path}: labels of {name} must be 0 to {len(classes) - 1}, got {labels.max()}: get it again")
    return renamed(classes, str(path), data), labels


def _name(path: Path) -> str:
    """Of the dataset, which only its directory says."""
    directory = path.resolve()
    name = (directory.parent if directory.name == "raw" else directory).name.lower().replace("_", "-")
    return SPELLINGS.get(name, name)


def _file(path: Path, part: str, kind: str) -> Path | None:
    stems = [f"{part}-{kind}{mark}idx{DIMENSIONS[kind]}-ubyte" for mark in "-."]
    places = [folder / f"{stem}{end}" for folder in (path, path / "raw") for stem in stems for end in ("", ".gz")]
    return next((place for place in places if place.is_file()), None)


def _shape(file: Path, kind: str) -> tuple[int, ...]:
    """What the header says; raises DataError for another file."""
    length = 4 + 4 * DIMENSIONS[kind]
    header = _bytes(file, length)
    if len(header) < length or header[:4] != bytes((0, 0, UNSIGNED_BYTES, DIMENSIONS[kind])):
        raise DataError(f"{file}: does not begin like an idx file of {kind} in bytes: get it again")
    return tuple(np.frombuffer(header, ">u4", offset=4).tolist())


def _read(file: Path, kind: str) -> NDArray[np.uint8]:
    """The content of a file; raises DataError for one that does not hold what its header says."""
    shape, header = _shape(file, kind), 4 + 4 * DIMENSIONS[kind]
    length = header + math.prod(shape)
    content = _bytes(file, length + 1)
    if len(content) != length:
        raise DataError(
            f"{file}: must have {length:,} bytes for the {shape[0]:,} {kind} that its header says, and has"
            f" {'more' if len(content) > length else f'{len(content):,}'}: get it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _bytes(file: Path, length: int) -> bytes:
    """The first bytes of a file, unpacked; raises DataError for one that cannot be read or unpacked."""
    with reading(file, "get it again"), gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
        return opened.read(length)
