"""Folders: the names of a picture's folders are its split, domain and class."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedpgp.data.decode import SUFFIXES, FilePictures
from fedpgp.data.sources.dataset import SPLITS
from fedpgp.data.sources.listing import Listing
from fedpgp.data.sources.names import named
from fedpgp.errors import DataError

if TYPE_CHECKING:
    from fedpgp.data.settings import DataConfig

SPLIT, DOMAIN, CLASS = "split", "domain", "class"
LEVELS: Mapping[str, tuple[str, ...]] = {
    "class-folders": (CLASS,),
    "split-class-folders": (SPLIT, CLASS),
    "domain-class-folders": (DOMAIN, CLASS),
    "split-domain-class-folders": (SPLIT, DOMAIN, CLASS),
    "domain-split-class-folders": (DOMAIN, SPLIT, CLASS),
}
SPLIT_OF = {
    word: split
    for split, words in zip(SPLITS, ("train training", "val valid validation dev", "test testing"), strict=True)
    for word in words.split()
}
CHOOSE = "set data.layout to one of them, or write a CSV file with the columns path and label"


def split_number(name: str) -> int | None:
    """0, 1 or 2 for a word that means train, validation or test."""
    split = SPLIT_OF.get(name.strip().casefold())
    return None if split is None else SPLITS.index(split)


def recognised(root: Path) -> str | None:
    """The name of the layout of a directory of folders, None for another one; reads names alone.

    Raises DataError where folders could mean several things.
    """
    if not root.is_dir():
        return None
    tops = folders(root)
    depths = {top: depth for top in tops if (depth := _depth(root / top)) is not None}
    if not depths:
        return None
    if len(set(depths.values())) > 1:
        shallow, deep = (pick(depths, key=lambda top: depths[top]) for pick in (min, max))
        raise DataError(
            f"{root}: folder {shallow!r} holds images {depths[shallow]} folders down and {deep!r} {depths[deep]}: put"
            " all at the same depth, or write a CSV file with the columns path and label"
        )
    (depth,) = set(depths.values())
    if depth > 2:
        raise DataError(
            f"{root}: the images lie {depth + 1} folders deep, and at most 3 are read: split, domain, class"
        )
    below = {top: folders(root / top) for top in depths} if depth else {}
    if depth == 0:
        return _of_one_level(root, list(depths))
    return _of_two_levels(root, below) if depth == 1 else _of_three_levels(root, below)


def _of_one_level(root: Path, tops: Sequence[str]) -> str:
    if all(split_number(top) is not None for top in tops):
        raise DataError(
            f"{root}: the folders {', '.join(tops)} are splits and hold images without a class: put these into a folder"
            " for each class, or write a CSV file with the columns path and label"
        )
    return "class-folders"


def _of_two_levels(root: Path, below: Mapping[str, Sequence[str]]) -> str:
    splits = [top for top in below if split_number(top) is not None]
    if len(splits) == len(below):
        return "split-class-folders"
    if splits:
        other = next(top for top in below if top not in splits)
        raise DataError(
            f"{root}: folder {splits[0]!r} is a split and {other!r} is none: move it away, or set data.layout to"
            " domain-class-folders"
        )
    if len(below) == 1:
        (only,) = below
        raise DataError(f"{root}: holds one folder alone, {only!r}: give data.source as {root / only}")
    _check_no_splits(root, below)
    if len({tuple(names) for names in below.values()}) > 1:
        raise DataError(
            f"{root}: the folders {_some(below)} do not hold the same classes, so they need not be domains:"
            f" domain-class-folders reads them as such; {CHOOSE}"
        )
    return "domain-class-folders"


def _of_three_levels(root: Path, below: Mapping[str, Sequence[str]]) -> str:
    if all(split_number(name) is not None for names in below.values() for name in names):
        return "domain-split-class-folders"
    if not all(split_number(top) is not None for top in below):
        raise DataError(
            f"{root}: the images lie three folders deep, and neither {_some(below)} nor the folders in them are train,"
            f" validation and test: {CHOOSE.replace('one of them', 'one of three levels')}"
        )
    classes: dict[str, set[str]] = {}
    for top, domains in below.items():
        for domain in domains:
            classes.setdefault(domain, set()).update(folders(root / top / domain))
    if len({frozenset(names) for names in classes.values()}) > 1:
        raise DataError(
            f"{root}: the folders {_some(classes)} do not hold the same classes, so they need not be domains:"
            f" split-domain-class-folders reads them as such; {CHOOSE}"
        )
    return "split-domain-class-folders"


def _check_no_splits(root: Path, below: Mapping[str, Sequence[str]]) -> None:
    for top, names in below.items():
        if names and all(split_number(name) is not None for name in names):
            raise DataError(
                f"{root}: folder {top!r} holds the splits {', '.join(names)}: put splits above classes, as"
                f" {names[0]}/{top}, or write a CSV file with the columns path, label and split"
            )


def _some(names: Mapping[str, object]) -> str:
    shown = ", ".join(repr(name) for name in islice(names, 3))
    return shown + (" …" if len(names) > 3 else "")


def folders(directory: Path) -> list[str]:
    """The names of the folders in a directory, without those that are none of the data set's."""
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
    """Whether a file or folder is none of the data set's, by its name."""
    return name.startswith((".", "__"))


