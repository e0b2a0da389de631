"""Known datasets in folders of images: ImageNet and its versions as in CoOp, and datasets with domains."""

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
# CoOp's file gives some pairs of classes one name; one class of such a pair gets WordNet's name instead.
WORDNET: Mapping[str, str] = {"n04355933": "sunglass", "n04008634": "projectile", "n03126707": "construction crane"}
VERSIONS = ("imagenetv2", "imagenet-sketch", "imagenet-a", "imagenet-r")  # other images of ImageNet's classes
DOMAIN_SETS = ("office_caltech10", "pacs", "office_home", "vlcs")  # datasets with a folder for each domain


def read_imagenet(path: Path, data: DataConfig) -> Listing:
    """Return the training images, and the images of val as the test split.

    Raises
    ------
    DataError
        If a class has no name.
    """
    file = Path(data.names) if data.names else path / NAMES
    listing = folder.read(path / "images", replace(data, names=str(file)), "split-class-folders")
    class_names = listing.class_names if data.names else tuple(_names(file).values())
    return replace(listing, name="imagenet", class_names=class_names)


def read_version(path: Path, data: DataConfig, name: str) -> Listing:
    """Return all images of a version, without splits, with the names and in the order of ImageNet's classes.

    The name of a folder is the identifier of a class or, as in V2, its index in the file of names.

    Raises
    ------
    DataError
        If a folder has another name.
    """
    names = _names(path / NAMES)
    places = {identifier: place for place, identifier in enumerate(names)}
    places |= {str(place): place for place in range(len(names))}
    images = path / KNOWN[name].images
    listing = folder.read(images, replace(data, names=""), "class-folders")
    unknown = next((identifier for identifier in listing.class_names if identifier not in places), None)
    if unknown is not None:
        raise DataError(
            where=f"{images}: the name of a folder",
            allowed=f"an identifier of {path / NAMES}, or a number below {len(names)}",
            got=unknown,
            remedy="Remove the folder, or get the file of names again",
        )
    of_folder = np.array([places[identifier] for identifier in listing.class_names])
    present, labels = np.unique(of_folder[listing.labels], return_inverse=True)
    class_names = np.array(list(names.values()))[present].tolist()
    return replace(listing, name=name, class_names=renamed(class_names, str(path), data), labels=labels)


def _names(file: Path) -> dict[str, str]:
    """Return the name of each identifier, in the order of the file; equal names are distinguished."""
    lines = [re.split(r"[\s,]+", line, maxsplit=1) for line in read_lines(file)]
    for line in lines:
        if len(line) != 2:
            raise DataError(f"{line[0]!r} has no name after it", where=str(file), remedy="Get the file again")
    return told_apart({identifier: name for identifier, name in lines if identifier.lower() not in HEADERS}, WORDNET)


def has_domains(path: Path, name: str) -> bool:
    """Return whether the folders of a directory are exactly the domains of a known dataset."""
    return path.is_dir() and _are_domains(folder.folders(path), name)


def read_domains(path: Path, data: DataConfig, name: str) -> Listing:
    """Return all images of a dataset with domains.

    Raises
    ------
    DataError
        If the domains are not the domains of the dataset, or if a domain lacks a class.
    """
    listing = replace(folder.read(path, data, "domain-class-folders"), name=name)
    check_domains(listing, name)
    return listing


def check_domains(listing: Listing, name: str) -> None:
    """Raise DataError if a listing has not the domains of a known dataset, or if a domain lacks a class."""
    if not _are_domains(listing.domain_names, name):
        raise DataError(
            where=f"{listing.where}: the domains",
            allowed=f"{', '.join(KNOWN[name].domains)}, as in {name}",
            got=list(listing.domain_names),
            remedy="Move other folders away",
        )
    assert listing.domains is not None, "there are domains"
    counts = np.zeros((len(listing.domain_names), len(listing.class_names)), dtype=np.int64)
    np.add.at(counts, (listing.domains, listing.labels), 1)
    if not counts.all():
        domain, label = np.argwhere(counts == 0)[0]
        lack = f"domain {listing.domain_names[domain]!r} has no image of class {listing.class_names[label]!r}"
        raise DataError(
            f"{lack}, but in {name} every domain has every class", where=listing.where, remedy="Get the dataset again"
        )


def _are_domains(names: Iterable[str], known: str) -> bool:
    """Return whether names are the domains of a dataset, up to case and the signs between words."""
    plain, expected = ([re.sub(r"[ _-]", "", name.casefold()) for name in of] for of in (names, KNOWN[known].domains))
    return sorted(plain) == sorted(expected)
