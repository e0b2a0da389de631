"""Turn a source of images into a `Source`.

A reader makes a `Listing` of all images of a path, and `listing` checks it and divides it into splits. To add a
known dataset, add a section to known.toml. For a new layout of files, write a reader and an entry of `LAYOUTS`.
"""

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TypeVar

from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import caltech101, folder, hugging_face, known, known_folders, pictograms
from fedpgp.data.sources.dataset import SPLITS, ImageDataset, Source, StoredFeatures
from fedpgp.data.sources.layouts import AUTO, LAYOUTS, layout_of
from fedpgp.data.sources.listing import Listing, to_source, to_target
from fedpgp.data.sources.names import is_text
from fedpgp.errors import DataError, nearest, shown
from fedpgp.runtime.files import exists

__all__ = [
    "LAYOUTS",
    "SPLITS",
    "ImageDataset",
    "Source",
    "StoredFeatures",
    "check_used",
    "is_name",
    "load_source",
    "load_target",
]
OF_TABLES = tuple(f"{role}_column" for role in ("image", "label", "domain", "client", "split"))
TABLES = ("table", hugging_face.LAYOUT, "webdataset")  # layouts
OF_SOME = (*OF_TABLES, "drop_unlabelled", "follow_links")  # that only some layouts read
OF_FILES = ("layout", "names", *OF_SOME, "drop_unused_classes", "test_share", "validation_share")
WITHOUT_LINKS = ("cifar", "idx", hugging_face.LAYOUT, "webdataset")  # layouts whose images are not separate files

T = TypeVar("T")


def _accessible(read: Callable[[DataConfig], T]) -> Callable[[DataConfig], T]:
    """Let a function raise DataError for a directory or file to which the user has no access."""

    @wraps(read)
    def reading(data: DataConfig) -> T:
        try:
            return read(data)
        except PermissionError as error:
            raise DataError(
                "this user has no access to it, or to a directory above it",
                where=str(error.filename or data.source),
                remedy="Change its owner or its access rights, or run the command as its owner",
            ) from error

    return reading


def is_name(source: str) -> bool:
    """Return whether a data.source is the name of a dataset, and not the path of a directory or file."""
    return source == pictograms.NAME or source in known.NAMES or source.startswith(hugging_face.HUB)


def load_source(data: DataConfig, splits: Sequence[str] = SPLITS) -> Source:
    """Return the dataset of a config.

    Parameters
    ----------
    data
        The section [data] of the config.
    splits
        The splits to read. The others may be missing; only "test" may be left out.

    Raises
    ------
    DataError
        If the dataset is unknown, incomplete or damaged.
    """
    if data.source == pictograms.NAME:
        source = pictograms.read(splits)
        return replace(source, templates=(data.template,)) if data.template else source
    return to_source(read_listing(data), data, splits)


def check_used(data: DataConfig) -> None:
    """Raise DataError for a setting of [data] that the reader of this source ignores; read no image."""
    default = DataConfig()
    changed = [key for key in OF_FILES if getattr(data, key) != getattr(default, key)]
    if data.source == pictograms.NAME:
        unused, reader = OF_FILES, "the embedded pictograms"
    elif not {*OF_SOME} & {*changed}:
        return  # before the layout is looked for on the disk
    else:
        if data.source.startswith(hugging_face.HUB):
            layout = hugging_face.LAYOUT
        else:
            layout = "coop" if caltech101.stands_in(data) else located(data)[1]
        unused = () if layout in TABLES else OF_TABLES
        unused += () if layout in TABLES or layout in folder.ABOUT else ("drop_unlabelled",)
        unused += ("follow_links",) if layout in WITHOUT_LINKS else ()
        reader = f"the layout {layout}"
    for key in changed:
        if key in unused:
            raise DataError(
                where=f"data.{key}",
                allowed=f"unset for {data.source}, because {reader} ignores it",
                got=getattr(data, key),
                remedy=f"Use --set data.{key}={getattr(default, key) or json.dumps(getattr(default, key))}",
            )


def load_target(data: DataConfig) -> ImageDataset:
    """Return the images to test of another dataset: its test split, or all images if it has no splits."""
    if data.source == pictograms.NAME:
        embedded = pictograms.read().test
        assert embedded is not None, "the test split was read"
        return embedded
    return to_target(read_listing(data))


@_accessible
def read_listing(data: DataConfig) -> Listing:
    """Return all images of a source that is not embedded, before they are divided into splits.

    Raises the same errors as `load_source`.
    """
    listing = _read_listing(data)
    return listing.without_unused() if data.drop_unused_classes else listing


def _read_listing(data: DataConfig) -> Listing:
    if data.source.startswith(hugging_face.HUB):
        return hugging_face.read_hub(data.source, data)
    if caltech101.stands_in(data):
        return caltech101.read(data)
    path, layout = located(data)
    listing = LAYOUTS[layout].read(path, data)
    if layout == hugging_face.LAYOUT and data.source in known.NAMES:
        return as_known(listing, data.source, data)
    return listing


def as_known(listing: Listing, name: str, data: DataConfig) -> Listing:
    """Return the content of a mirror of a known dataset, with its name, template and class names.

    Raises
    ------
    DataError
        If the mirror has another dataset.
    """
    of = known.KNOWN[name]
    if of.classes and len(of.classes) != len(listing.class_names):
        count = len(listing.class_names)
        raise DataError(
            where=f"{listing.where}: the number of classes",
            allowed=str(len(of.classes)),
            got=count,
            remedy="Get the dataset again",
        )
    if of.domains:
        known_folders.check_domains(listing, name)
    class_names = listing.class_names if data.names or not of.classes else of.classes
    return replace(listing, name=name, class_names=class_names, templates=(of.template,))


@_accessible
def located(data: DataConfig) -> tuple[Path, str]:
    """Return the path of a source on the disk and the name of its layout; raise errors as in `load_source`."""
    if data.source in known.NAMES:
        path = known.find(data.source, Path(data.root))
        usual = hugging_face.LAYOUT if hugging_face.is_saved(path) else known.KNOWN[data.source].layout
        return path, layout_of(path, usual if data.layout == AUTO else data.layout)
    path = Path(data.source)
    if not is_text(data.source):
        raise DataError(
            f"'{shown(data.source)}' is not text in UTF-8, but it is written to config.toml",
            where="data.source",
            remedy="Rename the directory or file",
        )
    if not exists(path):
        if path.parent != Path():
            siblings = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
            close = difflib.get_close_matches(path.name, siblings, n=1)
            remedy = f"Use {path.parent / close[0]}" if close else f"Check the path. You are in {Path.cwd()}"
            raise DataError("there is no such directory or file", where=data.source, remedy=remedy)
        names = [pictograms.NAME, *known.NAMES]
        allowed = "a directory or file that exists, or a known name"
        raise DataError(where="data.source", allowed=allowed, got=data.source, remedy=nearest(data.source, names))
    return path, layout_of(path, data.layout)
