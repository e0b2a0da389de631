"""What all federations of a demo share: a part of the embedded data with its features, and the frozen CLIP.

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

from fedpgp.backbone import Backbone, load_backbone
from fedpgp.config import ExperimentConfig, load_config, reason
from fedpgp.data.cache import cache_directory, check_cache
from fedpgp.data.features import Progress, split_features
from fedpgp.data.sources import ImageDataset, Source, pictograms
from fedpgp.data.tasks import Task
from fedpgp.errors import ConfigError, DataError
from fedpgp.runs.execution import Execution
from fedpgp.runs.setup import OpenRun, RunSetup
from fedpgp.runs.tasks import make_task
from fedpgp.runtime.validation import STRICT
from fedpgp.runtime.workers import Workers

CLIENTS, SHOTS = 6, 8
PRIVATE_RATE = 0.03  # twice the recipe's, so that a dozen rounds show what a personal part wins and what it costs
# fmt: off
# Of the embedded classes those whose names and drawings are understood across a room; the benchmark has all of them.
BASE = (
    "bee", "cat", "frog", "leopard", "panda", "rooster", "sheep", "turtle", "cherries", "grapes", "hamburger",
    "lemon", "pizza", "strawberry", "bicycle", "helicopter", "rocket", "taxi", "house", "tent", "palm tree",
    "rainbow", "scissors", "umbrella",
)
NOVEL = (
    "crocodile", "dog", "dolphin", "elephant", "fish", "snake", "spider", "tiger", "banana", "corn", "doughnut",
    "ice cream", "mushroom", "red apple", "airplane", "bus", "motorcycle", "sailboat", "castle", "fire", "snowman",
    "sunflower", "guitar", "key",
)
# fmt: on
SAMPLES = 16  # test pictures to classify, half of them of base classes


@dataclass(frozen=True)
class Mixture:
    """A position of the heterogeneity slider: changes of the task, and what they mean."""

    title: str
    about: str
    changes: tuple[str, ...]


def _dirichlet(title: str, about: str, concentration: float) -> Mixture:
    return Mixture(
        title,
        f"{about}: each class is shared out by a draw from Dirichlet({concentration:g}).",
        ("task.partition=dirichlet", f"task.concentration={concentration}"),
    )


MIXTURES = (
    Mixture("none", "Images are dealt out at random: everybody has a bit of every class.", ("task.partition=iid",)),
    _dirichlet("mild", "Everybody has most classes, in proportions of their own", 1.0),
    _dirichlet("medium", "More than half of each class is with one client", 0.3),
    _dirichlet("strong", "Four fifths of each class are with one client", 0.1),
    Mixture(
        "complete",
        f"Nothing in common: {len(BASE)} classes, {len(BASE) // CLIENTS} for each client, as in the paper.",
        ("task.partition=classes",),
    ),
)


@checked(frozen=True, kw_only=True, config=STRICT)
class Choices:
    """What a visitor chooses of a federation."""

    mu: float = Field(default=1.0, ge=0, le=5, description="weight of the contrastive term")
    bottleneck: int = Field(default=4, ge=0, le=16, description="b, rank of the personal part; 0 has none")
    heterogeneity: int = Field(
        default=len(MIXTURES) - 1, ge=0, lt=len(MIXTURES), description="how different the clients' classes are"
    )
    rounds: int = Field(default=12, ge=1, le=30, description="of training and averaging")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of who gets what, and of the first prompts")

    def config(self) -> ExperimentConfig:
        """The experiment that they describe, on the embedded recipe."""
        changes = [
            f"task.clients={CLIENTS}",
            f"task.shots={SHOTS}",
            f"federation.rounds={self.rounds}",
            "federation.path_points=1",
            f"fedpgp.mu={self.mu!r}",
            f"fedpgp.bottleneck={self.bottleneck}",
            f"fedpgp.private_learning_rate={PRIVATE_RATE}",
            *MIXTURES[self.heterogeneity].changes,
        ]
        return load_config(None, changes)


def choices_of(given: Any) -> Choices:
    """Choices from JSON's types; raises ConfigError, naming field, value and what is allowed."""
    if not isinstance(given, dict):
        raise ConfigError(f"settings must be an object with fields such as mu, got {given!r}")
    try:
        return Choices(**given)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, fault['loc'])) or 'settings'} {reason(fault)}" for fault in error.errors()]
        raise ConfigError("; ".join(lines)) from error


