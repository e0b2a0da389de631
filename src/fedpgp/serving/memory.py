"""Parts of a model that need images, which a run directory does not contain: a client's memory and the temperature."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fedpgp.data.image_features import ImageFeatures
from fedpgp.errors import ConfigError
from fedpgp.evaluation.metrics import own_images
from fedpgp.methods import Method
from fedpgp.reporting import Reporter
from fedpgp.results.run import Run
from fedpgp.runs.execution import Execution
from fedpgp.runs.setup import OpenRun, open_run
from fedpgp.serving.classifier import Classifier, calibrated


def remembers(method: Method) -> bool:
    """Return whether clients of a method predict with a memory of their images."""
    return type(method).memory is not Method.memory


@contextmanager
def images_of(run: Run, cache: Path | str | None, reporter: Reporter | None) -> Iterator[OpenRun]:
    """Open the images of a run, with features from the cache.

    Parameters
    ----------
    run
        The run.
    cache
        Directory of the feature cache.
    reporter
        Reporter of progress.

    Raises
    ------
    FedPGPError
        If the images are not available here.
    """
    if run.config.federation.engine == "deployment":
        raise ConfigError(
            "the images of the clients are not available here, because they stayed on the clients' machines",
            where=f"run of {run.method}",
            remedy="Use the shared part, without --client and without --calibrate",
        )
    execution = Execution(cache=cache, skip_bad_images=True, reporter=reporter)
    with open_run(run.config, run.method, run.seed, execution) as opened:
        yield opened


def with_images(
    models: Sequence[Classifier], run: Run, cache: Path | str | None, reporter: Reporter | None, calibrate: bool = False
) -> list[Classifier]:
    """Return models of a run with the parts that need the run's images, which are opened only if a model needs them.

    A client of a method that remembers gets its memory of the training images.

    Parameters
    ----------
    models, run
        The models and their run.
    cache, reporter
        As in `images_of`.
    calibrate
        Give each model the temperature that fits the validation images of its client, or of all base classes.
    """
    memories = remembers(run.config.methods[run.method]) and any(model.client is not None for model in models)
    if not (calibrate or memories):
        return list(models)
    with images_of(run, cache, reporter) as opened:
        whole = [_with_memory(model, opened) if memories else model for model in models]
        return [_with_temperature(model, opened) for model in whole] if calibrate else whole


def _with_memory(model: Classifier, opened: OpenRun) -> Classifier:
    if model.client is None:  # the shared part remembers nothing
        return model
    return replace(model, params=replace(model.params, memory=opened.runner.memory(model.client)))


def _with_temperature(model: Classifier, opened: OpenRun) -> Classifier:
    task = opened.task
    images: ImageFeatures = opened.data.tests["validation"]
    chosen = np.ones(len(images), dtype=np.bool_)
    if model.client is not None:
        (chosen,) = own_images(task, [task.clients[model.client]], "validation")
    places = torch.from_numpy(np.flatnonzero(chosen))
    targets = torch.from_numpy(task.validation.targets)[places]
    return calibrated(model, model.answer(images[places], model.read()), targets)
