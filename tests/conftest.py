"""Fixtures of many tests: the embedded checkpoint and dataset, loaded once, and a small part of the dataset."""

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Command, Ended
from hypothesis import settings
from safetensors.torch import load_file, save_file
from tiny import SHORT_RUN, use_small_source

import fedpgp
from fedpgp import assets, cli
from fedpgp.backbone import Backbone, load_backbone
from fedpgp.data.sources import ImageDataset, Source
from fedpgp.data.sources import pictograms as embedded
from fedpgp.federation.state import State

pytest_plugins = ["browser", "families"]

TRAINING = ("compare", "run", "tune", "ablate", "sweep", "reproduce")  # commands
COMPARED = ("zero-shot", "promptfl", "fedpgp")
POSITIONS = "vision_model.embeddings.position_embedding.weight"

settings.register_profile("fedpgp", deadline=None)  # the time of an example depends on the load of the machine
settings.load_profile("fedpgp")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Use one thread: the operations of tests are small, and threads that wait for a busy core are much slower."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Seed the global generator, so that the draws of a test do not depend on earlier tests."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Handle Ctrl-C; a background job of a script, and all its processes, would ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def new_state() -> Iterator[Callable[[], State]]:
    """A function that makes states in memory, which are closed after the test."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(State.create())


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return load_backbone("pictoclip")


@pytest.fixture(scope="session")
def compact_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded checkpoint for images of 24 x 24 pixels: 9 patches instead of 36 need a fifth of the time."""
    directory = tmp_path_factory.mktemp("checkpoints") / "compact"
    shutil.copytree(Path(assets.__file__).parent / "pictoclip", directory)
    config = json.loads((directory / "config.json").read_text())
    config["vision_config"]["image_size"] = 24
    (directory / "config.json").write_text(json.dumps(config))
    processor = json.loads((directory / "preprocessor_config.json").read_text())
    processor |= {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    weights = load_file(directory / "model.safetensors")
    positions = weights[POSITIONS]  # [1 + 6 x 6, width]: the class token, then the patches row by row
    corner = positions[1:].unflatten(0, (6, 6))[:3, :3].flatten(0, 1)
    weights[POSITIONS] = torch.cat([positions[:1], corner])
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="session")
def compact(compact_checkpoint: Path) -> Backbone:
    return load_backbone(str(compact_checkpoint))


@pytest.fixture(scope="session")
def exact(compact_checkpoint: Path) -> Backbone:
    """The compact checkpoint in float64."""
    return load_backbone(str(compact_checkpoint), precision="float64")


@pytest.fixture(scope="session")
def pictograms() -> Source:
    return embedded.read()


def part_of(dataset: ImageDataset, classes: list[int], per_class: int) -> ImageDataset:
    """Return the first images of some classes, with the labels 0, 1, …"""
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
    """A feature cache for the session, so that no test uses the user's cache."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def small(small_source: Source, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the embedded dataset by its small part, and load the checkpoint only once."""
    use_small_source(monkeypatch, small_source, backbone)


@pytest.fixture(scope="session")
def compared(small_source: Source, backbone: Backbone, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short comparison of three methods with two seeds, made once. Tests that change it use `own_comparison`."""
    directory = tmp_path_factory.mktemp("compared") / "out"
    with pytest.MonkeyPatch.context() as patch:
        use_small_source(patch, small_source, backbone)
        fedpgp.compare(COMPARED, 2, changes=SHORT_RUN, output=directory, cache=cache)
    return directory


@pytest.fixture
def own_comparison(compared: Path, tmp_path: Path) -> Path:
    """A copy of the comparison, for a test that changes it."""
    return Path(shutil.copytree(compared, tmp_path / "out"))


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, cache: Path
) -> Command:
    """Run `fedpgp ARGUMENTS` in an empty directory. A command that trains gets a cache directory and one worker."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Ended:
        common = ["--cache-dir", str(cache)] if arguments[0] in TRAINING and "--cache-dir" not in arguments else []
        common += ["--workers", "1"] if arguments[0] in TRAINING and "--workers" not in arguments else []
        monkeypatch.setattr(sys, "argv", ["fedpgp", *arguments, *common])
        for console in (cli.out, cli.err):  # otherwise they would print to a stream of an earlier test
            monkeypatch.setattr(console, "_file", None)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def backbones(exact):
    """The checkpoints that are compared with the oracles."""
    return {"float64": exact}


@pytest.fixture(scope="session")
def both_precisions(exact, compact):
    """Both precisions, for one method of each kind of `reads`, because the engine depends only on the kind."""
    return {"float64": exact, "float32": compact}
