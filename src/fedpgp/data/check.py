"""What a run would find in a data set: counts, and what is wrong with it."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.decode import Placed, Stored, decode, reason
from fedpgp.data.preprocess import in_threads
from fedpgp.data.sources import SPLITS, Source, known, located, read_listing
from fedpgp.data.sources.hugging_face import HUB
from fedpgp.data.sources.listing import Listing, divided, to_source
from fedpgp.errors import ConfigError, DataError

if TYPE_CHECKING:
    from fedpgp.data.settings import DataConfig

IDENTIFIER = re.compile(r"n\d{6,}|-?\d+|(class|label|cat|category|id)[ _-]?\d+|[0-9a-f]{8,}", re.IGNORECASE)
SHOWN = 5  # of many places


class DataFinding(NamedTuple):
    """stops: a run would not start, or end in an error."""

    stops: bool
    text: str


@dataclass(frozen=True)
class Report:
    """What was found. layout: "" where none is recognised; counts: by split, class, domain and client -> images.

    identifiers: class names that say nothing to CLIP; ignored: what else lies there -> how much.
    """

    layout: str
    images: int
    counts: Mapping[str, Mapping[str, int]]
    identifiers: tuple[str, ...]
    ignored: Mapping[str, int]
    findings: tuple[DataFinding, ...]

    @property
    def usable(self) -> bool:
        return not any(finding.stops for finding in self.findings)


class _Seen(NamedTuple):
    content: bytes
    fault: str


def check(
    data: "DataConfig",
    shots: int = 0,
    *,
    use: Callable[[Source], object] = lambda _: None,
    decoded: bool = True,
    skip_bad_images: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Report:
    """Reads a data set as a run would, and every one of its images if `decoded`.

    shots: training images that every class should have. use: what would be done with it, which is tried where nothing
    else stops a run, and raises DataError or ConfigError where it cannot be done. skip_bad_images: a run would go on
    without them. workers: threads that decode. progress: done, total.
    Raises DataError where there is nothing to read; what is wrong with what is there is a finding.
    """
    layout = "hugging-face" if data.source.startswith(HUB) else ""
    try:
        if Path(data.source).exists() or data.source in known.NAMES:
            _, layout = located(data)
        found = read_listing(data)
    except DataError as error:
        if not layout and not Path(data.source).exists():
            raise
        return Report(layout, 0, {}, (), {}, (DataFinding(True, str(error)),))
    findings: list[DataFinding] = []
    source = None
    try:
        source = to_source(found, data)
    except DataError as error:
        findings.append(DataFinding(True, str(error)))
    splits = _splits(found, data)
    findings += _of_classes(found, splits, shots)
    if decoded and not any(finding.stops and "missing" in finding.text for finding in findings):
        findings += _of_images(found, splits, skip_bad_images, workers, progress)
    counts = {
        "splits": _counts(SPLITS, splits),
        "classes": _counts(found.class_names, found.labels),
        "domains": {} if found.domains is None else _counts(found.domain_names, found.domains),
        "clients": {} if found.clients is None else _counts(found.client_names, found.clients),
    }
    identifiers = tuple(name for name in found.class_names if IDENTIFIER.fullmatch(name))
    if identifiers:
        findings.append(
            DataFinding(
                False,
                f"{len(identifiers)} class names say nothing to CLIP, such as {identifiers[0]!r}: write a file of names"
                " with --write-names FILE, fill it in, and name it with data.names",
            )
        )
    if source is not None and not any(finding.stops for finding in findings):
        try:
            use(source)
        except (ConfigError, DataError) as error:
            findings.append(DataFinding(True, str(error)))
    return Report(layout, len(found.labels), counts, identifiers, found.ignored, tuple(findings))


def names_file(report: Report) -> str:
    """A file of names to fill in: identifier, tab, name, a line for each class."""
    return "".join(f"{name}\t{name}\n" for name in report.counts["classes"])


def _splits(found: Listing, data: "DataConfig") -> NDArray[np.int64]:
    try:
        return divided(found, data)
    except DataError:  # which is a finding already
        assert found.splits is not None
        return found.splits


def _counts(names: tuple[str, ...], which: NDArray[np.int64]) -> dict[str, int]:
    counts = np.bincount(which, minlength=len(names)).tolist()
    return {name: sum(n for one, n in zip(names, counts, strict=True) if one == name) for name in dict.fromkeys(names)}


def _of_classes(found: Listing, splits: NDArray[np.int64], shots: int) -> Iterator[DataFinding]:
    """Classes with too few images in a split."""
    train, *others = (np.bincount(found.labels[splits == i], minlength=len(found.class_names)) for i in range(3))
    few = np.flatnonzero(train < shots)
    if len(few):
        name = found.class_names[few[0]]
        yield DataFinding(
            True,
            f"{len(few)} of {len(train)} classes have fewer training images than task.shots = {shots}, such as {name!r}"
            f" with {train[few[0]]}: add images, or ask for fewer shots",
        )
    for split, counts in zip(SPLITS[1:], others, strict=True):
        none = np.flatnonzero(counts == 0)
        if len(none):
            yield DataFinding(
                True,
                f"{len(none)} of {len(train)} classes have no {split} image, such as {found.class_names[none[0]]!r}:"
                " add images",
            )


def _of_images(
    found: Listing, splits: NDArray[np.int64], skipped: bool, workers: int, progress: Callable[[int, int], None]
) -> Iterator[DataFinding]:
    """Images that do not decode, and those that are in several splits."""
    faults: list[str] = []
    where: dict[bytes, int] = {}
    twice: list[str] = []
    for index, (content, fault) in enumerate(_seen(found, workers)):
        if fault:
            faults.append(f"{_place(found, index)} ({fault})")
        elif splits[first := where.setdefault(content, index)] != splits[index]:
            pair = (
                f"{_place(found, first)} ({SPLITS[splits[first]]}) = {_place(found, index)} ({SPLITS[splits[index]]})"
            )
            twice.append(pair)
        progress(index + 1, len(found.labels))
    if faults:
        remedy = "they are dropped" if skipped else "mend them, or drop them with --skip-bad-images"
        yield DataFinding(not skipped, f"{len(faults)} images do not decode: {_some(faults)}: {remedy}")
    if twice:
        yield DataFinding(
            False, f"{len(twice)} images are the same files in two splits: {_some(twice)}: take one of each out"
        )


def _seen(found: Listing, workers: int) -> Iterator[_Seen]:
    """Every image in order; decoders let other threads go on while they work."""

    def see(index: int) -> _Seen:
        pictures = found.pictures
        try:
            if isinstance(pictures, Stored):
                content = pictures.content(index)
                decode(content)
                return _Seen(hashlib.sha256(content).digest(), "")
            picture = pictures(index)
            return _Seen(hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).digest(), "")
        except MemoryError:
            raise
        except Exception as error:  # decoders raise whatever a damaged file leads them to
            return _Seen(b"", reason(error))

    yield from in_threads(see, range(len(found.labels)), workers)


def _place(found: Listing, index: int) -> str:
    return found.pictures.place(index) if isinstance(found.pictures, Placed) else f"image {index}"


def _some(texts: list[str]) -> str:
    return "; ".join(texts[:SHOWN]) + (" …" if len(texts) > SHOWN else "")
