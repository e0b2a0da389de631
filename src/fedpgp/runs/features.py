"""What is encoded of the images of tasks before any training."""

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
    """Return the source, the task of each seed, and by a split's fingerprint its features [n, D] or [n, K, D].

    Splits are reduced to the images that tasks use. Images that do not decode are left out, if that is wanted, and
    tasks are made anew without them.
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
        source = without(source, splits, bad)  # others may be drawn in their place, which may be bad, too
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
    """Return, by kind, seed and fingerprint, what methods read beside features of the images that a task uses."""
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
    """The images of every split that clients hold or that are tested on."""
    used = [(task.train, client.train) for client in (*task.clients, *task.new_clients)]
    used += [(test.dataset, test.images) for test in evaluation_sets(task).values()]
    splits = {dataset.fingerprint: dataset for dataset, _ in used}
    return [
        (dataset, np.unique(np.concatenate([images for other, images in used if other.fingerprint == key])))
        for key, dataset in splits.items()
    ]
