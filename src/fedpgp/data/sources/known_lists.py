"""Known datasets with lists of images: CoOp's split files, DomainNet, FGVC-Aircraft, Tiny ImageNet."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from fedpgp.data.decode import FilePictures
from fedpgp.data.settings import DataConfig
from fedpgp.data.sources.folder import hidden, is_image
from fedpgp.data.sources.known import KNOWN, TEMPLATE
from fedpgp.data.sources.listing import OUTSIDE, TEST, TRAIN, VALIDATION, Listing
from fedpgp.data.sources.names import numbered_lines, read_lines, reading, renamed, told_apart
from fedpgp.errors import DataError
from fedpgp.runtime.validation import STRICT

CoOpEntry: TypeAlias = tuple[str, Annotated[int, Field(ge=0)], str]
COOP_FILES = "split_zhou_*.json"
PARTS = {"train": TRAIN, "val": VALIDATION, "test": TEST}  # words in the names of CoOp's and FGVC-Aircraft's lists
VARIANTS = "variants.txt"
DOMAINS = KNOWN["domainnet"].domains
DOMAINNET_LINE = re.compile(r"(?P<path>(?P<domain>[^/]+)/(?P<name>[^/]+)/[^/]+) (?P<label>[0-9]{1,9})")
WORDNET_IDS, WORDS, ANNOTATIONS = "wnids.txt", "words.txt", "val/val_annotations.txt"


class ImageList:
    """The images that some lists contain, one after another.

    Attributes
    ----------
    remedy
        The remedy for a wrong list.
    names
        The class name of each label, set in advance or learned from the images.
    """

    def __init__(self, remedy: str) -> None:
        self.remedy = remedy
        self.names: dict[int, str] = {}
        self.label_of: dict[str, int] = {}
        self.paths: list[str] = []
        self.rows: list[tuple[int, int, int]] = []  # label, split, domain

    def add(self, where: str, path: str, label: int, split: int, name: str | None = None, domain: int = 0) -> None:
        """Add one image.

        Raises
        ------
        DataError
            If the path leads out of the directory, or if a label or name has two meanings.
        """
        if OUTSIDE.search(path):
            raise self.wrong(f"{where}: the path", "relative, and inside of the directory of the images", path)
        if name is not None:
            if (known := self.names.setdefault(label, name)) != name:
                raise DataError(
                    f"label {label} has the name {name!r} here, but {known!r} before", where=where, remedy=self.remedy
                )
            if (before := self.label_of.setdefault(name, label)) != label:
                raise DataError(
                    f"{name!r} has the label {label} here, but {before} before", where=where, remedy=self.remedy
                )
        self.paths.append(path)
        self.rows.append((label, split, domain))

    def lines(self, file: Path) -> Iterator[tuple[str, str]]:
        """Yield the place and the text of each line of a list; raise errors as in `read_lines`."""
        for number, line in numbered_lines(file, self.remedy).items():
            yield f"{file}:{number}", line

    def wrong(self, where: str, expected: str, line: str) -> DataError:
        """Return the error for a line that is not `expected`."""
        return DataError(where=where, allowed=expected, got=line, remedy=self.remedy)

    def listing(self, name: str, root: Path, listed: Path, data: DataConfig, only: Sequence[str] = ()) -> Listing:
        """Return the images below `root` as a listing.

        Parameters
        ----------
        name
            The name of the dataset. A known name adds its template and domains.
        root
            The directory of the images.
        listed
            The lists, for messages.
        data
            The section [data] of the config.
        only
            The classes to read; empty reads all.
        """
        known = KNOWN.get(name)
        domain_names = known.domains if known else ()
        chosen = sorted(self.label_of[class_name] for class_name in only) if only else sorted(self.names)
        labels, splits, domains = np.array(self.rows, dtype=np.int64).T
        images = np.flatnonzero(np.isin(labels, chosen))
        return Listing(
            name=name,
            where=str(listed),
            pictures=FilePictures.of(root, [self.paths[image] for image in images], str(listed), data.follow_links),
            class_names=renamed([self.names[label] for label in chosen], str(listed), data),
            labels=np.searchsorted(chosen, labels[images]),
            splits=splits[images],
            domain_names=domain_names or ("all",),
            domains=domains[images] if domain_names else None,
            templates=(known.template if known else TEMPLATE,),
        )


@dataclass(config={**STRICT, "extra": "ignore"})
class _SplitFile:
    """The content of CoOp's JSON files: lists of path, label and class name."""

    train: list[CoOpEntry]
    val: list[CoOpEntry]
    test: list[CoOpEntry]


