"""What all federations of a demo have in common: a part of an embedded dataset, its features, and the frozen CLIP.

Letters: N clients, C classes, D feature width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image
from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass as checked
from torch import Tensor

from fedpgp.backbone import Backbone, configured_backbone
from fedpgp.config import ExperimentConfig, load_config
from fedpgp.data.cache import cache_directory, check_cache
from fedpgp.data.features import Progress, split_features
from fedpgp.data.sources import ImageDataset, Source, load_source
from fedpgp.data.tasks import Task
from fedpgp.errors import ConfigError, DataError, combined
from fedpgp.runs.execution import Execution
from fedpgp.runs.setup import OpenRun, RunSetup
from fedpgp.runs.tasks import make_task
from fedpgp.runtime.validation import STRICT, value_error
from fedpgp.runtime.workers import Workers

CLIENTS, SHOTS = 6, 8
CLASSES = 24  # base classes, and as many novel ones


@dataclass(frozen=True)
class Subject:
    """A choice of images for the demo.

    Attributes
    ----------
    title
        Name of the subject.
    about
        Description of the images, for the page.
    recipe
        Recipe with the data and with a checkpoint for such images.
    private_rate
        Learning rate of the private part. It is higher than the recipe's, so that a dozen rounds show the gains and the
        costs of a personal part.
    base, novel
        Names of the base and novel classes.
    """

    title: str
    about: str
    recipe: str
    private_rate: float
    base: tuple[str, ...]
    novel: tuple[str, ...]


# fmt: off
# Classes whose names many people know; the benchmarks have all classes.
_SUBJECTS = (
    Subject(
        "drawings",
        "Icons from the dataset pictograms. The CLIP is pictoclip, which was trained only on icons.",
        "pictograms", 0.03,
        (
            "bee", "cat", "frog", "leopard", "panda", "rooster", "sheep", "turtle", "cherries", "grapes", "hamburger",
            "lemon", "pizza", "strawberry", "bicycle", "helicopter", "rocket", "taxi", "house", "tent", "palm tree",
            "rainbow", "scissors", "umbrella",
        ),
        (
            "crocodile", "dog", "dolphin", "elephant", "fish", "snake", "spider", "tiger", "banana", "corn", "doughnut",
            "ice cream", "mushroom", "red apple", "airplane", "bus", "motorcycle", "sailboat", "castle", "fire",
            "snowman", "sunflower", "guitar", "key",
        ),
    ),
    Subject(
        "photographs",
        "Photographs from Caltech 101. The CLIP is photoclip, trained on many objects, animals, plants and food.",
        "photographs", 0.08,
        (
            "beaver", "butterfly", "crab", "crayfish", "dolphin", "dragonfly", "elephant", "emu", "flamingo",
            "hedgehog", "bonsai", "brain", "airplane", "ferry", "helicopter", "accordion", "gramophone", "anchor",
            "barrel", "camera", "cannon", "chair", "chandelier", "cup",
        ),
        (
            "kangaroo", "llama", "lobster", "octopus", "panda", "pigeon", "rooster", "scorpion", "starfish", "lotus",
            "strawberry", "sunflower", "pizza", "schooner", "mandolin", "saxophone", "lamp", "laptop", "menorah",
            "pagoda", "pyramid", "scissors", "stapler", "umbrella",
        ),
    ),
)
# fmt: on
SUBJECTS = {subject.title: subject for subject in _SUBJECTS}
SAMPLES = 16  # test pictures to classify, half of them of base classes


@dataclass(frozen=True)
class Mixture:
    """A position of the heterogeneity slider: changes of the task, and their description."""

    title: str
    about: str
    changes: tuple[str, ...]


def _dirichlet(title: str, about: str, concentration: float) -> Mixture:
    return Mixture(
        title,
        f"{about}: the shares of each class are drawn from Dirichlet({concentration:g}).",
        ("task.partition=dirichlet", f"task.concentration={concentration}"),
    )


MIXTURES = (
    Mixture("none", "Images are distributed randomly: each client has images of every class.", ("task.partition=iid",)),
    _dirichlet("mild", "Each client has most classes, in different proportions", 1.0),
    _dirichlet("medium", "One client has more than half of each class", 0.3),
    _dirichlet("strong", "One client has four fifths of each class", 0.1),
    Mixture(
        "complete",
        f"The clients have no class in common: {CLASSES // CLIENTS} of {CLASSES} classes each, as in the paper.",
        ("task.partition=classes",),
    ),
)


@checked(frozen=True, kw_only=True, config=STRICT)
class Choices:
    """The settings of a federation that a visitor of the page can choose."""

    mu: float = Field(default=1.0, ge=0, le=5, description="weight of the contrastive term")
    bottleneck: int = Field(default=4, ge=0, le=16, description="b, rank of the personal part; 0 means none")
    heterogeneity: int = Field(
        default=len(MIXTURES) - 1, ge=0, lt=len(MIXTURES), description="how different the clients' classes are"
    )
    rounds: int = Field(default=12, ge=1, le=30, description="number of rounds")
    seed: int = Field(default=0, ge=0, lt=2**32, description="random seed of the partition and of the first prompts")

    def config(self, subject: Subject) -> ExperimentConfig:
        """Return the experiment with these settings, based on the recipe of a subject."""
        changes = [
            f"task.clients={CLIENTS}",
            f"task.shots={SHOTS}",
            f"federation.rounds={self.rounds}",
            "federation.path_points=1",
            f"fedpgp.mu={self.mu!r}",
            f"fedpgp.bottleneck={self.bottleneck}",
            f"fedpgp.private_learning_rate={subject.private_rate}",
            *MIXTURES[self.heterogeneity].changes,
        ]
        return load_config(subject.recipe, changes)


def choices_of(given: Any) -> Choices:
    """Return the choices in a JSON value; raise ConfigError with the field, its value and the allowed values."""
    if not isinstance(given, dict):
        allowed = "an object with fields such as mu"
        raise ConfigError(where="settings", allowed=allowed, got=given, remedy='Use an object such as {"mu": 1}')
    try:
        return Choices(**given)
    except ValidationError as error:
        places = [(".".join(map(str, fault["loc"])) or "settings", fault) for fault in error.errors()]
        raise combined([value_error(fault, place, f"Correct {place}") for place, fault in places]) from error


@dataclass(frozen=True)
class DemoSetup:
    """The frozen CLIP, and the base and novel classes of a subject with their image features.

    Attributes
    ----------
    subject
        The subject.
    source
        The images.
    backbone
        The frozen CLIP.
    features
        Image features [n, D], by the fingerprint of a split.
    """

    subject: Subject
    source: Source
    backbone: Backbone
    features: dict[str, Tensor]

    @classmethod
    def prepare(cls, subject: Subject, cache: Path | None = None, progress: Progress = lambda *_: None) -> "DemoSetup":
        """Read the images and the CLIP, and encode the images that are not in the feature cache.

        Parameters
        ----------
        subject
            The subject.
        cache
            Directory of the image features; None means the user's cache directory.
        progress
            Function that is called with the progress.

        Raises
        ------
        FedPGPError
            If the images cannot be read, or the cache cannot be read or written.
        """
        directory = cache_directory(cache)
        check_cache(directory)
        progress(f"reading CLIP and {subject.title}", 0, 1, "")
        config = Choices().config(subject)
        source, backbone = part_of(load_source(config.data), subject), configured_backbone(config.backbone)
        splits = [split for split in (source.train, source.validation, source.test) if split is not None]
        features, _ = split_features(backbone.image, splits, directory, augmented_views=1, progress=progress)
        return cls(subject, source, backbone, features)

    def task(self, choices: Choices) -> Task:
        """Return the task: the pictures of each client, and the test sets."""
        return make_task(choices.config(self.subject), self.source, choices.seed)

    @contextmanager
    def open(self, choices: Choices, method: str) -> Iterator[OpenRun]:
        """Open a run of a method with these choices."""
        config, tasks = choices.config(self.subject), {choices.seed: self.task(choices)}
        with Workers(self.backbone.towers(config.methods[method].reads), 1) as workers:
            setup = RunSetup(config, self.backbone, self.source, tasks, self.features, {}, workers, Execution())
            yield setup.open(method, choices.seed)

    @property
    def test(self) -> ImageDataset:
        """The test split."""
        assert self.source.test is not None, "all splits are read"
        return self.source.test

    @property
    def has_images(self) -> bool:
        """Whether this machine has the images, and not only their features."""
        return self.source.train.features is None

    @cached_property
    def samples(self) -> tuple[int, ...]:
        """Indices of test pictures to classify: base and novel classes alternate; empty without images."""
        if not self.has_images:
            return ()
        step = len(self.source.class_names) // SAMPLES
        order = [label for i in range(SAMPLES // 2) for label in (i * step, CLASSES + i * step + 1)]
        of_class = [np.flatnonzero(self.test.labels == label) for label in order]
        return tuple(int(images[7 * i % len(images)]) for i, images in enumerate(of_class))

    def sample(self, index: int) -> Image:
        """Return one of the samples; raise DataError for another picture."""
        if index not in self.samples:
            remedy = "Choose one of the test pictures on the page"
            raise DataError(where="sample", allowed="the number of a test picture", got=index, remedy=remedy)
        return self.test.image(index)

    def picture(self, split: str, index: int) -> bytes | None:
        """Return a training or test image as PNG, or None if this machine does not have it."""
        dataset = {"train": self.source.train, "test": self.test}.get(split)
        if dataset is None or not self.has_images or not 0 <= index < len(dataset):
            return None
        content = BytesIO()
        dataset.image(index).save(content, "PNG")
        return content.getvalue()


def part_of(source: Source, subject: Subject) -> Source:
    """Return the part of a source with only a subject's classes; the first half of them are the base classes."""
    names = (*subject.base, *subject.novel)
    place = {source.class_names.index(name): i for i, name in enumerate(names)}

    def part(dataset: ImageDataset, count: int) -> ImageDataset:
        chosen = dataset.select(dataset.of_classes([*place][:count]))
        labels = np.array([place[label] for label in chosen.labels.tolist()], dtype=np.int64)
        return replace(chosen, class_names=names, labels=labels)

    # Novel images are used neither for training nor for validation, so they need not be encoded.
    train, validation = part(source.train, CLASSES), part(source.validation, CLASSES)
    test = None if source.test is None else part(source.test, len(names))
    return replace(source, train=train, validation=validation, test=test, probe=())
