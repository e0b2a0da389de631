"""Folders of images: the names of the folders are split, domain and class."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.decode import SUFFIXES, FilePictures, check_inside
from fedpgp.data.settings import DataConfig
from fedpgp.data.sources.listing import UNLABELLED, Listing
from fedpgp.data.sources.names import named
from fedpgp.errors import DataError, shown

SPLIT, DOMAIN, CLASS = "split", "domain", "class"
ABOUT: Mapping[str, str] = {  # layout, whose name lists the levels of folders -> description
    "class-folders": "CLASS/…: a folder of images for each class",
    "split-class-folders": "SPLIT/CLASS/…: class folders in train, validation (or val) and test",
    "domain-class-folders": "DOMAIN/CLASS/…: a folder for each domain, all with the same class folders",
    "split-domain-class-folders": "SPLIT/DOMAIN/CLASS/…: domain folders in train, validation and test",
    "domain-split-class-folders": "DOMAIN/SPLIT/CLASS/…: train, validation and test in each domain",
}
SPLIT_WORDS = {
    word: number
    for number, words in enumerate(("train training", "val valid validation dev", "test testing"))
    for word in words.split()
}
# Folders that Windows, Linux and Synology add to a disk.
SYSTEM = frozenset(("$recycle.bin", "system volume information", "lost+found", "@eadir"))
BACKSLASH = "\\"
BACKSLASHES = "its name has \\ instead of /, as in some zip files from Windows"
UNPACK = "Unpack the zip file again with unzip"
TABLE = "or write a CSV file with the columns path and label"


def split_number(name: str) -> int | None:
    """Return 0, 1 or 2 for a word that means train, validation or test, else None."""
    return SPLIT_WORDS.get(name.strip().casefold())


def split_numbers(
    words: Sequence[str], codes: NDArray[np.int64], place: Callable[[int], str], remedy: str
) -> NDArray[np.int64]:
    """Return [n] the split of each image.

    Parameters
    ----------
    words
        The names of the splits.
    codes
        [n] indices into `words`.
    place
        The place of an image, for messages.
    remedy
        The remedy for messages.

    Raises
    ------
    DataError
        If a word is not a split.
    """
    numbers = np.array([-1 if (number := split_number(word)) is None else number for word in words], dtype=np.int64)
    wrong = np.flatnonzero(numbers[codes] < 0)
    if len(wrong):
        got = words[codes[wrong[0]]]
        raise DataError(where=place(int(wrong[0])), allowed="train, validation or test", got=got, remedy=remedy)
    return numbers[codes]


def recognised(root: Path) -> str | None:
    """Return the name of the layout of a directory of folders, or None; only names are read.

    Raises
    ------
    DataError
        If the meaning of the folders is unclear.
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
            f"the images of folder {shallow!r} are {depths[shallow]} folders down, and of folder {deep!r} {depth} down",
            where=str(root),
            remedy=f"Put all images at the same depth, {TABLE}",
        )
    only = _below_only_folders(root, depth)
    if only != root:
        raise DataError("there is only one folder with images", where=str(root), remedy=f"Set data.source to {only}")
    if depth > 2:
        raise DataError(
            f"the images are {depth + 1} folders deep, but at most 3 levels are read: split, domain and class",
            where=str(root),
            remedy=f"Move the images up, {TABLE}",
        )
    splits = _are_splits(depths)
    if depth == 0 and splits:
        raise DataError(
            f"the folders {', '.join(depths)} are splits and contain images without a class",
            where=str(root),
            remedy=f"Put the images into a folder for each class, {TABLE}",
        )
    layout = _layout_of(root, {top: folders(root / top) for top in depths}, depth)
    if layout is None:
        raise DataError(
            f"the images are {depth + 1} folders deep, but {_shown(depths)} and the folders in them are neither all"
            " train, validation or test, nor domains with the same classes",
            where=str(root),
            remedy="Rename or move the folders that do not fit, set data.layout to"
            f" {' or '.join(name for name in ABOUT if name.count('-') == depth + 1)}, {TABLE}",
        )
    return layout


def _below_only_folders(root: Path, depth: int) -> Path:
    """Descend while a directory has only one folder with images; return the directory of the classes."""
    while depth > 0:
        below = [name for name in folders(root) if _depth(root / name) is not None]
        if len(below) != 1 or split_number(below[0]) is not None:
            break
        root, depth = root / below[0], depth - 1
    return root


