"""Folders: the names of a picture's folders are its split, domain and class."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.decode import SUFFIXES, FilePictures, check_inside
from fedpgp.data.settings import DataConfig
from fedpgp.data.sources.listing import Listing
from fedpgp.data.sources.names import named
from fedpgp.errors import DataError, shown

SPLIT, DOMAIN, CLASS = "split", "domain", "class"
ABOUT: Mapping[str, str] = {  # layout, whose name says what the folders of each level are -> what it looks like
    "class-folders": "CLASS/…: a folder of images for each class",
    "split-class-folders": "SPLIT/CLASS/…: the same in train, validation (val) and test",
    "domain-class-folders": "DOMAIN/CLASS/…: the same classes in a folder for each domain",
    "split-domain-class-folders": "SPLIT/DOMAIN/CLASS/…: domains in train, validation and test",
    "domain-split-class-folders": "DOMAIN/SPLIT/CLASS/…: train, validation and test in each domain",
}
SPLIT_WORDS = {
    word: number
    for number, words in enumerate(("train training", "val valid validation dev", "test testing"))
    for word in words.split()
}
# Folders that Windows, Linux and Synology's disks add.
SYSTEM = frozenset(("$recycle.bin", "system volume information", "lost+found", "@eadir"))
BACKSLASH = "\\"
UNPACK = "its name has \\ in the place of /, as of some zips of Windows: unpack it again with unzip"
TABLE = "or write a CSV file with the columns path and label"


def split_number(name: str) -> int | None:
    """0, 1 or 2 for a word that means train, validation or test."""
    return SPLIT_WORDS.get(name.strip().casefold())


def split_numbers(
    words: Sequence[str], codes: NDArray[np.int64], place: Callable[[int], str], remedy: str
) -> NDArray[np.int64]:
    """[n] the split of each image, from [n] indices into words; raises DataError for another word.

    place: where an image lies, for that error.
    """
    numbers = np.array([-1 if (number := split_number(word)) is None else number for word in words], dtype=np.int64)
    wrong = np.flatnonzero(numbers[codes] < 0)
    if len(wrong):
        got = words[codes[wrong[0]]]
        raise DataError(f"{place(int(wrong[0]))} must be train, validation or test, got {got!r}: {remedy}")
    return numbers[codes]


def recognised(root: Path) -> str | None:
    """The name of the layout of a directory of folders, None for another one; reads names only.

    Raises DataError if folders could mean several things.
    """
    if not root.is_dir():
        return None
    depths = {top: depth for top in folders(root) if (depth := _depth(root / top)) is not None}
    if not depths:
        return None
    shallow, deep = (pick(depths, key=lambda top: depths[top]) for pick in (min, max))
    depth = depths[deep]
    if depths[shallow] != depth:
        raise DataError(
            f"{root}: folder {shallow!r} holds images {depths[shallow]} folders down and {deep!r} {depth}: put all at"
            f" the same depth, {TABLE}"
        )
    only = _below_only_folders(root, depth)
    if only != root:
        raise DataError(f"{root}: holds one folder only: give data.source as {only}")
    if depth > 2:
        raise DataError(f"{root}: images lie {depth + 1} folders deep, and at most 3 are read: split, domain, class")
    splits = _are_splits(depths)
    if depth == 0 and splits:
        raise DataError(
            f"{root}: the folders {', '.join(depths)} are splits and hold images without a class: put these into a"
            f" folder for each class, {TABLE}"
        )
    layout = _layout_of(root, {top: folders(root / top) for top in depths}, depth)
    if layout is None:
        raise DataError(
            f"{root}: the images lie {depth + 1} folders deep, and {_shown(depths)} and the folders in them are neither"
            " all train, validation or test, nor domains that hold the same classes: rename or move those that do not"
            f" fit, set data.layout to {' or '.join(name for name in ABOUT if name.count('-') == depth + 1)}, {TABLE}"
        )
    return layout


def _below_only_folders(root: Path, depth: int) -> Path:
    """The directory, or the one of the folders in it that has classes, where each but the last is alone."""
    while depth > 0:
        below = [name for name in folders(root) if _depth(root / name) is not None]
        if len(below) != 1 or split_number(below[0]) is not None:
            break
        root, depth = root / below[0], depth - 1
    return root


def _layout_of(root: Path, below: Mapping[str, Sequence[str]], depth: int) -> str | None:
    """The layout of folders with these folders in them, whose images lie `depth` folders down; None if unclear."""
    splits = _are_splits(below)
    if depth == 0:
        return "class-folders"
    if depth == 1:
        if splits:
            return "split-class-folders"
        unclear = any(split_number(top) is not None or _are_splits(names) for top, names in below.items())
        return None if unclear or not _are_same(below.values()) else "domain-class-folders"
    if all(map(_are_splits, below.values())):
        return "domain-split-class-folders"
    classes: dict[str, set[str]] = {}
    for top, domains in below.items():
        for domain in domains:
            classes.setdefault(domain, set()).update(folders(root / top / domain))
    return "split-domain-class-folders" if splits and _are_same(classes.values()) else None


def _are_same(classes: Iterable[Collection[str]]) -> bool:
    return len(set(map(frozenset, classes))) == 1


def _are_splits(names: Iterable[str]) -> bool:
    return all(split_number(name) is not None for name in names)


def _shown(names: Collection[str]) -> str:
    return ", ".join(map(repr, islice(names, 3))) + (" …" if len(names) > 3 else "")


def folders(directory: Path) -> list[str]:
    """The names of the folders in a directory, without those that are none of the dataset's."""
    with os.scandir(directory) as entries:
        return sorted(entry.name for entry in entries if not hidden(entry.name) and entry.is_dir())


