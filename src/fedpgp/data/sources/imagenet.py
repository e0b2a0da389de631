"""ImageNet and its other versions as CoOp lays them out, and FGVC-Aircraft: class names in a file beside the images."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedpgp.data.decode import FilePictures
from fedpgp.data.sources import folder
from fedpgp.data.sources.coop import OUTSIDE
from fedpgp.data.sources.listing import Listing
from fedpgp.data.sources.names import HEADERS, plain, read_lines, renamed
from fedpgp.errors import DataError

if TYPE_CHECKING:
    from fedpgp.data.settings import DataConfig

NAMES = "classnames.txt"
# CoOp's file gives some pairs of classes one name; where it does, one of the two has WordNet's instead.
WORDNET: Mapping[str, str] = {"n04355933": "sunglass", "n04008634": "projectile", "n03126707": "construction crane"}
# Other images of ImageNet's classes: name -> the folder of its images. Of A and R there are 200 classes.
VERSIONS: Mapping[str, str] = {
    "imagenetv2": "imagenetv2-matched-frequency-format-val",
    "imagenet-sketch": "images",
    "imagenet-a": "imagenet-a",
    "imagenet-r": "imagenet-r",
}
AIRCRAFT = "variants.txt"
PARTS = ("train", "val", "test")


def is_imagenet(path: Path) -> bool:
    """images/train, images/val, and the file of names."""
    return path.is_dir() and (path / NAMES).is_file() and (path / "images" / "train").is_dir()


def read_imagenet(path: Path, data: "DataConfig") -> Listing:
    """Training images, and those of val, on which is tested; raises DataError for classes that have no name."""
    file = Path(data.names) if data.names else path / NAMES
    found = folder.read(path / "images", replace(data, names=str(file)), "split-class-folders")
    if data.names:
        return replace(found, name="imagenet")
    return replace(found, name="imagenet", class_names=tuple(_names(file).values()))


def is_version(path: Path, name: str) -> bool:
    """The folder of a version's images, and the file of names."""
    return path.is_dir() and (path / NAMES).is_file() and (path / VERSIONS[name]).is_dir() and not is_imagenet(path)


def read_version(path: Path, data: "DataConfig", name: str) -> Listing:
    """All images of a version, without splits, under the names and in the order of ImageNet's classes.

    A folder is a class's identifier or, as in V2, its place in the file of names. Raises DataError for another.
    """
    names = _names(path / NAMES)
    places = {identifier: place for place, identifier in enumerate(names)}
    places |= {str(place): place for place in range(len(names))}
    found = folder.read(path / VERSIONS[name], replace(data, names=""), "class-folders")
    for one in found.class_names:
        if one not in places:
            raise DataError(
                f"{path / VERSIONS[name]}: folder {one!r} must be an identifier of {path / NAMES}, or a number below"
                f" {len(names)}: remove it, or get the file of names again"
            )
    of_folder = np.array([places[one] for one in found.class_names])
    present, labels = np.unique(of_folder[found.labels], return_inverse=True)
    every = tuple(names.values())
    return replace(
        found, name=name, class_names=renamed([every[place] for place in present], str(path), data), labels=labels
    )


def _names(file: Path) -> dict[str, str]:
    """Identifier -> name, in the order of the file; names that several have are told apart."""
    lines = [re.split(r"[\s,]+", line, maxsplit=1) for line in read_lines(file)]
    for line in lines:
        if len(line) != 2:
            raise DataError(f"{file}: {line[0]!r} must be followed by a name: get the file again")
    pairs = {identifier: name for identifier, name in lines if identifier.lower() not in HEADERS}
    shared = Counter(map(plain, pairs.values()))
    return {one: WORDNET.get(one, name) if shared[plain(name)] > 1 else name for one, name in pairs.items()}


def is_aircraft(path: Path) -> bool:
    """variants.txt, images_variant_train.txt and so on, and images."""
    return path.is_dir() and (path / AIRCRAFT).is_file() and (path / f"images_variant_{PARTS[0]}.txt").is_file()


def read_aircraft(path: Path, data: "DataConfig") -> Listing:
    """All images, in the splits of its lists; raises DataError for lists that are damaged or name another variant."""
    variants = read_lines(path / AIRCRAFT)
    label_of = {variant: label for label, variant in enumerate(variants)}
    paths: list[str] = []
    labels: list[int] = []
    splits: list[int] = []
    for split, part in enumerate(PARTS):
        file = path / f"images_variant_{part}.txt"
        for row, line in enumerate(read_lines(file), 1):
            image, _, variant = line.partition(" ")
            if variant not in label_of or OUTSIDE.search(image) or "\0" in image:
                raise DataError(
                    f"{file}: line {row}: must be the number of an image and a variant of {AIRCRAFT}, got"
                    f" {line[:80]!r}: get the list again"
                )
            paths.append(f"{image}.jpg")
            labels.append(label_of[variant])
            splits.append(split)
    return Listing(
        name="fgvc_aircraft",
        where=str(path),
        pictures=FilePictures.of(path / "images", paths, str(path)),
        class_names=renamed(variants, str(path), data),
        labels=np.array(labels, dtype=np.int64),
        splits=np.array(splits, dtype=np.int64),
        templates=("a photo of a {}, a type of aircraft.",),
    )
