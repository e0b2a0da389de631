"""Encoding of the images of tasks before any training."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.config import ExperimentConfig
from fedpgp.data.cache import cache_directory
from fedpgp.data.features import SplitPart, Tokens, split_features, token_features, views_of
from fedpgp.data.sources import ImageDataset, Source
from fedpgp.data.subset import narrowed, part_of, without
from fedpgp.data.tasks import Task
from fedpgp.evaluation.inference import kind_of
from fedpgp.evaluation.metrics import evaluation_sets
from fedpgp.methods import Method
from fedpgp.runs.execution import Execution
from fedpgp.runs.tasks import make_task


def encode_images(
    config: ExperimentConfig, execution: Execution, backbone: Backbone, source: Source, tasks: Mapping[int, Task]
) -> tuple[Source, dict[int, Task], dict[str, Tensor]]:
    """Encode the images of all tasks.

    Splits are reduced to the images that tasks use. If bad images are skipped, the tasks are made again without them.

    Parameters
    ----------
    config, execution
        The experiment and its options.
    backbone
        The dual encoder.
    source
        The dataset.
    tasks
        The task of each seed.

    Returns
    -------
    The dataset, the task of each seed, and the features of each split: fingerprint -> [n, D], or [n, K, D] for n images
    with K views.
    """
    features: dict[str, Tensor] = {}
    splits: dict[str, ImageDataset] = {}
    while True:
        used = {seed: narrowed(task) for seed, task in tasks.items()}
        before, splits = splits, {split.fingerprint: split for task in used.values() for split in _splits_of(task)}
        known = {key: features[key] for key in splits if key in features}
        for key, split in splits.items():
            if key not in known and (place := part_of(split, before)) is not None:
                known[key] = features[place[0]][torch.from_numpy(place[1])]
        encoded, bad = split_features(
            backbone.image,
            [split for key, split in splits.items() if key not in known],
            cache_directory(execution.cache),
            augmented_views=config.data.augmented_views,
            skip_bad_images=execution.skip_bad_images,
            workers=execution.workers,
            progress=execution.listener.progress,
            notice=execution.listener.notice,
        )
        features = known | encoded
        if not bad:
            return source, used, features
        source = without(source, splits, bad)  # other images may be drawn instead, and may be bad, too
        tasks = {seed: make_task(config, source, seed) for seed in tasks}


def _splits_of(task: Task) -> list[ImageDataset]:
    return [task.train, *(test.dataset for test in evaluation_sets(task).values())]


def encode_tokens(
    config: ExperimentConfig,
    execution: Execution,
    backbone: Backbone,
    tasks: Mapping[int, Task],
    methods: Sequence[Method],
) -> dict[tuple[str, int, str], Tokens]:
    """Encode what methods read of the images in addition to their features, such as patches.

    Parameters
    ----------
    config, execution
        The experiment and its options.
    backbone
        The dual encoder.
    tasks
        The task of each seed.
    methods
        The methods.

    Returns
    -------
    Kind, seed and fingerprint of a split -> the tokens of the images that the task uses.
    """
    parts = {
        (kind, seed, dataset.fingerprint): SplitPart(
            dataset, images, kind, views_of(dataset.split, config.data.augmented_views)
        )
        for kind in dict.fromkeys(kind_of(method) for method in methods)
        if kind is not None
        for seed, task in tasks.items()
        for dataset, images in _used(task)
    }
    encoded = token_features(
        backbone.image,
        list(parts.values()),
        cache_directory(execution.cache),
        half=config.data.token_precision == "float16",
        workers=execution.workers,
        progress=execution.listener.progress,
        notice=execution.listener.notice,
    )
    return dict(zip(parts, encoded, strict=True))


def _used(task: Task) -> list[tuple[ImageDataset, NDArray[np.int64]]]:
    """Return the training and test images of a task for every split."""
    used = [(task.train, client.train) for client in (*task.clients, *task.new_clients)]
    used += [(test.dataset, test.images) for test in evaluation_sets(task).values()]
    splits = {dataset.fingerprint: dataset for dataset, _ in used}
    return [
        (dataset, np.unique(np.concatenate([images for other, images in used if other.fingerprint == key])))
        for key, dataset in splits.items()
    ]
