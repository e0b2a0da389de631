"""Known datasets in folders of images: ImageNet and its other versions as CoOp lays them out, and sets of domains."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import folder
from fedpgp.data.sources.known import KNOWN
from fedpgp.data.sources.listing import Listing
from fedpgp.data.sources.names import HEADERS, read_lines, renamed, told_apart
from fedpgp.errors import DataError

NAMES = "classnames.txt"
# CoOp's file gives some pairs of classes one name; where it does, one of the two has WordNet's instead.
WORDNET: Mapping[str, str] = {"n04355933": "sunglass", "n04008634": "projectile", "n03126707": "construction crane"}
VERSIONS = ("imagenetv2", "imagenet-sketch", "imagenet-a", "imagenet-r")  # other images of ImageNet's classes
DOMAIN_SETS = ("office_caltech10", "pacs", "office_home", "vlcs")  # with a folder for each domain


def read_imagenet(path: Path, data: DataConfig) -> Listing:
    """Training images, and those of val, on which is tested; raises DataError for classes that have no name."""
    file = Path(data.names) if data.names else path / NAMES
    listing = folder.read(path / "images", replace(data, names=str(file)), "split-class-folders")
    class_names = listing.class_names if data.names else tuple(_names(file).values())
    return replace(listing, name="imagenet", class_names=class_names)


def read_version(path: Path, data: DataConfig, name: str) -> Listing:
    """All images of a version, without splits, under the names and in the order of ImageNet's classes.

    A folder is a class's identifier or, as in V2, its place in the file of names. Raises DataError for another.
    """
    names = _names(path / NAMES)
    places = {identifier: place for place, identifier in enumerate(names)}
    places |= {str(place): place for place in range(len(names))}
    images = path / KNOWN[name].images
    listing = folder.read(images, replace(data, names=""), "class-folders")
    unknown = next((identifier for identifier in listing.class_names if identifier not in places), None)
    if unknown is not None:
        raise DataError(
            f"{images}: folder {unknown!r} must be an identifier of {path / NAMES}, or a number below {len(names)}:"
            " remove it, or get the file of names again"
        )
    of_folder = np.array([places[identifier] for identifier in listing.class_names])
    present, labels = np.unique(of_folder[listing.labels], return_inverse=True)
    class_names = np.array(list(names.values()))[present].tolist()
    return replace(listing, name=name, class_names=renamed(class_names, str(path), data), labels=labels)


def _names(file: Path) -> dict[str, str]:
    """Identifier -> name, in the order of the file; names that several have are told apart."""
    lines = [re.split(r"[\s,]+", line, maxsplit=1) for line in read_lines(file)]
    for line in lines:
        if len(line) != 2:
            raise DataError(f"{file}: {line[0]!r} must be followed by a name: get the file again")
    return told_apart({identifier: name for identifier, name in lines if identifier.lower() not in HEADERS}, WORDNET)


def has_domains(path: Path, name: str) -> bool:
    """Whether the folders of a directory are the domains of a known dataset, and nothing else."""
    return path.is_dir() and _are_domains(folder.folders(path), name)


def read_domains(path: Path, data: DataConfig, name: str) -> Listing:
    """All images; raises DataError for other domains than those of the dataset, and domains that lack a class."""
    listing = replace(folder.read(path, data, "domain-class-folders"), name=name)
    check_domains(listing, name)
    return listing


def check_domains(listing: Listing, name: str) -> None:
    """Raises DataError for other domains than those of a known dataset, and for domains that lack a class."""
    if not _are_domains(listing.domain_names, name):
        raise DataError(
            f"{listing.where}: must hold the domains {', '.join(KNOWN[name].domains)} of {name} and no other, got"
            f" {', '.join(listing.domain_names)}: move others away"
        )
    assert listing.domains is not None, "there are domains"
    counts = np.zeros((len(listing.domain_names), len(listing.class_names)), dtype=np.int64)
    np.add.at(counts, (listing.domains, listing.labels), 1)
    if not counts.all():
        domain, label = np.argwhere(counts == 0)[0]
        lack = f"domain {listing.domain_names[domain]!r} has no image of class {listing.class_names[label]!r}"
        raise DataError(f"{listing.where}: {lack}, and in {name} every domain has every class: get it again")


def _are_domains(names: Iterable[str], known: str) -> bool:
    """Whether names are those of a dataset's domains, whatever their case and the signs between words."""
    plain, expected = ([re.sub(r"[ _-]", "", name.casefold()) for name in of] for of in (names, KNOWN[known].domains))
    return sorted(plain) == sorted(expected)
