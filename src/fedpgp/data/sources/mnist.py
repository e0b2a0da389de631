"""Datasets in the file format of MNIST, gzipped or not: http://yann.lecun.com/exdb/mnist, "file formats"."""

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
AGAIN = "Get the dataset again"
SPELLINGS = {"fashionmnist": "fashion-mnist"}


def recognises(path: Path) -> bool:
    """Return whether a directory has such files, or has them in `raw`, as torchvision writes them."""
    return path.is_dir() and _file(path, PARTS[0], "images") is not None


def read(path: Path, data: DataConfig) -> Listing:
    """Return training and test images.

    Raises
    ------
    DataError
        If a file is missing or damaged, or if a label has no name.
    """
    files: dict[tuple[str, str], Path] = {}
    for part in PARTS:
        for kind, dimensions in DIMENSIONS.items():
            file = _file(path, part, kind)
            if file is None:
                raise DataError(
                    f"{part}-{kind}-idx{dimensions}-ubyte is missing, gzipped or not", where=str(path), remedy=AGAIN
                )
            files[part, kind] = file
    images = [files[part, "images"] for part in PARTS]
    shapes = [_shape(file, "images") for file in images]
    labels = [_read(files[part, "labels"], "labels") for part in PARTS]
    for part, shape, of_part in zip(PARTS, shapes, labels, strict=True):
        if len(of_part) != shape[0]:
            raise DataError(
                f"there are {len(of_part)} labels, but {shape[0]} images in {files[part, 'images']}",
                where=str(files[part, "labels"]),
                remedy="Get both files again",
            )
    (train, *size), (test, *other) = shapes
    if size != other:
        raise DataError(
            f"the images have size {other}, but the images in {images[0]} have size {size}",
            where=str(images[1]),
            remedy="Get both files again",
        )
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
        raise DataError(
            where=f"{path}: labels of {name}", allowed=f"0 to {len(classes) - 1}", got=int(labels.max()), remedy=AGAIN
        )
    return renamed(classes, str(path), data), labels


def _name(path: Path) -> str:
    """Return the name of the dataset, which only its directory contains."""
    directory = path.resolve()
    name = (directory.parent if directory.name == "raw" else directory).name.lower().replace("_", "-")
    return SPELLINGS.get(name, name)


def _file(path: Path, part: str, kind: str) -> Path | None:
    stems = [f"{part}-{kind}{mark}idx{DIMENSIONS[kind]}-ubyte" for mark in "-."]
    places = [folder / f"{stem}{end}" for folder in (path, path / "raw") for stem in stems for end in ("", ".gz")]
    return next((place for place in places if place.is_file()), None)


def _shape(file: Path, kind: str) -> tuple[int, ...]:
    """Return the shape in the header; raise DataError if the file has another format."""
    length = 4 + 4 * DIMENSIONS[kind]
    header = _bytes(file, length)
    if len(header) < length or header[:4] != bytes((0, 0, UNSIGNED_BYTES, DIMENSIONS[kind])):
        raise DataError(f"the file does not start like an idx file of {kind} in bytes", where=str(file), remedy=AGAIN)
    return tuple(np.frombuffer(header, ">u4", offset=4).tolist())


def _read(file: Path, kind: str) -> NDArray[np.uint8]:
    """Return the content of a file; raise DataError if it does not match the header."""
    shape, header = _shape(file, kind), 4 + 4 * DIMENSIONS[kind]
    length = header + math.prod(shape)
    content = _bytes(file, length + 1)
    if len(content) != length:
        raise DataError(
            where=f"{file}: the size",
            allowed=f"{length:,} bytes for the {shape[0]:,} {kind} of its header",
            got="more" if len(content) > length else len(content),
            remedy=AGAIN,
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _bytes(file: Path, length: int) -> bytes:
    """Return the first bytes of a file, unpacked; raise DataError if it cannot be read or unpacked."""
    with reading(file, AGAIN), gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
        return opened.read(length)