def _depth(folder: Path, left: int = 4) -> int | None:
    """How many folders below this one the first image lies; None if there is none within reach."""
    with os.scandir(folder) as entries:
        below = []
        for entry in entries:
            if hidden(entry.name):
                continue
            if entry.is_dir():
                below.append(entry.name)
            elif is_image(entry.name):
                return 0
    if not left:  # a link may lead in a circle
        return None
    depths = (_depth(folder / name, left - 1) for name in sorted(below))
    first = next((depth for depth in depths if depth is not None), None)
    return None if first is None else first + 1


def hidden(name: str) -> bool:
    """Whether a file or folder is none of the dataset's, by its name."""
    return name.startswith((".", "__")) or name.casefold() in SYSTEM


def is_image(name: str) -> bool:
    """Whether a file is one, by its name."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - a Path for each of a million names is slow


def read(root: Path, data: DataConfig, layout: str) -> Listing:
    """All images of a directory of folders; raises DataError for an image at another depth, and links that lead out."""
    levels = layout.removesuffix("-folders").split("-")
    if not root.is_dir():
        raise DataError(f"{root}: is no directory, and data.layout {layout} reads one")
    ignored: Counter[str] = Counter()
    contents = list(_walk(root, "", len(levels), (os.path.realpath(root),), ignored, data.follow_links))
    paths = [f"{folder}/{name}" for folder, files in contents for name in files]
    if not paths:
        raise DataError(f"{root}: holds no image in folders of the layout {layout}: add some, or set data.layout")

    def of(role: str) -> tuple[list[str], NDArray[np.int64]]:
        """The names of the folders of a level, sorted, and [n] the one of each image."""
        folders = np.array([folder.split("/")[levels.index(role)] for folder, _ in contents], dtype=object)
        names, codes = np.unique(folders, return_inverse=True)
        return names.tolist(), np.repeat(codes, [len(files) for _, files in contents])

    class_names, labels = named(*of(CLASS), str(root), data, lambda image: paths[image])
    splits, domain_names, domains = None, ["all"], None
    if SPLIT in levels:
        remedy = f"the layout {layout} has splits there, so rename it, or set data.layout"
        splits = split_numbers(*of(SPLIT), lambda image: f"{root}: the {SPLIT} folder of {paths[image]}", remedy)
    if DOMAIN in levels:
        domain_names, domains = of(DOMAIN)
    return Listing(
        name=shown(root.resolve().name),
        where=str(root),
        pictures=FilePictures.of(root, paths, follow_links=data.follow_links),
        class_names=class_names,
        labels=labels,
        splits=splits,
        domain_names=tuple(domain_names),
        domains=domains,
        ignored=ignored,
    )


def _walk(
    root: Path, folder: str, depth: int, chain: tuple[str, ...], ignored: Counter[str], follow_links: bool
) -> Iterator[tuple[str, list[str]]]:
    """Every folder so many levels down, relative, with the names of its images, sorted.

    chain: the real paths of the root and of all folders above, among which a link must not lead back.
    """
    below: list[str] = []
    images: list[str] = []
    above = f"{folder}/" if folder else ""
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if hidden(entry.name):
                ignored["hidden"] += 1
            elif entry.is_dir():
                if entry.is_symlink():
                    _check_link(root, above + entry.name, chain, follow_links)
                below.append(entry.name)
            elif is_image(entry.name):
                images.append(entry.name)
            else:
                ignored[os.path.splitext(entry.name)[1].lower() or "without extension"] += 1  # noqa: PTH122
    if depth == 0:
        for name in below:
            if _depth(root / folder / name) is not None:
                raise DataError(
                    f"{root}: folder {f'{folder}/{name}'!r} holds images below those of a class: move them up, or set"
                    " data.layout"
                )
        yield folder, sorted(images)
        return
    if images:
        name = min(images)
        remedy = UNPACK if BACKSLASH in name else "move it into one, or away"
        raise DataError(f"{root / folder / name}: lies outside the folder of a class: {remedy}")
    for name in sorted(below):
        deeper = (*chain, os.path.realpath(root / above / name))
        yield from _walk(root, above + name, depth - 1, deeper, ignored, follow_links)


def _check_link(root: Path, link: str, chain: tuple[str, ...], follow_links: bool) -> None:
    """Raises DataError for a link that leads back in a circle, and for one out of the root that is not followed."""
    target = os.path.realpath(root / link)
    if not follow_links:
        check_inside(f"{root / link}: is a link that", os.fsencode(target), os.fsencode(chain[0]))
    if target in chain:
        raise DataError(f"{root / link}: is a link that leads back to {target}, in a circle: remove it")