def _layout_of(root: Path, below: Mapping[str, Sequence[str]], depth: int) -> str | None:
    """Return the layout of folders whose images are `depth` folders down, or None if it is unclear."""
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
    """Return the names of the folders in a directory, without folders that do not belong to the dataset."""
    with os.scandir(directory) as entries:
        return sorted(entry.name for entry in entries if not hidden(entry.name) and entry.is_dir())


def _depth(folder: Path, left: int = 4) -> int | None:
    """Return how many folders below this one the first image is, or None if there is no image within reach."""
    with os.scandir(folder) as entries:
        below = []
        for entry in entries:
            if hidden(entry.name):
                continue
            if entry.is_dir():
                below.append(entry.name)
            elif is_image(entry.name):
                return 0
    if not left:  # a link may form a circle
        return None
    depths = (_depth(folder / name, left - 1) for name in sorted(below))
    first = next((depth for depth in depths if depth is not None), None)
    return None if first is None else first + 1


def hidden(name: str) -> bool:
    """Return whether a file or folder does not belong to the dataset, by its name."""
    return name.startswith((".", "__")) or name.casefold() in SYSTEM


def is_image(name: str) -> bool:
    """Return whether a file is an image, by its name."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - a Path for each of a million names is slow


def read(root: Path, data: DataConfig, layout: str) -> Listing:
    """Return all images of a directory of folders.

    Raises
    ------
    DataError
        If an image is at another depth, or if a link leads out of the directory.
    """
    levels = layout.removesuffix("-folders").split("-")
    if not root.is_dir():
        raise DataError(
            f"this is not a directory, but data.layout {layout} needs one",
            where=str(root),
            remedy="Choose a directory, or another data.layout",
        )
    ignored: Counter[str] = Counter()
    contents = list(_walk(root, "", len(levels), (os.path.realpath(root),), ignored, data))
    paths = [f"{folder}/{name}" for folder, files in contents for name in files]
    if not paths:
        raise DataError(
            f"there is no image in folders of the layout {layout}",
            where=str(root),
            remedy="Add images, or choose another data.layout",
        )

    def of(role: str) -> tuple[list[str], NDArray[np.int64]]:
        """Return the sorted names of the folders of a level, and [n] the index of each image's folder."""
        folders = np.array([folder.split("/")[levels.index(role)] for folder, _ in contents], dtype=object)
        names, codes = np.unique(folders, return_inverse=True)
        return names.tolist(), np.repeat(codes, [len(files) for _, files in contents])

    class_names, labels = named(*of(CLASS), str(root), data, lambda image: paths[image])
    splits, domain_names, domains = None, ["all"], None
    if SPLIT in levels:
        remedy = f"Rename this folder, as the layout {layout} has splits there, or choose another data.layout"
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
    root: Path, folder: str, depth: int, chain: tuple[str, ...], ignored: Counter[str], data: DataConfig
) -> Iterator[tuple[str, list[str]]]:
    """Yield every folder `depth` levels down, as a relative path, with the sorted names of its images.

    `chain`: the real paths of the root and of all folders above, to which a link must not lead back.
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
                    _check_link(root, above + entry.name, chain, data.follow_links)
                below.append(entry.name)
            elif is_image(entry.name):
                images.append(entry.name)
            else:
                ignored[os.path.splitext(entry.name)[1].lower() or "without extension"] += 1  # noqa: PTH122
    if depth == 0:
        for name in below:
            if _depth(root / folder / name) is not None:
                raise DataError(
                    f"folder {f'{folder}/{name}'!r} contains images below the folder of a class",
                    where=str(root),
                    remedy="Move them up, or choose another data.layout",
                )
        yield folder, sorted(images)
        return
    if images and data.drop_unlabelled:
        ignored[UNLABELLED[1]] += len(images)
    elif images:
        name = min(images)
        problem = "the image is not in the folder of a class"
        remedy = "Move it into one, or leave out all such images with --set data.drop_unlabelled=true"
        if BACKSLASH in name:
            problem, remedy = f"{problem}, and {BACKSLASHES}", UNPACK
        raise DataError(problem, where=str(root / folder / name), remedy=remedy)
    for name in sorted(below):
        deeper = (*chain, os.path.realpath(root / above / name))
        yield from _walk(root, above + name, depth - 1, deeper, ignored, data)


def _check_link(root: Path, link: str, chain: tuple[str, ...], follow_links: bool) -> None:
    """Raise DataError for a link that leads back in a circle, or out of the root if links are not followed."""
    target = os.path.realpath(root / link)
    if not follow_links:
        check_inside(str(root / link), os.fsencode(target), os.fsencode(chain[0]))
    if target in chain:
        raise DataError(
            f"this link leads back to {target}, in a circle", where=str(root / link), remedy="Remove the link"
        )