def is_coop(path: Path) -> bool:
    """Return whether a path is a split file of CoOp, or a directory with such a file."""
    return any(path.glob(COOP_FILES)) if path.is_dir() else path.is_file() and path.match(COOP_FILES)


def read_coop(path: Path, data: DataConfig) -> Listing:
    """Return all images of a split file of CoOp (Zhou et al. 2022).

    Raises
    ------
    DataError
        If the file is damaged.
    """
    files = sorted(path.glob(COOP_FILES)) if path.is_dir() else [path]
    if len(files) != 1:
        raise DataError(
            f"this directory must contain one file {COOP_FILES}, but contains {len(files)} of them",
            where=str(path),
            remedy="Get one from CoOp (`fedpgp data get caltech101` adds the file of Caltech101), or set data.source to"
            " one of them",
        )
    (file,) = files
    images = coop_images(file)
    name = next((name for name, known in KNOWN.items() if known.list == file.name), "")
    places = [file.parent / folder for folder in (KNOWN[name].images if name else ".", ".", "images")]
    root = next((place for place in places if os.path.lexists(place / images.paths[0])), None)
    if root is None:
        raise DataError(
            f"the first image {images.paths[0]} is missing in {', '.join(map(str, dict.fromkeys(places)))}",
            where=str(file),
            remedy="Put the images into the first of these directories",
        )
    return images.listing(name or file.stem.removeprefix("split_zhou_").lower(), root, file, data)


