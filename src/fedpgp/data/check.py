"""Report the content of a dataset as a run reads it: counts and faults."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.decode import reason
from fedpgp.data.preprocess import in_threads
from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import SPLITS, Source, caltech101, located, read_listing
from fedpgp.data.sources.hugging_face import HUB, LAYOUT
from fedpgp.data.sources.listing import Listing, divided, to_source
from fedpgp.data.tasks import Task
from fedpgp.errors import ConfigError, DataError, shown
from fedpgp.runtime.files import exists

IDENTIFIER = re.compile(r"n\d{6,}|-?\d+|(class|label|cat|category|id)[ _-]?\d+|[0-9a-f]{8,}", re.IGNORECASE)
DARK = 32  # all values of a nearly black image are below this
SHOWN = 5  # largest number of places in a finding
STORED = "features without images"  # stands for a layout in the report


class DataFinding(NamedTuple):
    """A fault of a dataset.

    Attributes
    ----------
    stops
        Whether a run would not start, or end in an error.
    text
        What is wrong and what to do.
    """

    stops: bool
    text: str


@dataclass(frozen=True)
class Report:
    """The content of a dataset.

    Attributes
    ----------
    layout
        The layout; "" if none is recognised.
    images
        The number of images.
    counts
        The numbers of images by split, class, domain and client.
    identifiers
        Class names that have no meaning for CLIP.
    ignored
        The number of other files or rows, by their kind.
    findings
        The faults.
    """

    layout: str
    images: int
    counts: Mapping[str, Mapping[str, int]]
    identifiers: tuple[str, ...]
    ignored: Mapping[str, int]
    findings: tuple[DataFinding, ...]

    @property
    def usable(self) -> bool:
        """Whether a run can use the dataset."""
        return not any(finding.stops for finding in self.findings)


def check(
    data: DataConfig,
    shots: int = 0,
    *,
    use: Callable[[Source], object] = lambda _: None,
    decoded: bool = True,
    skip_bad_images: bool = False,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Report:
    """Read a dataset as a run does, and report faults as findings.

    Parameters
    ----------
    data
        The section [data] of the config.
    shots
        The number of training images that every class should have.
    use
        The intended use, called if nothing else stops a run. It raises DataError or ConfigError if it is impossible.
    decoded
        Decode every image.
    skip_bad_images
        Whether a run would continue without images that do not decode.
    workers
        The number of threads that decode.
    progress
        Called with the number of decoded images and of all images.

    Raises
    ------
    DataError
        If there is nothing to read.
    """
    layout = LAYOUT if data.source.startswith(HUB) else STORED if caltech101.stands_in(data) else ""
    try:
        if not layout:
            _, layout = located(data)
        listing = read_listing(data)
    except DataError as error:
        if not layout and not exists(data.source):
            raise
        return Report(layout, 0, {}, (), {}, (DataFinding(True, str(error)),))
    findings: list[DataFinding] = []
    source, splits = None, listing.splits
    try:
        splits = divided(listing, data)
        source = to_source(listing, data)
    except DataError as error:
        findings.append(DataFinding(True, str(error)))
    assert splits is not None, "a dataset without splits is divided"
    if source is not None:  # else the fault that was found explains why classes lack images
        findings += [DataFinding(True, text) for text in _of_classes(listing, splits, shots)]
    if listing.features is not None:
        text = (
            "the images are not available, so none was decoded."
            f" Run `fedpgp data get {listing.name}` to see where to get them."
        )
        findings.append(DataFinding(False, text))
    elif decoded and not any(finding.stops and "missing" in finding.text for finding in findings):
        findings += _of_images(listing, splits, skip_bad_images, workers, progress)
    counts = {
        "splits": _counts(SPLITS, splits),
        "classes": _counts(listing.class_names, listing.labels),
        "domains": _counts(listing.domain_names, listing.domains),
        "clients": _counts(listing.client_names, listing.clients),
    }
    identifiers = tuple(name for name in listing.class_names if IDENTIFIER.fullmatch(name))
    if identifiers:
        text = (
            f"{len(identifiers)} class names have no meaning for CLIP, such as {identifiers[0]!r}. Write a file of"
            " names with --write-names FILE, fill it in, and use it with --set data.names=FILE."
        )
        findings.append(DataFinding(False, text))
    if source is not None and not any(finding.stops for finding in findings):
        try:
            use(source)
        except (ConfigError, DataError) as error:
            findings.append(DataFinding(True, str(error)))
    return Report(layout, len(listing.labels), counts, identifiers, listing.ignored, tuple(findings))


@dataclass(frozen=True)
class Usage:
    """What a run uses of a dataset.

    Attributes
    ----------
    protocol
        The protocol of the task.
    classes
        The number of classes that the clients train on.
    untrained_classes, untrained_domains
        Names of the classes and domains that no client trains on.
    clients
        The number of clients, including new clients.
    images
        The number of training images that the clients use.
    least, most
        The smallest and the largest number of training images of a client.
    """

    protocol: str
    classes: int
    untrained_classes: tuple[str, ...]
    untrained_domains: tuple[str, ...]
    clients: int
    images: int
    least: int
    most: int

    def describe(self) -> Iterator[str]:
        """Yield sentences."""
        every = self.classes + len(self.untrained_classes)
        yield f"With task.protocol = {self.protocol}, a run trains on {self.classes} of {every} classes."
        for what, names in (("class names", self.untrained_classes), ("domains", self.untrained_domains)):
            if names:
                yield f"Tested only, not trained on: {_some(list(names), ', ')} ({what}: {len(names)})."
        if self.untrained_classes:
            yield "To train on all classes, use --set task.protocol=personalization"
        range_ = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
        yield f"Each of {self.clients} clients trains on {range_} images, in total {self.images:,}."


def usage(task: Task) -> Usage:
    """Return what a run uses of a dataset in a task."""
    train = [client.train for client in (*task.clients, *task.new_clients)]
    used, sizes = np.unique(np.concatenate(train)), [len(own) for own in train]
    untrained = set(range(len(task.train.domain_names))) - set(task.train.domains[used].tolist())
    return Usage(
        protocol=task.name,
        classes=len(task.base),
        untrained_classes=tuple(shown(name) for i, name in enumerate(task.class_names) if i not in task.base),
        untrained_domains=tuple(shown(task.train.domain_names[i]) for i in sorted(untrained)),
        clients=len(train),
        images=len(used),
        least=min(sizes),
        most=max(sizes),
    )


def names_file(report: Report) -> str:
    """Return the text of a file of names to fill in: identifier, tab and name in one line for each class."""
    return "".join(f"{name}\t{name}\n" for name in report.counts["classes"])


def _counts(names: tuple[str, ...], which: NDArray[np.int64] | None) -> dict[str, int]:
    if which is None:
        return {}
    counts = dict.fromkeys(names, 0)  # a class that occurs twice, which is a finding, gets the sum
    for name, count in zip(names, np.bincount(which, minlength=len(names)).tolist(), strict=True):
        counts[name] += count
    return {shown(name): count for name, count in counts.items()}


def _of_classes(listing: Listing, splits: NDArray[np.int64], shots: int) -> Iterator[str]:
    """Yield classes with too few images in a split; each of them stops a run."""
    names = listing.class_names
    train, *others = (np.bincount(listing.labels[splits == i], minlength=len(names)) for i in range(3))
    few = np.flatnonzero(train < shots)
    if len(few):
        yield (
            f"{len(few)} of {len(names)} classes have fewer training images than task.shots = {shots}, such as"
            f" {names[few[0]]!r} with {train[few[0]]}. Add images, or use a smaller task.shots."
        )
    for split, counts in zip(SPLITS[1:], others, strict=True):
        none = np.flatnonzero(counts == 0)
        if len(none):
            example = names[none[0]]
            yield f"{len(none)} of {len(names)} classes have no {split} image, such as {example!r}. Add images."


def _of_images(
    listing: Listing, splits: NDArray[np.int64], skipped: bool, workers: int, progress: Callable[[int, int], None]
) -> Iterator[DataFinding]:
    """Yield images that do not decode, images in several splits or classes, and nearly black images."""

    def look(index: int) -> tuple[bytes, int, str]:
        """Return the digest and the brightest value of a picture, and the reason why it does not decode."""
        try:
            picture = listing.pictures(index)
        except MemoryError:
            raise
        except Exception as error:  # a damaged file can make a decoder raise anything
            return b"", 0, reason(error)
        digest = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).digest()
        return digest, int(np.asarray(picture).max()), ""

    place = listing.pictures.place
    faults: list[str] = []
    firsts: dict[bytes, int] = {}
    twice: list[str] = []
    ambiguous: list[str] = []
    dark: list[str] = []
    for index, (digest, brightest, fault) in enumerate(in_threads(look, range(len(listing.labels)), workers)):
        if fault:
            faults.append(f"{place(index)} ({fault})")
        else:
            first = firsts.setdefault(digest, index)
            if splits[first] != splits[index]:
                twice.append(" = ".join(f"{place(i)} ({SPLITS[splits[i]]})" for i in (first, index)))
            if listing.labels[first] != listing.labels[index]:
                names = ((i, shown(listing.class_names[listing.labels[i]])) for i in (first, index))
                ambiguous.append(" = ".join(f"{place(i)} ({name})" for i, name in names))
            if brightest < DARK:
                dark.append(place(index))
        progress(index + 1, len(listing.labels))
    if faults:
        remedy = "They are left out" if skipped else "Fix them, or leave them out with --skip-bad-images"
        yield DataFinding(not skipped, f"{len(faults)} images do not decode: {_some(faults)}. {remedy}.")
    if twice:
        text = f"{len(twice)} images are the same pictures in two splits: {_some(twice)}. Remove one of each pair."
        yield DataFinding(False, text)
    if ambiguous:
        text = f"{len(ambiguous)} images are the same pictures in two classes: {_some(ambiguous)}. Keep only one."
        yield DataFinding(False, text)
    if 2 * len(dark) > len(listing.labels) - len(faults):
        text = (
            f"{len(dark)} of {len(listing.labels)} images have no value above {DARK - 1} of 255: {_some(dark)}. Files"
            " of 16 bits with values of 10 to 14 bits look like this. Scale them to the whole range, and save them with"
            " 8 bits."
        )
        yield DataFinding(False, text)


def _some(texts: list[str], separator: str = "; ") -> str:
    return separator.join(texts[:SHOWN]) + (" …" if len(texts) > SHOWN else "")
