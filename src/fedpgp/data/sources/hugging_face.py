"""Data sets of the Hugging Face hub, or as `datasets` saves them; and tars in the WebDataset format."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedpgp.data.decode import decode
from fedpgp.data.sources.columns import IMAGE, LABEL, described, find_columns
from fedpgp.data.sources.folder import split_number
from fedpgp.data.sources.listing import Listing, digest
from fedpgp.errors import DataError

if TYPE_CHECKING:
    from fedpgp.data.settings import DataConfig

HUB = "hf:"
SAVED = ("dataset_dict.json", "state.json")


@dataclass(frozen=True)
class _Pictures:
    """Images of `datasets`' tables, mapped from a disk. parts: with the one column of images, not decoded.

    starts: of each part, the number of its first image; images: [n] which these are; where: for messages.
    """

    parts: tuple[Any, ...]
    starts: NDArray[np.int64]
    column: str
    where: str
    images: NDArray[np.int64]

    def __call__(self, index: int) -> Image.Image:
        return decode(self.content(index))

    def content(self, index: int) -> bytes:
        number = int(self.images[index])
        part = int(np.searchsorted(self.starts, number, side="right")) - 1
        found = self.parts[part][number - int(self.starts[part])][self.column]
        if found is None:
            raise DataError("the row has no image")
        if isinstance(found, bytes):
            return found
        return found["bytes"] if found["bytes"] is not None else Path(found["path"]).read_bytes()

    def place(self, index: int) -> str:
        return f"row {self.images[index] + 1} of {self.where}"

    def select(self, images: NDArray[np.int64]) -> "_Pictures":
        return replace(self, images=self.images[images])

    def fingerprint(self, images: NDArray[np.int64]) -> str:
        """Of name, size and time of change of the files that hold the images, and of the images' numbers."""
        files = [Path(file["filename"]) for part in self.parts for file in part.cache_files]
        states = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
        kinds = [part._fingerprint for part in self.parts]
        return digest([*states, *kinds, self.column, self.images[images].tobytes().hex()])


def is_saved(path: Path) -> bool:
    """A directory that `save_to_disk` wrote, or that holds Parquet files as on the hub."""
    return path.is_dir() and (
        any((path / name).is_file() for name in SAVED)
        or any(True for place in (path, path / "data") for _ in place.glob("*.parquet"))
    )


def is_tars(path: Path) -> bool:
    """A tar, or a directory of tars."""
    return path.suffix == ".tar" if path.is_file() else any(True for _ in path.glob("*.tar"))


def read_hub(source: str, data: "DataConfig") -> Listing:
    """ "hf:ORG/NAME" or "hf:ORG/NAME/CONFIG" from the hub, or from what was downloaded before."""
    parts = source.removeprefix(HUB).split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataError(f"data.source must be hf:ORG/NAME or hf:ORG/NAME/CONFIG, got {source!r}")

    def load(datasets: Any) -> Any:
        return datasets.load_dataset("/".join(parts[:2]), *parts[2:])

    return _read(load, source, parts[1], Path(), data)


def from_hub(repository: str) -> Any:
    """All splits of a data set of the hub, by name, downloaded with the client's own bars; raises DataError."""
    import datasets

    try:
        return datasets.load_dataset(repository)
    except Exception as error:  # of a dozen libraries below it
        raise _failed(error, f"{HUB}{repository}") from error


def read_saved(path: Path, data: "DataConfig") -> Listing:
    """What `is_saved` recognises."""

    def load(datasets: Any) -> Any:
        if any((path / name).is_file() for name in SAVED):
            return datasets.load_from_disk(str(path))
        return datasets.load_dataset(str(path))

    return _read(load, str(path), path.resolve().name, path, data)


def read_tars(path: Path, data: "DataConfig") -> Listing:
    """Tars in the WebDataset format; the first word of a tar's name is its split, if it is one."""
    files: dict[str, list[str]] = {}
    for file in [path] if path.is_file() else sorted(path.glob("*.tar")):
        word = file.stem.replace("_", "-").split("-")[0]
        files.setdefault(word if split_number(word) is not None else "train", []).append(str(file))
    return read_files(files, "webdataset", path, data)


def read_files(files: Mapping[str, Sequence[str]], builder: str, path: Path, data: "DataConfig") -> Listing:
    """Split -> files, in a format that `datasets` has a builder for."""

    def load(datasets: Any) -> Any:
        return datasets.load_dataset(builder, data_files={split: list(names) for split, names in files.items()})

    directory = path if path.is_dir() else path.parent
    return _read(load, str(path), path.resolve().stem, directory, data)


