"""What many tests share: the embedded checkpoint and data set, loaded once, and a small part of it to run on."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

import fedpgp.laboratory
from fedpgp.backbone import Backbone, load_backbone
from fedpgp.data.sources import ImageDataset, Source
from fedpgp.data.sources import pictograms as embedded
from fedpgp.federation.state import State

settings.register_profile("fedpgp", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("fedpgp")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The tests' operations are too small to share, and threads that wait for a busy core make them much slower."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """What a test draws without a generator of its own does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture
def new_state() -> Iterator[Callable[[], State]]:
    """Makes states in memory, which are closed after the test."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(State.create())


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return load_backbone("pictoclip")


@pytest.fixture(scope="session")
def exact() -> Backbone:
    """The embedded checkpoint in float64."""
    return load_backbone("pictoclip", precision="float64")


@pytest.fixture(scope="session")
def pictograms() -> Source:
    return embedded.read()


def part_of(dataset: ImageDataset, classes: list[int], per_class: int) -> ImageDataset:
    """The first images of some classes, relabelled 0, 1, …"""
    chosen = np.concatenate([np.flatnonzero(dataset.labels == label)[::3][:per_class] for label in classes])
    return replace(
        dataset,
        class_names=tuple(dataset.class_names[label] for label in classes),
        labels=np.searchsorted(classes, dataset.labels[chosen]),
        domains=dataset.domains[chosen],
        image=lambda index: dataset.image(int(chosen[index])),
        fingerprint=f"part of {dataset.fingerprint}",
    )


@pytest.fixture(scope="session")
def small_source(pictograms: Source) -> Source:
    """Six base, six novel and two probe classes with a few images each."""
    classes = [*range(6), *range(50, 56), 100, 101]
    splits = {name: part_of(getattr(pictograms, name), classes, 8) for name in ("train", "validation", "test")}
    return Source("pictograms", **splits, probe=(12, 13))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature cache for the session, so that no test reads or writes the user's."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def small(small_source: Source, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experiments on the embedded data see its small part, and load the checkpoint once."""
    monkeypatch.setattr(
        fedpgp.laboratory,
        "load_source",
        lambda data, splits: small_source if "test" in splits else replace(small_source, test=None),
    )
    monkeypatch.setattr(fedpgp.laboratory, "load_backbone", lambda *_: backbone)