@dataclass(frozen=True)
class DemoSetup:
    """The frozen CLIP, and 24 base and 24 novel classes of the embedded data with their image features.

    features: [n, D] by a split's fingerprint.
    """

    source: Source
    backbone: Backbone
    features: dict[str, Tensor]

    @classmethod
    def prepare(cls, cache: Path | None = None, progress: Progress = lambda *_: None) -> "DemoSetup":
        """Reads, and encodes what no feature cache has; raises FedPGPError where that cannot be read or written."""
        directory = cache_directory(cache)
        check_cache(directory)
        progress("reading CLIP and pictures", 0, 1, "")
        source, backbone = part_of(pictograms.read()), load_backbone("pictoclip")
        splits = [split for split in (source.train, source.validation, source.test) if split is not None]
        features, _ = split_features(backbone.image, splits, directory, augmented_views=1, progress=progress)
        return cls(source, backbone, features)

    def task(self, choices: Choices) -> Task:
        """Who has which pictures, and what is tested."""
        return make_task(choices.config(), self.source, choices.seed)

    @contextmanager
    def open(self, choices: Choices, method: str) -> Iterator[OpenRun]:
        """The parts of a run of a method as they are chosen."""
        config, tasks = choices.config(), {choices.seed: self.task(choices)}
        with Workers(self.backbone.towers(config.methods[method].reads), 1) as workers:
            setup = RunSetup(config, self.backbone, self.source, tasks, self.features, {}, workers, Execution())
            yield setup.open(method, choices.seed)

    @property
    def test(self) -> ImageDataset:
        """The test split."""
        assert self.source.test is not None, "all splits are read"
        return self.source.test

    @cached_property
    def samples(self) -> tuple[int, ...]:
        """Test pictures that nobody trained on, as indices into the test split: base and novel classes in turn."""
        step = len(self.source.class_names) // SAMPLES
        order = [label for i in range(SAMPLES // 2) for label in (i * step, len(BASE) + i * step + 1)]
        of_class = [np.flatnonzero(self.test.labels == label) for label in order]
        return tuple(int(images[7 * i % len(images)]) for i, images in enumerate(of_class))

    def sample(self, index: int) -> Image:
        """One of the samples; raises DataError for another picture."""
        if index not in self.samples:
            raise DataError(f"sample must be one that the page shows, got {index}")
        return self.test.image(index)

    def picture(self, split: str, index: int) -> bytes | None:
        """A training or test image as PNG; None where there is no such image."""
        dataset = {"train": self.source.train, "test": self.test}.get(split)
        if dataset is None or not 0 <= index < len(dataset):
            return None
        content = BytesIO()
        dataset.image(index).save(content, "PNG")
        return content.getvalue()


def part_of(source: Source) -> Source:
    """A source with the demo's classes only, so that the first half of them is base."""
    names = (*BASE, *NOVEL)
    place = {source.class_names.index(name): i for i, name in enumerate(names)}

    def part(dataset: ImageDataset, count: int) -> ImageDataset:
        chosen = dataset.select(dataset.of_classes([*place][:count]))
        labels = np.array([place[label] for label in chosen.labels.tolist()], dtype=np.int64)
        return replace(chosen, class_names=names, labels=labels)

    # No novel image is trained on or validated with: so none need be encoded.
    train, validation = part(source.train, len(BASE)), part(source.validation, len(BASE))
    test = None if source.test is None else part(source.test, len(names))
    return replace(source, train=train, validation=validation, test=test, probe=())
