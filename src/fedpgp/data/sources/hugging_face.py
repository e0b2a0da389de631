"""Datasets of the Hugging Face hub or as `datasets` saves them, and tars in the WebDataset format."""

import glob
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedpgp.data.decode import decode
from fedpgp.data.settings import DataConfig
from fedpgp.data.sources.columns import IMAGE, LABEL, described, find_columns
from fedpgp.data.sources.folder import hidden, split_number
from fedpgp.data.sources.listing import ChosenPictures, Listing
from fedpgp.data.sources.names import reading
from fedpgp.errors import DataError, first_line, shown

HUB, LAYOUT = "hf:", "hugging-face"
SAVED = ("dataset_dict.json", "state.json")
CARDS = ("README.md", ".huggingface.yaml")  # cards of a directory of Parquet files, which may list its files


@dataclass(frozen=True)
class _Pictures:
    """Images of a table of `datasets`, mapped from a disk.

    Attributes
    ----------
    rows
        The table with one column of images that are not decoded.
    column
        The name of the column.
    where
        The table, for messages.
    origin
        Texts that distinguish these images from others.
    """

    rows: Any
    column: str
    where: str
    origin: tuple[str, ...]

    def __call__(self, index: int) -> Image.Image:
        cell = self.rows[index][self.column]
        if cell is None:
            raise DataError("the row has no image", where=self.place(index), remedy="Add it, or remove the row")
        if isinstance(cell, bytes):
            return decode(cell)
        return decode(cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]))

    def place(self, index: int) -> str:
        return f"row {index + 1} of {self.where}"

    def fingerprint(self, images: NDArray[np.int64]) -> str:
        text = "\0".join([*self.origin, self.column, images.astype(np.int64).tobytes().hex(), ""])
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def is_saved(path: Path) -> bool:
    """Return whether `save_to_disk` wrote a directory, or whether it has Parquet files as on the hub."""
    return path.is_dir() and (
        any((path / name).is_file() for name in SAVED)
        or any(_visible(place, "*.parquet") for place in (path, path / "data"))
    )


def is_tars(path: Path) -> bool:
    """Return whether a path is a tar, or a directory of tars."""
    return path.suffix == ".tar" if path.is_file() else bool(_visible(path, "*.tar"))


def _visible(directory: Path, pattern: str) -> list[Path]:
    """Return the files of a directory that match a pattern, without hidden files such as macOS's ._train.tar."""
    return sorted(file for file in directory.glob(pattern) if not hidden(file.name))


def read_hub(source: str, data: DataConfig) -> Listing:
    """Read "hf:ORG/NAME" or "hf:ORG/NAME/CONFIG" from the hub, or from an earlier download."""
    import datasets

    parts = source.removeprefix(HUB).split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataError(
            where="data.source",
            allowed="hf:ORG/NAME or hf:ORG/NAME/CONFIG",
            got=source,
            remedy="Use --data hf:ORG/NAME",
        )
    return _listing(partial(datasets.load_dataset, "/".join(parts[:2]), *parts[2:]), source, parts[1], data)


def read_saved(path: Path, data: DataConfig) -> Listing:
    """Read a directory that `is_saved` recognises."""
    import datasets

    if any((path / name).is_file() for name in SAVED):
        load = partial(datasets.load_from_disk, str(path))
    elif (pattern := _literal(path.resolve())) == str(path.resolve()):
        load = partial(datasets.load_dataset, str(path))
    else:
        card = next((path / name for name in CARDS if (path / name).is_file()), None)
        with reading(path, "Make it readable"):
            listed = card is not None and "data_files" in card.read_text(encoding="utf-8")
        if card is not None and listed:
            raise DataError(
                f"{card.name} lists files by patterns, and the path contains * ? or [",
                where=str(path),
                remedy="Rename the directory, without these characters",
            )
        load = partial(datasets.load_dataset, "parquet", data_dir=pattern)
    return _listing(load, str(path), path.resolve().name, data)


def _literal(path: Path) -> str:
    """Return the pattern that matches only this path, as `datasets` treats every path as a pattern.

    Raises DataError for a path that `datasets` would split into several.
    """
    absolute = str(path.absolute())
    if "::" in absolute:
        raise DataError(
            "the path contains ::, which separates several paths for the library datasets",
            where=str(path),
            remedy="Rename the directory",
        )
    return glob.escape(absolute)


def read_tars(path: Path, data: DataConfig) -> Listing:
    """Read tars in the WebDataset format; the first word of a tar's name may be its split."""
    files: dict[str, list[str]] = {}
    for file in [path] if path.is_file() else _visible(path, "*.tar"):
        word = file.stem.replace("_", "-").split("-")[0]
        files.setdefault(word if split_number(word) is not None else "train", []).append(str(file))
    return read_files(files, "webdataset", path, data)


