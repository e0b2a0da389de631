"""Datasets of the Hugging Face hub, or as `datasets` saves them; and tars in the WebDataset format."""

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
CARDS = ("README.md", ".huggingface.yaml")  # of a directory of Parquet files, which may say what its files are


@dataclass(frozen=True)
class _Pictures:
    """Images of a table of `datasets`, mapped from a disk. rows: its one column, of images that are not decoded.

    origin: what tells other images apart from these; where: for messages.
    """

    rows: Any
    column: str
    where: str
    origin: tuple[str, ...]

    def __call__(self, index: int) -> Image.Image:
        cell = self.rows[index][self.column]
        if cell is None:
            raise DataError("the row has no image")
        if isinstance(cell, bytes):
            return decode(cell)
        return decode(cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]))

    def place(self, index: int) -> str:
        return f"row {index + 1} of {self.where}"

    def fingerprint(self, images: NDArray[np.int64]) -> str:
        text = "\0".join([*self.origin, self.column, images.astype(np.int64).tobytes().hex(), ""])
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def is_saved(path: Path) -> bool:
    """A directory that `save_to_disk` wrote, or that holds Parquet files as on the hub."""
    return path.is_dir() and (
        any((path / name).is_file() for name in SAVED)
        or any(_visible(place, "*.parquet") for place in (path, path / "data"))
    )


def is_tars(path: Path) -> bool:
    """A tar, or a directory of tars."""
    return path.suffix == ".tar" if path.is_file() else bool(_visible(path, "*.tar"))


def _visible(directory: Path, pattern: str) -> list[Path]:
    """The files of a directory that match a pattern, without hidden ones, such as macOS's ._train.tar."""
    return sorted(file for file in directory.glob(pattern) if not hidden(file.name))


def read_hub(source: str, data: DataConfig) -> Listing:
    """ "hf:ORG/NAME" or "hf:ORG/NAME/CONFIG" from the hub, or from what was downloaded before."""
    import datasets

    parts = source.removeprefix(HUB).split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataError(f"data.source must be hf:ORG/NAME or hf:ORG/NAME/CONFIG, got {source!r}")
    return _listing(partial(datasets.load_dataset, "/".join(parts[:2]), *parts[2:]), source, parts[1], data)


def read_saved(path: Path, data: DataConfig) -> Listing:
    """What `is_saved` recognises."""
    import datasets

    if any((path / name).is_file() for name in SAVED):
        load = partial(datasets.load_from_disk, str(path))
    elif (pattern := _literal(path.resolve())) == str(path.resolve()):
        load = partial(datasets.load_dataset, str(path))
    else:
        card = next((path / name for name in CARDS if (path / name).is_file()), None)
        with reading(path, "make it readable"):
            if card is not None and "data_files" in card.read_text(encoding="utf-8"):
                raise DataError(f"{card.name} names files by patterns: rename the directory, without * ? [")
        load = partial(datasets.load_dataset, "parquet", data_dir=pattern)
    return _listing(load, str(path), path.resolve().name, data)


def _literal(path: Path) -> str:
    """The pattern that matches a path alone, for `datasets`, which takes every path for a pattern.

    Raises DataError for a path that it would take for several.
    """
    absolute = str(path.absolute())
    if "::" in absolute:
        raise DataError(f"{path}: the path must not have ::, which joins several for datasets: rename the directory")
    return glob.escape(absolute)


def read_tars(path: Path, data: DataConfig) -> Listing:
    """Tars in the WebDataset format; the first word of a tar's name is its split, if it is one."""
    files: dict[str, list[str]] = {}
    for file in [path] if path.is_file() else _visible(path, "*.tar"):
        word = file.stem.replace("_", "-").split("-")[0]
        files.setdefault(word if split_number(word) is not None else "train", []).append(str(file))
    return read_files(files, "webdataset", path, data)


def read_files(files: Mapping[str, Sequence[str]], builder: str, path: Path, data: DataConfig) -> Listing:
    """Split -> files, in a format that `datasets` has a builder for."""
    import datasets

    patterns = {split: [_literal(Path(name)) for name in names] for split, names in files.items()}
    load = partial(datasets.load_dataset, builder, data_files=patterns)
    return _listing(load, str(path), path.resolve().stem, data)


def _listing(load: Callable[[], Any], where: str, name: str, data: DataConfig) -> Listing:
    """All images of the dataset that `load` returns, or of its splits by name."""
    import datasets
    import pyarrow

    with reading_dataset(where), _quiet():
        splits = load()
    by_split = splits if isinstance(splits, dict) else {"train": splits}
    numbered = {word: number for word in by_split if (number := split_number(str(word))) is not None}
    ordered = sorted(numbered, key=lambda word: numbered[word])
    if not ordered:
        raise DataError(f"{where}: its splits {', '.join(by_split)} must be train, validation or test: rename them")
    parts = [by_split[word] for word in ordered]
    features = parts[0].features
    columns = _columns(features, data, where)
    image, label = columns[IMAGE], features[columns[LABEL]]
    other = list(dict.fromkeys(column for role, column in columns.items() if role != IMAGE))
    table = pyarrow.concat_tables(
        [part.select_columns(other).with_format("arrow")[:] for part in parts], promote_options="permissive"
    )
    if pyarrow.types.is_struct(table.schema.field(columns[LABEL]).type):  # each row is described by a JSON object
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
    """As `find_columns`; the only column of images, and of class labels, need not have a usual name."""
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
    """Without the bars and warnings of `datasets` and the hub's client."""
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
    """Raises DataError for whatever the dozen libraries below `datasets` raise."""
    try:
        yield
    except Exception as error:
        message, remedy = first_line(error), "write it again, or as a CSV file with images in folders"
        if "Config name is missing" in str(error) or "BuilderConfig" in str(error):
            message, remedy = " ".join(str(error).split())[:300], "choose one, as hf:ORG/NAME/CONFIG"
        elif where.startswith(HUB):
            remedy = (
                "check the name and the network, or download it where there is one, write it with save_to_disk, and"
                " give that directory as data.source (HF_HUB_OFFLINE=1 takes what was downloaded before)"
            )
        raise DataError(f"{where} cannot be read: {message}; {remedy}") from error
