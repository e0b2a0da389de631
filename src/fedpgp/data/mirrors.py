"""Known data sets from public mirrors on the Hugging Face hub, written in the layout in which they are distributed.

Repositories and columns are from the mirrors' cards. No hub was in reach when this was written: it was tried with files
of the same form alone.
"""

import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from fedpgp.data.decode import decode, reason
from fedpgp.data.sources import LAYOUTS, cifar, domains, known, mnist
from fedpgp.data.sources.hugging_face import HUB, from_hub, undecoded
from fedpgp.errors import DataError, nearest
from fedpgp.runtime.files import new_directory

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Mirror:
    """repository: on the hub; splits, columns: those that are read; write: the splits -> files in a directory."""

    repository: str
    splits: tuple[str, ...]
    columns: tuple[str, ...]
    write: Callable[[Mapping[str, Any], Path, Progress], None]


def fetch(name: str, root: Path, progress: Progress = lambda *_: None) -> Path:
    """Downloads a known data set, and gives where it lies below `root`; progress: images written, of how many.

    It takes its place only when all of it was written. Raises DataError for a name without a mirror,
    with the steps to take; where it is already; and for a mirror that cannot be reached or holds something else.
    """
    if name not in known.NAMES:
        raise DataError(f"a data set to get must be a known one, got {name!r}; {nearest(name, known.NAMES)}")
    places = [root / place for place in known.KNOWN[name].places if not Path(place).is_absolute()]
    there = next((place for place in places if place.exists()), None)
    if there is not None:
        raise DataError(f"{name} is at {there} already: remove that, or choose another directory with --to")
    mirror = MIRRORS.get(name)
    if mirror is None:
        raise DataError(
            f"{name} is on no mirror that is known: get it from {known.KNOWN[name].page} and put it at {places[0]}, as"
            f" {LAYOUTS[known.layout(name)].about}"
        )
    loaded = from_hub(mirror.repository)
    for split in mirror.splits:
        lacking = [column for column in mirror.columns if split not in loaded or column not in loaded[split].features]
        if lacking:
            raise DataError(
                f"{HUB}{mirror.repository}: lacks the split {split} or its column {lacking[0]}, so it is not what it"
                f" was: get {name} from {known.KNOWN[name].page}"
            )
    try:
        root.mkdir(parents=True, exist_ok=True)
        with new_directory(places[0]) as filled:
            mirror.write(loaded, filled, progress)
    except OSError as error:
        raise DataError(
            f"{places[0]} cannot be written: {error.strerror}; make room, or choose another with --to"
        ) from error
    return places[0]


def _idx(loaded: Mapping[str, Any], place: Path, progress: Progress) -> None:
    for part, split in zip(mnist.PARTS, ("train", "test"), strict=True):
        pixels = np.stack([np.asarray(picture.convert("L")) for picture in _pictures(loaded, split, "image", progress)])
        labels = np.array(loaded[split]["label"], dtype=np.uint8)
        for (kind, dimensions), values in ((mnist.IMAGES, pixels), (mnist.LABELS, labels)):
            header = bytes((0, 0, mnist.UNSIGNED_BYTES, dimensions)) + np.array(values.shape, dtype=">u4").tobytes()
            (place / f"{part}-{kind}-idx{dimensions}-ubyte").write_bytes(header + values.tobytes())


def _cifar(
    loaded: Mapping[str, Any], place: Path, progress: Progress, form: cifar.CifarForm, columns: Mapping[str, str]
) -> None:
    """columns: the key of an official file -> the mirror's column."""
    names = {form.names_key: loaded["train"].features[columns[form.labels_key]].names}
    (place / form.names).write_bytes(pickle.dumps(names))
    for split, number in (("train", 0), ("test", 2)):
        files = [file for file, of_split in form.files if of_split == number]
        pictures = _pictures(loaded, split, "img", progress)
        rows = np.stack([np.asarray(picture.convert("RGB")).transpose(2, 0, 1).reshape(-1) for picture in pictures])
        labels = {key: np.array(loaded[split][column]) for key, column in columns.items()}
        for file, some in zip(files, np.array_split(np.arange(len(rows)), len(files)), strict=True):
            content = {"data": rows[some], **{key: values[some].tolist() for key, values in labels.items()}}
            (place / file).write_bytes(pickle.dumps(content))


def _folders(loaded: Mapping[str, Any], place: Path, progress: Progress, name: str) -> None:
    """Every file as it is on the mirror."""
    folder_of = {domains.plain(domain): domain for domain in domains.FOLDERS[name]}
    part = loaded["train"]
    classes = part.features["label"].names
    for number, row in enumerate(undecoded(part, "image")):
        label, domain = classes[row["label"]], folder_of.get(domains.plain(row["domain"]))
        if domain is None or Path(label).name != label:
            raise DataError(
                f"row {number + 1} of {name} is of {row['domain']}/{label}, which is no domain and class of it"
            )
        folder = place / domain / label
        folder.mkdir(parents=True, exist_ok=True)
        content = row["image"]["bytes"]
        (folder / f"{number:06d}.{_format(content)}").write_bytes(content)
        progress(number + 1, len(part))


def _format(content: bytes) -> str:
    try:
        return (Image.open(io.BytesIO(content)).format or "jpg").lower()
    except UnidentifiedImageError:
        return "jpg"  # as most are: `fedpgp data check` and runs name it


def _pictures(loaded: Mapping[str, Any], split: str, column: str, progress: Progress) -> Iterator[Image.Image]:
    total = len(loaded["train"]) + len(loaded["test"])
    before = 0 if split == "train" else len(loaded["train"])
    for number, row in enumerate(undecoded(loaded[split], column), 1):
        try:
            picture = decode(row[column]["bytes"])
        except Exception as error:  # decoders raise whatever a damaged file leads them to
            raise DataError(f"row {number} of the mirror's {split} split does not decode: {reason(error)}") from error
        yield picture
        progress(before + number, total)


IN_TWO = ("train", "test")
MIRRORS: Mapping[str, Mirror] = {
    "cifar10": Mirror(
        "uoft-cs/cifar10", IN_TWO, ("img", "label"), partial(_cifar, form=cifar.CIFAR10, columns={"labels": "label"})
    ),
    "cifar100": Mirror(
        "uoft-cs/cifar100",
        IN_TWO,
        ("img", "fine_label", "coarse_label"),
        partial(_cifar, form=cifar.CIFAR100, columns={"fine_labels": "fine_label", "coarse_labels": "coarse_label"}),
    ),
    "mnist": Mirror("ylecun/mnist", IN_TWO, ("image", "label"), _idx),
    "fashion-mnist": Mirror("zalando-datasets/fashion_mnist", IN_TWO, ("image", "label"), _idx),
    "pacs": Mirror("flwrlabs/pacs", ("train",), ("image", "domain", "label"), partial(_folders, name="pacs")),
    "office_home": Mirror(
        "flwrlabs/office-home", ("train",), ("image", "domain", "label"), partial(_folders, name="office_home")
    ),
}
