"""Score the models of a run on labelled images that were held out.

Letters: n images, C classes, B bins.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from fedpgp.backbone import Backbone
from fedpgp.data.cache import cache_directory
from fedpgp.data.features import SplitPart, ViewFeatures, token_features
from fedpgp.data.image_features import ImageFeatures
from fedpgp.data.preprocess import CENTRE
from fedpgp.data.sources.dataset import place_of
from fedpgp.data.sources.names import plain
from fedpgp.errors import ConfigError, DataError
from fedpgp.evaluation import scoring
from fedpgp.evaluation.inference import PIECE, kind_of
from fedpgp.reporting import Reporter, Silent
from fedpgp.results.run import Run
from fedpgp.results.run_store import load_run
from fedpgp.runs.tasks import data_elsewhere
from fedpgp.runtime.validation import texts, whole_number
from fedpgp.serving.classifier import Classes, Classifier, backbone_of, model_of, with_checkpoint
from fedpgp.serving.labelled import LabelledImages, labelled_images
from fedpgp.serving.memory import remembers, with_images

ALL = "all"
OWN_TENSORS = ("private/", "kept/", "received/")  # of clients, in the prompts of a run
FIGURES = ("accuracy", "macro_accuracy", "own_accuracy", "calibration_error")


@dataclass(frozen=True, repr=False)
class Score:
    """Figures of the models of a run on labelled images, in percent, with limits of 95 % intervals (`low`, `high`).

    Attributes
    ----------
    method
        The method of the run.
    folder
        The source of the images.
    candidates
        C class names among which the models chose.
    models
        A row for each model: model, client, images, temperature, and each of accuracy, macro_accuracy, own_accuracy and
        calibration_error, followed by its limits. macro_accuracy is the mean over the classes with images.
        own_accuracy is the accuracy on images of the classes that the client trained on.
    classes
        A row for each model and class: model, class, trained (whether a client trained on it), own (whether this client
        did), images, accuracy, low, high and mistaken_for, the most frequent wrong answer.
    confusion
        A row for each model and true class with images: model, truth, and a column with the number of answers for each
        candidate.
    reliability
        A row for each model and bin of confidence: model, from, to, images, confidence, accuracy, low, high.
    predictions
        A row for each model and image: model, image, truth, predicted and probability.
    notes
        Sentences about the choice of images and names.
    left_out
        Sentences about images that were not scored, and class names that the run does not know.
    """

    method: str
    folder: str
    candidates: tuple[str, ...]
    models: pd.DataFrame
    classes: pd.DataFrame
    confusion: pd.DataFrame
    reliability: pd.DataFrame
    predictions: pd.DataFrame
    notes: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def first(self) -> str:
        """The model that figures show: the shared part if it was scored, else the first client."""
        return str(self.models["model"].iloc[0])

    def __repr__(self) -> str:
        return f"fedpgp.Score: {self.method} on {self.folder}, {len(self.models)} models, see its field models"

    def as_json(self) -> dict[str, Any]:
        """Return the score without confusion and predictions; a missing figure is None."""
        tables = {name: getattr(self, name) for name in ("models", "classes", "reliability")}
        rows = {
            name: frame.astype(object).where(frame.notna(), None).to_dict("records") for name, frame in tables.items()
        }
        about = {name: getattr(self, name) for name in ("method", "folder", "candidates", "notes", "left_out")}
        return {**about, **rows}


def score(
    run: Run | Path | str,
    folder: str | Path,
    *,
    client: int | Literal["all"] | None = ALL,
    classes: Sequence[str] | None = None,
    changes: Sequence[str] | str = (),
    checkpoint: str | None = None,
    calibrate: bool = False,
    device: str | None = None,
    cache: Path | str | None = None,
    reporter: Reporter | None = None,
) -> Score:
    """Score the models of a finished run on labelled images.

    Class names are matched without regard to order, case and underscores. If the source has splits, only its test split
    counts. If it is the run's own dataset, only the images that the run kept for testing count.

    Parameters
    ----------
    run
        The run or its directory.
    folder
        A value for data.source: a directory with a folder for each class, a table, or a name.
    client
        "all" scores the shared part and every client, None only the shared part, and a number only this client.
    classes
        Class names among which the models choose. None takes the classes of the training, and the classes of the images
        that are not among them.
    changes
        How the images are read, such as "data.label_column=species".
    checkpoint
        Current path of the run's checkpoint, if it was moved.
    calibrate
        Divide the logits of each model by a temperature that fits the run's validation images.
    device
        Device of PyTorch; None means the run's device.
    cache
        Directory of the cache of image features; None takes the user's cache directory.
    reporter
        Reporter of progress.

    Raises
    ------
    FedPGPError
        If the run has no such model, or if there is no labelled image.
    """
    if client not in (ALL, None):
        client = whole_number(client, "client", 0)
    reporter, folder = reporter or Silent(), str(folder)
    run = with_checkpoint(run if isinstance(run, Run) else load_run(run), checkpoint)
    data = data_elsewhere(run.config.data, folder, [changes] if isinstance(changes, str) else changes)
    backbone = backbone_of(run, device)
    models, notes = _models(run, backbone, client)
    names = None if classes is None else texts(classes, "classes")
    found = labelled_images(run, data, names)
    kept, features, unreadable = _features(run, backbone, found, cache, reporter)
    targets = found.targets[kept]
    models = with_images(models, run, cache, reporter, calibrate)
    answers = []
    for number, model in enumerate(models, 1):
        answers.append(_answers(model, features, model.read(found.candidates)))
        reporter.progress("scoring models", number, len(models), model.owner)
    where = [_name(found, image) for image in found.images[kept].tolist()]
    frames = _Frames(run, found.candidates, targets, where)
    errors = scoring.calibration_errors([(a.confidence, a.predicted == targets) for a in answers])
    tables = [frames.of(*each) for each in zip(models, answers, errors, strict=True)]
    return Score(
        run.method,
        folder,
        found.candidates,
        *(pd.concat(parts, ignore_index=True) for parts in zip(*tables, strict=True)),
        notes=(*notes, *found.notes),
        left_out=(*found.left_out, *unreadable),
    )


def _models(run: Run, backbone: Backbone, client: int | str | None) -> tuple[list[Classifier], list[str]]:
    """Return the models to score, and sentences about models that are left out."""
    if client != ALL:
        assert not isinstance(client, str), "`score` checks it"
        return [model_of(run, backbone, client)], []
    models, notes = [], []
    try:
        models.append(model_of(run, backbone, None))
    except ConfigError as error:
        notes.append(f"{error.finding[:1].upper()}{error.finding[1:]}.")
    own = any(name.startswith(OWN_TENSORS) for name in run.prompts) or remembers(run.config.methods[run.method])
    if own:
        models += [model_of(run, backbone, number) for number in range(run.results["task"]["clients"])]
    elif run.results["private"]:
        notes.append("The clients' private parts stayed on their machines. Only the shared part is scored.")
    else:
        notes.append(f"All clients of {run.method} have the shared part.")
    return models, notes


def _features(
    run: Run, backbone: Backbone, found: LabelledImages, cache: Path | str | None, reporter: Reporter
) -> tuple[NDArray[np.int64], ImageFeatures, list[str]]:
    """Return which of the images can be read, as positions, their features, and sentences about the other images."""
    method, directory = run.config.methods[run.method], cache_directory(cache)
    chosen, progress = found.dataset.select(found.images), reporter.progress
    whole = ViewFeatures(backbone.image, chosen, directory, skip_bad_images=True, progress=progress).load()[0]
    kept = np.array([place for place in range(len(chosen)) if place not in whole.undecodable], dtype=np.int64)
    if not len(kept):
        remedy = "Replace the files"
        raise DataError(f"none of {len(chosen)} images can be read", where=found.dataset.name, remedy=remedy)
    pooled = whole.features[torch.from_numpy(kept)].to(backbone.image.device)
    bad = [f"{_name(found, found.images[i])} cannot be read: {why}." for i, why in sorted(whole.undecodable.items())]
    kind = kind_of(method)
    if kind is None:
        return kept, ImageFeatures(pooled), bad
    half = run.config.data.token_precision == "float16"
    part = SplitPart(chosen, kept, kind, [CENTRE])
    (tokens,) = token_features(backbone.image, [part], directory, half=half, progress=progress, notice=reporter.notice)
    return kept, ImageFeatures(pooled, tokens.kept, tokens.places[torch.from_numpy(kept)]), bad


def _name(found: LabelledImages, image: int) -> str:
    return place_of(found.dataset.image, image) or f"image {image}"


class _Answers(NamedTuple):
    """The predicted class [n] of each image, and its probability [n]."""

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]


def _answers(model: Classifier, images: ImageFeatures, classes: Classes) -> _Answers:
    pieces = (images[at : at + PIECE] for at in range(0, len(images), PIECE))
    answers = [model.probabilities(model.answer(piece, classes)).max(-1) for piece in pieces]
    confidence, predicted = (torch.cat(part).cpu().numpy() for part in zip(*answers, strict=True))
    return _Answers(predicted, confidence)


@dataclass(frozen=True)
class _Frames:
    """The frames of a `Score` for one model after the other.

    Attributes
    ----------
    run
        The run.
    names
        C candidates.
    targets
        [n] the columns of the true classes.
    images
        n names of the images.
    """

    run: Run
    names: tuple[str, ...]
    targets: NDArray[np.int64]
    images: list[str]

    def of(self, model: Classifier, answers: _Answers, error: scoring.Interval) -> Iterator[pd.DataFrame]:
        """Yield the model's rows of models, classes, confusion, reliability and predictions."""
        names, targets, (predicted, confidence) = self.names, self.targets, answers
        correct, whose = predicted == targets, model.owner.removeprefix("the ")
        own = self._own(model.client)
        figures = dict(
            zip(
                FIGURES,
                (
                    scoring.accuracy(correct),
                    scoring.macro_accuracy(correct, targets),
                    scoring.accuracy(correct[own[targets]]),
                    error,
                ),
                strict=True,
            )
        )
        row = {"model": whose, "client": model.client, "images": len(targets), "temperature": model.temperature}
        for name, figure in figures.items():
            row |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
        yield pd.DataFrame([row]).astype({"client": "Int64"})

        counts = scoring.confusion(targets, predicted, len(names))
        images, right = counts.sum(1), counts.diagonal()
        low, high = scoring.wilson(right, images)
        wrong = counts - np.diag(right)
        trained = {plain(name) for name in model.base}
        yield pd.DataFrame(
            {
                "model": whose,
                "class": names,
                "trained": [plain(name) in trained for name in names],
                "own": own,
                "images": images,
                "accuracy": 100 * right / np.where(images > 0, images, np.nan),
                "low": low,
                "high": high,
                "mistaken_for": [names[row.argmax()] if row.any() else "" for row in wrong],
            }
        )

        rows = np.flatnonzero(images)
        about = pd.DataFrame({"model": whose, "truth": [names[row] for row in rows]})
        yield pd.concat([about, pd.DataFrame(counts[rows], columns=list(names))], axis=1)

        edges = 100 * np.arange(scoring.BINS + 1) / scoring.BINS
        found = asdict(scoring.reliability(confidence, correct))
        yield pd.DataFrame({"model": whose, "from": edges[:-1], "to": edges[1:], **found})

        said = np.array(names, dtype=object)
        yield pd.DataFrame(
            {
                "model": whose,
                "image": self.images,
                "truth": said[targets],
                "predicted": said[predicted],
                "probability": confidence,
            }
        )

    def _own(self, client: int | None) -> NDArray[np.bool_]:
        """Return [C] whether a client trained on each candidate; nothing for the shared part."""
        clients = {row["client"]: row["classes"] for row in self.run.results["clients"]}
        own = {plain(name) for name in clients.get(client, ())}
        return np.array([plain(name) in own for name in self.names], dtype=np.bool_)
