"""Score the models of a run on labelled images that were held out.

Letters: n images, C classes, B bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from fedpgp.backbone import Backbone
from fedpgp.data.cache import cache_directory
from fedpgp.data.features import SplitPart, ViewFeatures, token_features
from fedpgp.data.image_features import ImageFeatures
from fedpgp.data.preprocess import CENTRE
from fedpgp.data.sources.dataset import name_of
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
from fedpgp.serving.score_tables import FRAMES, Answers, ScoreTables

ALL: Final = "all"
OWN_TENSORS = ("private/", "kept/", "received/")  # of clients, in the prompts of a run


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

    def counts(self, model: str) -> NDArray[np.int64]:
        """Return the confusion matrix of a model, [C, C]: images by true class (rows) and predicted class (columns)."""
        # By position, because a class may have the name of a column.
        rows = self.confusion[(self.confusion.iloc[:, 0] == model).to_numpy()]
        places = {name: place for place, name in enumerate(self.candidates)}
        counts = np.zeros((len(places), len(places)), dtype=np.int64)
        counts[[places[name] for name in rows.iloc[:, 1]]] = rows.iloc[:, 2:]
        return counts

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
    where = [name_of(found.dataset.image, image) for image in found.images[kept].tolist()]
    tables = ScoreTables(run, found.candidates, targets, where)
    errors = scoring.calibration_errors([(a.confidence, a.predicted == targets) for a in answers])
    rows = [tables.of(*each) for each in zip(models, answers, errors, strict=True)]
    joined = {
        name: pd.concat(parts, ignore_index=True) for name, parts in zip(FRAMES, zip(*rows, strict=True), strict=True)
    }
    left_out = (*found.left_out, *unreadable)
    return Score(run.method, folder, found.candidates, **joined, notes=(*notes, *found.notes), left_out=left_out)


def _models(run: Run, backbone: Backbone, client: int | str | None) -> tuple[list[Classifier], list[str]]:
    """Return the models to score, and sentences about models that are left out."""
    if client != ALL:
        assert not isinstance(client, str), "`score` checks it"
        return [model_of(run, backbone, client)], []
    models, notes = [], []
    task, method = run.results["task"], run.config.methods[run.method]
    if any(name.startswith(OWN_TENSORS) for name in run.prompts) or remembers(method):
        models = [model_of(run, backbone, number) for number in range(task["clients"])]
    elif run.results["private"]:
        notes.append("The clients' private parts stayed on their machines. Only the shared part is scored.")
    else:
        notes.append(f"All clients of {run.method} have the shared part.")
    try:
        models.insert(0, model_of(run, backbone, None))
    except ConfigError as error:
        if not models:
            raise
        notes.append(f"{error.problem[:1].upper()}{error.problem[1:]}. Only the clients are scored.")
    return models, notes


def _features(
    run: Run, backbone: Backbone, found: LabelledImages, cache: Path | str | None, reporter: Reporter
) -> tuple[NDArray[np.int64], ImageFeatures, list[str]]:
    """Return which of the images can be read, as positions, their features, and sentences about the other images."""
    method, directory, dataset = run.config.methods[run.method], cache_directory(cache), found.dataset
    # All images of the dataset are encoded, so that the cache serves any choice of classes.
    view = ViewFeatures(backbone.image, dataset, directory, skip_bad_images=True, progress=reporter.progress)
    whole = view.load()[0]
    kept = np.flatnonzero(~np.isin(found.images, list(whole.undecodable)))
    images = found.images[kept]
    if not len(images):
        remedy = "Replace the files"
        raise DataError(f"none of {len(found.images)} images can be read", where=dataset.name, remedy=remedy)
    pooled = whole.features[torch.from_numpy(images)].to(backbone.image.device)
    faults = {image: whole.undecodable[image] for image in found.images.tolist() if image in whole.undecodable}
    bad = [f"{name_of(dataset.image, image)} cannot be read: {fault}." for image, fault in faults.items()]
    kind = kind_of(method)
    if kind is None:
        return kept, ImageFeatures(pooled), bad
    half = run.config.data.token_precision == "float16"
    part = SplitPart(dataset, images, kind, [CENTRE])
    (tokens,) = token_features(
        backbone.image, [part], directory, half=half, progress=reporter.progress, notice=reporter.notice
    )
    return kept, ImageFeatures(pooled, tokens.kept, tokens.places[torch.from_numpy(images)]), bad


def _answers(model: Classifier, images: ImageFeatures, classes: Classes) -> Answers:
    pieces = (images[at : at + PIECE] for at in range(0, len(images), PIECE))
    answers = [model.probabilities(model.answer(piece, classes)).max(-1) for piece in pieces]
    confidence, predicted = (torch.cat(part).cpu().numpy() for part in zip(*answers, strict=True))
    return Answers(predicted, confidence)
