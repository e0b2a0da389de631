"""Data sets with several domains: a folder for each, or the lists of DomainNet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedpgp.data.decode import FilePictures
from fedpgp.data.sources import folder
from fedpgp.data.sources.coop import OUTSIDE
from fedpgp.data.sources.listing import Listing
from fedpgp.data.sources.names import renamed
from fedpgp.errors import DataError

if TYPE_CHECKING:
    from fedpgp.data.settings import DataConfig

FOLDERS: Mapping[str, tuple[str, ...]] = {
    "office_caltech10": ("amazon", "caltech", "dslr", "webcam"),
    "pacs": ("art_painting", "cartoon", "photo", "sketch"),
    "office_home": ("Art", "Clipart", "Product", "Real World"),
    "vlcs": ("Caltech101", "LabelMe", "SUN09", "VOC2007"),
}
DOMAINNET = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
PARTS = (("train", 0), ("test", 2))
TEN = ("bird", "feather", "headphones", "ice_cream", "teapot", "tiger", "whale", "windmill", "wine_glass", "zebra")


def recognised(path: Path) -> str | None:
    """The name of the data set whose domains are the folders of a directory."""
    if not path.is_dir():
        return None
    found = sorted(plain(entry.name) for entry in path.iterdir() if entry.is_dir() and not folder.hidden(entry.name))
    return next((name for name, wanted in FOLDERS.items() if found == sorted(map(plain, wanted))), None)


def read_folders(path: Path, data: "DataConfig", name: str) -> Listing:
    """All images; raises DataError for other domains than those of the data set, and domains that lack a class."""
    if recognised(path) != name:
        raise DataError(
            f"{path}: must hold the folders {', '.join(FOLDERS[name])} and no other, which are the domains of {name}:"
            " move others away"
        )
    found = folder.read(path, data, "domain-class-folders")
    assert found.domains is not None, "the layout has domains"
    counts = np.zeros((len(found.domain_names), len(found.class_names)), dtype=np.int64)
    np.add.at(counts, (found.domains, found.labels), 1)
    lacking = np.argwhere(counts == 0)
    if len(lacking):
        domain, label = lacking[0]
        raise DataError(
            f"{path}: domain {found.domain_names[domain]!r} has no image of class {found.class_names[label]!r}, and in"
            f" {name} every domain has every class: get it again"
        )
    return replace(found, name=name)


def plain(name: str) -> str:
    """A domain's name as it may be written."""
    return name.casefold().replace(" ", "").replace("_", "").replace("-", "")


def has_lists(path: Path) -> bool:
    """A directory with DomainNet's lists."""
    return path.is_dir() and _lists(path) is not None


@dataclass(frozen=True)
class _ListedImage:
    path: str
    label: int
    name: str


def read_lists(path: Path, data: "DataConfig", only: Sequence[str] = ()) -> Listing:
    """DomainNet's images, in the training and test splits of its lists; only: the classes to read, of all others none.

    Raises DataError for lists that are missing, damaged, or give one label to two classes.
    """
    lists = _lists(path)
    if lists is None:
        raise DataError(f"{path}: lacks {DOMAINNET[0]}_train.txt and the other lists of DomainNet: get them")
    names: dict[int, str] = {}
    labels_of: dict[str, int] = {}
    paths: list[str] = []
    labels: list[int] = []
    counts: list[int] = []
    places = [(domain, part, split) for domain in range(len(DOMAINNET)) for part, split in PARTS]
    for domain, part, _ in places:
        file = lists / f"{DOMAINNET[domain]}_{part}.txt"
        before = len(paths)
        for row, line in enumerate(_lines(file), 1):
            entry = _entry(line, DOMAINNET[domain], f"{file}: line {row}")
            if names.setdefault(entry.label, entry.name) != entry.name:
                raise DataError(
                    f"{file}: line {row}: label {entry.label} is {entry.name!r}, and before"
                    f" {names[entry.label]!r}: get the lists again"
                )
            if labels_of.setdefault(entry.name, entry.label) != entry.label:
                raise DataError(
                    f"{file}: line {row}: {entry.name!r} has label {entry.label}, and before {labels_of[entry.name]}:"
                    " get the lists again"
                )
            if not only or entry.name in only:
                paths.append(entry.path)
                labels.append(entry.label)
        counts.append(len(paths) - before)
    wanted = sorted(labels_of[name] for name in only if name in labels_of) if only else sorted(names)
    lacking = [name for name in only if name not in labels_of]
    if lacking or not wanted:
        raise DataError(f"{lists}: the lists have no image of {', '.join(lacking) or 'any class'}: get them again")
    return Listing(
        name="domainnet10" if only else "domainnet",
        where=str(lists),
        pictures=FilePictures.of(path, paths, str(lists)),
        class_names=renamed([names[label] for label in wanted], str(lists), data),
        labels=np.searchsorted(wanted, labels).astype(np.int64),
        splits=np.repeat(np.array([split for *_, split in places], dtype=np.int64), counts),
        domain_names=DOMAINNET,
        domains=np.repeat(np.array([domain for domain, *_ in places], dtype=np.int64), counts),
    )


def read_ten(path: Path, data: "DataConfig") -> Listing:
    """The ten classes of DomainNet that FedBN (Li et al. 2021) took; errors as in `read_lists`."""
    return read_lists(path, data, TEN)


def _lists(path: Path) -> Path | None:
    """The directory of the lists: that of the images, or `splits` in it."""
    return next((place for place in (path, path / "splits") if (place / f"{DOMAINNET[0]}_train.txt").is_file()), None)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {error.strerror}; get the six domains' lists train and test"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is no text in UTF-8: get it again") from error


def _entry(line: str, domain: str, where: str) -> _ListedImage:
    """Of a line such as `clipart/aircraft_carrier/x.jpg 0`."""
    path, _, label = line.rpartition(" ")
    parts = path.split("/")
    if len(parts) != 3 or parts[0] != domain or not all(parts) or not (label.isascii() and label.isdigit()):
        raise DataError(f"{where}: must be {domain}/CLASS/FILE and a label, got {line[:80]!r}: get the list again")
    if OUTSIDE.search(path) or "\0" in path:
        raise DataError(f"{where}: the path must stay below its domain, got {path!r}: get the list again")
    return _ListedImage(path, int(label), parts[1])