def _read(load: Callable[[Any], Any], where: str, name: str, directory: Path, data: "DataConfig") -> Listing:
    import datasets
    import pyarrow

    with _quiet(datasets):
        try:
            loaded = load(datasets)
        except Exception as error:  # of a dozen libraries below it
            raise _failed(error, where) from error
    by_split = loaded if isinstance(loaded, dict) else {"train": loaded}
    numbered = {word: number for word in by_split if (number := split_number(str(word))) is not None}
    ordered = sorted(numbered, key=lambda word: numbered[word])
    if not ordered:
        raise DataError(
            f"{where}: its splits {', '.join(by_split)} must be named train, validation or test: rename them"
        )
    features = by_split[ordered[0]].features
    columns = _columns(features, data, where, datasets)
    parts = [by_split[word] for word in ordered]
    label = features[columns[LABEL]]
    other = list(dict.fromkeys(column for role, column in columns.items() if role != IMAGE))
    table = pyarrow.concat_tables(
        [part.select_columns(other).with_format("arrow")[:] for part in parts], promote_options="permissive"
    )
    if LABEL in columns and pyarrow.types.is_struct(table.schema.field(columns[LABEL]).type):
        table, columns = _flattened(table, columns, data, where)
    images = [undecoded(part.select_columns([columns[IMAGE]]), columns[IMAGE]) for part in parts]
    sizes = [len(part) for part in parts]
    pictures = _Pictures(
        tuple(images), np.cumsum([0, *sizes[:-1]]), columns[IMAGE], where, np.arange(sum(sizes), dtype=np.int64)
    )
    found = described(
        table,
        columns,
        where,
        directory,
        data,
        pictures,
        np.repeat([numbered[word] for word in ordered], sizes) if len(ordered) > 1 else None,
        label.names if isinstance(label, datasets.ClassLabel) else None,
    )
    ignored = {f"split {word}": len(part) for word, part in by_split.items() if word not in numbered}
    return replace(found, name=name, ignored=ignored)


def _columns(features: Any, data: "DataConfig", where: str, datasets: Any) -> dict[str, str]:
    """As `find_columns`; the only column of images, and of class labels, need not have a usual name."""
    for role, kind in ((IMAGE, datasets.Image), (LABEL, datasets.ClassLabel)):
        of_kind = [name for name, feature in features.items() if isinstance(feature, kind)]
        if len(of_kind) == 1 and not getattr(data, f"{role}_column"):
            data = replace(data, **{f"{role}_column": of_kind[0]})
    if "json" in features and not data.label_column and not {"cls", "label"} & set(features):
        data = replace(data, label_column="json")
    return find_columns(list(features), data, where)


def _flattened(table: Any, columns: Mapping[str, str], data: "DataConfig", where: str) -> tuple[Any, dict[str, str]]:
    """A table in place of one whose rows are described by JSON objects."""
    import pyarrow

    inner = columns[LABEL]
    rows = table[inner].combine_chunks()
    names = [rows.type.field(i).name for i in range(rows.type.num_fields)]
    found = find_columns(["image", *names], replace(data, image_column="image", label_column=""), where)
    flat = pyarrow.table({name: rows.field(name) for name in names})
    return flat, {**found, IMAGE: columns[IMAGE]}


def undecoded(part: Any, column: str) -> Any:
    """A split whose images are given as the bytes of their files."""
    import datasets

    if isinstance(part.features[column], datasets.Image):
        return part.cast_column(column, datasets.Image(decode=False))
    return part


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Without the bars and warnings of `datasets` and the hub's client."""
    shown = datasets.are_progress_bars_disabled()
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    datasets.disable_progress_bars()
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        if not shown:
            datasets.enable_progress_bars()


def _failed(error: Exception, where: str) -> DataError:
    message = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if "Config name is missing" in str(error) or "BuilderConfig" in str(error):
        listed = " ".join(str(error).split())
        return DataError(f"{where}: {listed[:300]}: choose one, as hf:ORG/NAME/CONFIG")
    if where.startswith(HUB):
        return DataError(
            f"{where} cannot be read from the hub: {message}; check the name and the network, or download it where"
            " there is one, write it with save_to_disk, and give that directory as data.source (HF_HUB_OFFLINE=1 takes"
            " what was downloaded before)"
        )
    return DataError(f"{where} cannot be read: {message}; write it again, or as a CSV file with images in folders")
