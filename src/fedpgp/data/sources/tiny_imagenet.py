"""Tiny ImageNet (Stanford CS231n) as its archive unpacks."""

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedpgp.data.decode import FilePictures
from fedpgp.data.sources.coop import OUTSIDE
from fedpgp.data.sources.listing import Listing
from fedpgp.data.sources.names import plain, read_lines, renamed
from fedpgp.errors import DataError

if TYPE_CHECKING:
    from fedpgp.data.settings import DataConfig

PAGE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
FOLDER = "tiny-imagenet-200"
CLASSES, WORDS, ANNOTATIONS = "wnids.txt", "words.txt", "val/val_annotations.txt"
TRAIN, VALIDATION = 0, 1


def recognises(path: Path) -> bool:
    """wnids.txt, words.txt and val/val_annotations.txt."""
    return path.is_dir() and all((path / name).is_file() for name in (CLASSES, WORDS, ANNOTATIONS))


def read(path: Path, data: "DataConfig") -> Listing:
    """Training images, and those of val, on which is tested; those of test have no labels and are not read.

    Classes have the order of wnids.txt and the first of their words, or all where two share the first. Raises DataError
    for files that are missing or damaged.
    """
    identifiers = read_lines(path / CLASSES)
    label_of = {identifier: label for label, identifier in enumerate(identifiers)}
    paths: list[str] = []
    labels: list[int] = []
    for identifier, label in label_of.items():
        folder = path / "train" / identifier / "images"
        if OUTSIDE.search(identifier) or not folder.is_dir():
            raise DataError(f"{path / CLASSES}: {identifier!r} has no folder {folder}: unpack {PAGE} again")
        found = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
        paths += [f"train/{identifier}/images/{name}" for name in found]
        labels += [label] * len(found)
    count = len(paths)
    for row, line in enumerate(read_lines(path / ANNOTATIONS), 1):
        image, identifier, *_ = [*line.split("\t"), "", ""]
        if identifier not in label_of or OUTSIDE.search(image):
            raise DataError(
                f"{path / ANNOTATIONS}: line {row}: must be an image and a class of {CLASSES}, apart by tabs, got"
                f" {line[:80]!r}: unpack {PAGE} again"
            )
        paths.append(f"val/images/{image}")
        labels.append(label_of[identifier])
    return Listing(
        name="tiny_imagenet",
        where=str(path),
        pictures=FilePictures.of(path, paths),
        class_names=renamed(_names(path, identifiers), str(path), data),
        labels=np.array(labels, dtype=np.int64),
        splits=np.repeat(np.array([TRAIN, VALIDATION], dtype=np.int64), [count, len(paths) - count]),
    )


def _names(path: Path, identifiers: list[str]) -> list[str]:
    words = dict(line.split("\t", 1) for line in read_lines(path / WORDS) if "\t" in line)
    lacking = next((identifier for identifier in identifiers if identifier not in words), None)
    if lacking is not None:
        raise DataError(f"{path / WORDS}: has no words for class {lacking!r}: unpack {PAGE} again")
    firsts = [words[identifier].split(",")[0].strip() for identifier in identifiers]
    shared = Counter(map(plain, firsts))
    pairs = zip(firsts, identifiers, strict=True)
    return [first if shared[plain(first)] == 1 else words[identifier] for first, identifier in pairs]