def read_files(files: Mapping[str, Sequence[str]], builder: str, path: Path, data: DataConfig) -> Listing:
    """Read the files of each split, in a format that `datasets` has a builder for."""
    import datasets

    patterns = {split: [_literal(Path(name)) for name in names] for split, names in files.items()}
    load = partial(datasets.load_dataset, builder, data_files=patterns)
    return _listing(load, str(path), path.resolve().stem, data)


def _listing(load: Callable[[], Any], where: str, name: str, data: DataConfig) -> Listing:
    """Return all images of the dataset that `load` returns, or of its splits by name."""
    import datasets
    import pyarrow

    with reading_dataset(where), _quiet():
        splits = load()
    by_split = splits if isinstance(splits, dict) else {"train": splits}
    numbered = {word: number for word in by_split if (number := split_number(str(word))) is not None}
    ordered = sorted(numbered, key=lambda word: numbered[word])
    if not ordered:
        raise DataError(
            where=f"{where}: the splits",
            allowed="train, validation or test",
            got=list(map(str, by_split)),
            remedy="Rename them",
        )
    parts = [by_split[word] for word in ordered]
    features = parts[0].features
    columns = _columns(features, data, where)
    image, label = columns[IMAGE], features[columns[LABEL]]
    other = list(dict.fromkeys(column for role, column in columns.items() if role != IMAGE))
    table = pyarrow.concat_tables(
        [part.select_columns(other).with_format("arrow")[:] for part in parts], promote_options="permissive"
    )
    if pyarrow.types.is_struct(table.schema.field(columns[LABEL]).type):  # a JSON object describes each row
        table = pyarrow.Table.from_struct_array(table[columns[LABEL]])
        data = replace(data, image_column=IMAGE, label_column="")
        columns = find_columns([IMAGE, *table.column_names], data, where)
    images = []
    for part in parts:
        encoded = part.select_columns([image])
        if isinstance(part.features[image], datasets.Image):
            encoded = encoded.cast_column(image, datasets.Image(decode=False))
        images.append(encoded)
    files = [Path(file["filename"]) for part in images for file in part.cache_files]
    states = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    origin = (*states, *(part._fingerprint for part in images))
    with reading_dataset(where):
        pictures = _Pictures(datasets.concatenate_datasets(images), image, where, origin)
    class_names = label.names if isinstance(label, datasets.ClassLabel) else None
    listing = described(table, columns, where, data, pictures, class_names)
    if listing.splits is None and len(ordered) > 1:
        of_split = np.repeat([numbered[word] for word in ordered], list(map(len, parts)))
        kept = listing.pictures.rows if isinstance(listing.pictures, ChosenPictures) else np.arange(len(of_split))
        listing = replace(listing, splits=of_split[kept])
    ignored = {f"split {word}": len(part) for word, part in by_split.items() if word not in numbered}
    return replace(listing, name=shown(name), ignored={**ignored, **listing.ignored})


def _columns(features: Any, data: DataConfig, where: str) -> dict[str, str]:
    """Find columns as `find_columns`; the only column of images or class labels may have any name."""
    import datasets

    for role, kind in ((IMAGE, datasets.Image), (LABEL, datasets.ClassLabel)):
        of_kind = [name for name, feature in features.items() if isinstance(feature, kind)]
        if len(of_kind) == 1 and not getattr(data, f"{role}_column"):
            data = replace(data, **{f"{role}_column": of_kind[0]})
    if "json" in features and not data.label_column and not {"cls", "label"} & set(features):
        data = replace(data, label_column="json")
    return find_columns(list(features), data, where)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the progress bars and warnings of `datasets` and of the hub's client."""
    import datasets

    without_bars = datasets.are_progress_bars_disabled()
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    datasets.disable_progress_bars()
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        if not without_bars:
            datasets.enable_progress_bars()


@contextmanager
def reading_dataset(where: str) -> Iterator[None]:
    """Raise DataError for anything that `datasets` and the libraries below it raise."""
    try:
        yield
    except Exception as error:
        message, remedy = first_line(error), "Write it again, or as a CSV file with images in folders"
        if "Config name is missing" in str(error) or "BuilderConfig" in str(error):
            message, remedy = " ".join(str(error).split())[:300], "Choose a configuration: hf:ORG/NAME/CONFIG"
        elif where.startswith(HUB):
            remedy = (
                "Check the name and the network. Without a network, download the dataset elsewhere, write it with"
                " save_to_disk, and set data.source to that directory; HF_HUB_OFFLINE=1 uses an earlier download"
            )
        raise DataError(f"cannot be read: {message.removesuffix('.')}", where=where, remedy=remedy) from error
