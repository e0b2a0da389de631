"""Labelled images for a model of a run: which images are scored, and among which class names.

Letters: n images, C classes.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import SPLITS, ImageDataset, load_source, load_target, pictograms, read_listing
from fedpgp.data.sources.listing import UNLABELLED, Listing, to_source, to_target
from fedpgp.data.sources.names import plain
from fedpgp.errors import ConfigError, DataError, shown
from fedpgp.results.run import Run
from fedpgp.serving.classifier import check_names

SHOWN = 5  # names in a sentence


@dataclass(frozen=True)
class LabelledImages:
    """Images to score.

    Attributes
    ----------
    dataset
        The images.
    images
        [n] the indices of the images that are scored.
    targets
        [n] the column of each image's class in `candidates`.
    candidates
        C class names among which a model chooses.
    notes
        Sentences about the choice of images and names.
    left_out
        Sentences about images that are not scored, and names that the run does not know.
    """

    dataset: ImageDataset
    images: NDArray[np.int64]
    targets: NDArray[np.int64]
    candidates: tuple[str, ...]
    notes: tuple[str, ...]
    left_out: tuple[str, ...]


def labelled_images(run: Run, data: DataConfig, classes: Sequence[str] | None) -> LabelledImages:
    """Read the labelled images of a source, and match their classes with the run's by name.

    Parameters
    ----------
    run
        The run.
    data
        The section [data] for the images.
    classes
        The candidates; None: the classes of the training, then the other classes of the images.

    Raises
    ------
    DataError
        If the source cannot be read.
    ConfigError
        If no image has a class among the candidates.
    """
    dataset, notes, left_out = _images_of(run, replace(data, drop_unlabelled=True))
    base, novel = run.results["task"]["base_names"], run.results["task"]["novel_names"]
    trained = [plain(name) for name in base]
    new = [name for name in dataset.class_names if plain(name) not in trained]
    if classes is not None:
        check_names(classes)
    candidates = (*base, *new) if classes is None else tuple(classes)
    column = {plain(name): place for place, name in enumerate(candidates)}
    columns = np.array([column.get(plain(name), -1) for name in dataset.class_names])[dataset.labels]
    images = np.flatnonzero(columns >= 0)
    if not len(images):
        raise ConfigError(
            where="classes",
            allowed=f"classes of the images, such as {_some(dataset.class_names)}",
            got=list(candidates),
            remedy="Leave --classes out, or add names",
        )
    if len(images) < len(dataset):
        other = [name for name in dataset.class_names if plain(name) not in column]
        left_out.append(
            f"{len(dataset) - len(images)} of {len(dataset)} images have a class that is not among --classes:"
            f" {_some(other)}."
        )
    scored = [name for name in new if plain(name) in column]
    tested = [name for name in scored if plain(name) in map(plain, novel)]
    unknown = [name for name in scored if name not in tested]
    if tested:
        notes.append(
            f"No client trained on {len(tested)} of the classes, which were novel classes of the run: {_some(tested)}."
        )
    if unknown:
        left_out.append(
            f"The run does not know {len(unknown)} of the class names, which are scored as new classes:"
            f" {_some(unknown)}{_similar(unknown, [*base, *novel])}."
        )
    order = [trained.index(plain(name)) for name in dataset.class_names if plain(name) in trained]
    if order != sorted(order):
        notes.append("The classes of the images have another order than in the run. They are matched by name.")
    present = set(columns[images].tolist())
    lacking = [name for place, name in enumerate(candidates) if place not in present]
    if lacking:
        notes.append(f"Candidates without an image, {len(lacking)} of {len(candidates)}: {_some(lacking)}.")
    return LabelledImages(dataset, images, columns[images], candidates, tuple(notes), tuple(left_out))


def _images_of(run: Run, data: DataConfig) -> tuple[ImageDataset, list[str], list[str]]:
    """Return the images of a source that are tested, and sentences about the other images: notes, and left out."""
    embedded = data.source == pictograms.NAME
    listing = None if embedded else read_listing(data)
    if data.source == run.config.data.source or (listing is not None and _is_of_run(run, data, listing)):
        test = load_source(replace(run.config.data, source=data.source)).test
        assert test is not None, "the test split was read"
        return test, [f"The run was trained on images of {data.source}. Only its {len(test)} test images count."], []
    if listing is None:
        return load_target(data), [], []
    dataset = to_target(listing)
    notes = []
    if len(dataset) < len(listing.labels):  # then the source has splits
        split = SPLITS[int(listing.splits.max())] if listing.splits is not None else ""
        notes.append(f"Only the {split} split of {data.source} counts: {len(dataset)} of {len(listing.labels)} images.")
    unlabelled = sum(listing.ignored.get(kind, 0) for kind in UNLABELLED)
    return dataset, notes, [f"Images of {data.source} without a label: {unlabelled}."] if unlabelled else []


def _is_of_run(run: Run, data: DataConfig, listing: Listing) -> bool:
    """Return whether a listing has the training images of a run, perhaps under another path."""
    try:
        return to_source(listing, data).train.fingerprint == run.provenance["images"]["train"]
    except (DataError, LookupError):
        return False


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:SHOWN])) + (", …" if len(names) > SHOWN else "")


def _similar(unknown: Sequence[str], known: Sequence[str]) -> str:
    """Return a clause with the known name that an unknown name may mean, such as with a typing error."""
    pairs = (
        (name, difflib.get_close_matches(plain(name), list(map(plain, known)), n=1, cutoff=0.85)) for name in unknown
    )
    meant = [f"{name!r} is similar to the run's {close[0]!r}" for name, close in pairs if close]
    return f" ({'; '.join(meant[:SHOWN])})" if meant else ""