def is_image(name: str) -> bool:
    """Whether a file is one, by its name."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - a Path for each of a million names is slow


@dataclass
class _Walk:
    """What a walk has met so far; codes: of each image, the place of its folder in `names`, level by level."""

    paths: list[str] = field(default_factory=list)
    codes: list[tuple[int, ...]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


def read(root: Path, data: "DataConfig", layout: str) -> Listing:
    """All images of a directory of folders; raises DataError for an image at another depth, and links that lead out."""
    levels = LEVELS[layout]
    if not root.is_dir():
        raise DataError(f"{root}: is no directory, and data.layout {layout} reads one")
    found = _Walk()
    names: list[dict[str, int]] = [{} for _ in levels]
    for place in _walk(root, "", len(levels), (os.path.realpath(root),), found.ignored):
        folder, files = place
        parts = folder.split("/")
        for level, part in enumerate(parts):
            names[level].setdefault(part, len(names[level]))
        found.paths += [f"{folder}/{name}" for name in files]
        found.codes.append(tuple(names[level][part] for level, part in enumerate(parts)))
        found.counts.append(len(files))
    if not found.paths:
        raise DataError(f"{root}: holds no image in folders of the layout {layout}: add some, or set data.layout")
    codes = np.repeat(np.array(found.codes, dtype=np.int64), found.counts, axis=0)
    of = {level: (list(names[i]), codes[:, i]) for i, level in enumerate(levels)}
    where = str(root)
    class_names, labels = named(*of[CLASS], where, root, data, lambda image: found.paths[image])
    splits = None
    if SPLIT in of:
        words, which = of[SPLIT]
        numbers = [split_number(word) for word in words]
        if None in numbers:
            raise DataError(
                f"{root}: {words[numbers.index(None)]!r} must be train, validation or test, which is what the layout"
                f" {layout} has there: rename it, or set data.layout"
            )
        splits = np.array(numbers, dtype=np.int64)[which]
    domains, domain_names = None, ["all"]
    if DOMAIN in of:
        domain_names, which = of[DOMAIN]
        order = sorted(range(len(domain_names)), key=lambda i: domain_names[i])
        domains = np.argsort(order)[which]
        domain_names = [domain_names[i] for i in order]
    return Listing(
        name=root.resolve().name,
        where=where,
        pictures=FilePictures.of(root, found.paths),
        class_names=class_names,
        labels=labels,
        splits=splits,
        domain_names=tuple(domain_names),
        domains=domains,
        ignored=found.ignored,
    )


def _walk(
    root: Path, folder: str, depth: int, chain: tuple[str, ...], ignored: Counter[str]
) -> Iterator[tuple[str, list[str]]]:
    """Every folder so many levels down, relative, with the names of its images, sorted.

    chain: the real paths of the root and of all folders above, among which a link must not lead back.
    """
    below: list[str] = []
    images: list[str] = []
    with os.scandir(root / folder) as entries:
        for entry in entries:
            inner = f"{folder}/{entry.name}" if folder else entry.name
            if hidden(entry.name):
                ignored["hidden"] += 1
            elif entry.is_dir():
                if not entry.is_symlink() or _leads_on(root, inner, chain):
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
        raise DataError(f"{root / folder / name}: lies outside the folder of a class: move it into one, or away")
    for name in sorted(below):
        inner = f"{folder}/{name}" if folder else name
        yield from _walk(root, inner, depth - 1, (*chain, os.path.realpath(root / inner)), ignored)


def _leads_on(root: Path, link: str, chain: tuple[str, ...]) -> bool:
    """Whether a link leads to a folder inside the root; raises DataError if it leads out, or back in a circle."""
    target = os.path.realpath(root / link)
    if os.path.commonpath([chain[0], target]) != chain[0]:
        raise DataError(
            f"{root / link}: is a link that leads out of {root}, to {target}: copy that folder there, or name the"
            " directory that holds both"
        )
    if target in chain:
        raise DataError(f"{root / link}: is a link that leads back to {target}, in a circle: remove it")
    return True