def coop_images(file: Path) -> ImageList:
    """Return the images of a split file of CoOp, in its order.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    content = _split_file(file)
    images = ImageList("Get the file from CoOp again")
    for part, split in PARTS.items():
        for number, (image, label, class_name) in enumerate(getattr(content, part)):
            images.add(f"{file}, entry {number} of {part}", image, label, split, class_name)
    if not images.paths:
        raise DataError("the file lists no image", where=str(file), remedy=images.remedy)
    lacking = next((label for label in range(max(images.names)) if label not in images.names), None)
    if lacking is not None:
        raise DataError(
            f"label {lacking} is missing among the labels 0 to {max(images.names)}",
            where=str(file),
            remedy="Renumber the labels",
        )
    return images


def _split_file(file: Path) -> _SplitFile:
    with reading(file, "Make the file readable"):
        content = file.read_bytes()
    try:
        return TypeAdapter(_SplitFile).validate_json(content)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise DataError(
            where=f"{file}: {'.'.join(map(str, fault['loc'])) or 'the file'}",
            allowed=f"JSON with the lists train, val and test of [path, label from 0, class name] ({fault['msg']})",
            got=str(fault["input"])[:80],
            remedy="Get the file from CoOp again",
        ) from error


def read_aircraft(path: Path, data: DataConfig) -> Listing:
    """Return the images of FGVC-Aircraft in the splits of its lists.

    Raises
    ------
    DataError
        If a list is damaged or contains an unknown variant.
    """
    images = ImageList("Get the list again")
    images.names = dict(enumerate(read_lines(path / VARIANTS, images.remedy)))
    label_of = {variant: label for label, variant in images.names.items()}
    for part, split in PARTS.items():
        for where, line in images.lines(path / f"images_variant_{part}.txt"):
            image, _, variant = line.partition(" ")
            if variant not in label_of:
                raise images.wrong(where, f"the number of an image and a variant of {VARIANTS}", line)
            images.add(where, f"{image}.jpg", label_of[variant], split)
    return images.listing("fgvc_aircraft", path / "images", path, data)


def read_tiny_imagenet(path: Path, data: DataConfig) -> Listing:
    """Return the training images of Tiny ImageNet (Stanford CS231n), and the images of val as the test split.

    The images of its test folder have no labels and are left out. The classes have the order of wnids.txt. Their names
    are the first of their words, or all words if two classes share the first one.

    Raises
    ------
    DataError
        If a file is missing or damaged.
    """
    remedy = f"Unpack {KNOWN['tiny_imagenet'].page} again"
    identifiers = read_lines(path / WORDNET_IDS, remedy)
    label_of = {identifier: label for label, identifier in enumerate(identifiers)}
    words = dict(line.split("\t", 1) for line in read_lines(path / WORDS, remedy) if "\t" in line)
    images = ImageList(remedy)
    for identifier, label in label_of.items():
        folder = path / "train" / identifier / "images"
        if OUTSIDE.search(identifier) or not folder.is_dir():
            raise DataError(
                f"class {identifier!r} has no folder {folder}", where=str(path / WORDNET_IDS), remedy=remedy
            )
        if identifier not in words:
            raise DataError(f"class {identifier!r} has no words", where=str(path / WORDS), remedy=remedy)
        names = (entry.name for entry in os.scandir(folder) if entry.is_file())
        for name in sorted(name for name in names if is_image(name) and not hidden(name)):
            images.add(str(folder), f"train/{identifier}/images/{name}", label, TRAIN)
    for where, line in images.lines(path / ANNOTATIONS):
        image, identifier, *_ = [*line.split("\t"), "", ""]
        if identifier not in label_of:
            raise images.wrong(where, f"an image and a class of {WORDNET_IDS}, separated by a tab", line)
        images.add(where, f"val/images/{image}", label_of[identifier], VALIDATION)
    firsts = {identifier: words[identifier].split(",")[0].strip() for identifier in identifiers}
    images.names = dict(enumerate(told_apart(firsts, words).values()))
    return images.listing("tiny_imagenet", path, path, data)


def domainnet_lists(path: Path) -> Path | None:
    """Return the directory of DomainNet's lists, which is the directory of the domains or `splits` in it."""
    return next((place for place in (path, path / "splits") if (place / f"{DOMAINS[0]}_train.txt").is_file()), None)


def read_domainnet(path: Path, data: DataConfig, name: str) -> Listing:
    """Return the images of DomainNet in the training and test splits of its lists.

    Parameters
    ----------
    path
        The directory of the domains.
    data
        The section [data] of the config.
    name
        "domainnet", or "domainnet10" for the ten classes of FedBN (Li et al. 2021).

    Raises
    ------
    DataError
        If a list is missing or damaged, or gives one label to two classes.
    """
    lists = domainnet_lists(path)
    if lists is None:
        raise DataError(
            f"{DOMAINS[0]}_train.txt and the other lists of DomainNet are missing",
            where=str(path),
            remedy=f"Get them from {KNOWN['domainnet'].page}",
        )
    images = ImageList("Get the lists train and test of the six domains again")
    for number, domain in enumerate(DOMAINS):
        for part in ("train", "test"):
            for where, line in images.lines(lists / f"{domain}_{part}.txt"):
                match = DOMAINNET_LINE.fullmatch(line)
                if match is None or match["domain"] != domain:
                    raise images.wrong(where, f"{domain}/CLASS/FILE and a label", line)
                images.add(where, match["path"], int(match["label"]), PARTS[part], match["name"], number)
    only = KNOWN[name].classes
    lacking = [class_name for class_name in only if class_name not in images.label_of]
    if lacking:
        raise DataError(f"the lists have no image of {', '.join(lacking)}", where=str(lists), remedy=images.remedy)
    return images.listing(name, path, lists, data, only)
