"""What all runs of an experiment share, after everything is checked that can be checked without work."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from fedpgp.aggregators import FedAvg
from fedpgp.backbone import Backbone, bfloat16_speed, load_backbone
from fedpgp.config import DEFAULT_AGGREGATOR, ExperimentConfig
from fedpgp.data.cache import cache_directory, check_cache
from fedpgp.data.features import source_features
from fedpgp.data.sources import Source, load_source
from fedpgp.data.tasks import Task, base_to_novel
from fedpgp.errors import ConfigError
from fedpgp.evaluate import evaluation_sets
from fedpgp.federation.rounds import frozen_of
from fedpgp.methods import Params
from fedpgp.plugins import own_errors
from fedpgp.processes import warm_up
from fedpgp.workers import Workers


class Reporter(Protocol):
    """Hears what is going on. Both calls may be ignored."""

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None: ...

    def notice(self, text: str) -> None: ...


class Silent:
    """A reporter that says nothing."""

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None:
        pass

    def notice(self, text: str) -> None:
        pass


@dataclass(frozen=True)
class Laboratory:
    """What all runs of an experiment share: the frozen CLIP, the data, its features, the worker processes.

    tasks: by seed; features: [n, D] by split, [n, K, D] of the training split where K > 1 views are asked for.
    """

    config: ExperimentConfig
    backbone: Backbone
    source: Source
    tasks: dict[int, Task]
    features: dict[str, torch.Tensor]
    workers: Workers
    reporter: Reporter


@contextmanager
def laboratory(
    config: ExperimentConfig,
    methods: Sequence[str],
    seeds: Sequence[int],
    workers: int,
    cache: Path | str | None,
    skip_bad_images: bool,
    reporter: Reporter | None,
) -> Iterator[Laboratory]:
    """Prepares what all runs share, after checking everything that can be checked without work."""
    if workers < 1:
        raise ConfigError(f"workers must be 1 or more, got {workers}; without --workers every core has one")
    directory = cache_directory(cache)
    check_cache(directory)
    source = load_source(config.data.source)
    tasks = {seed: make_task(config, source, seed) for seed in seeds}
    first = tasks[seeds[0]]
    if workers > 1:
        warm_up()
    backbone = load_backbone(config.backbone.checkpoint, config.backbone.precision, config.backbone.device)
    for name in methods:
        with own_errors(config.methods[name]):
            _check_method(config, name, backbone, first)
    reporter = reporter or Silent()
    if config.backbone.precision == "bf16" and (speed := bfloat16_speed(config.backbone.device)) < 1:
        reporter.notice(f"bf16 is {1 / speed:.1f} times slower than float32 on this processor: float32 is better here")
    decodable, features = source_features(
        backbone.image,
        source,
        sorted({"train", *(test.dataset.split for test in evaluation_sets(first).values())}),
        directory,
        augmented_views=config.data.augmented_views,
        skip_bad_images=skip_bad_images,
        workers=workers,
        progress=reporter.progress,
        notice=reporter.notice,
    )
    if decodable is not source:
        source = decodable
        tasks = {seed: make_task(config, source, seed) for seed in seeds}
    # Processes share the cores of a machine; one process keeps an accelerator busy.
    count = min(workers, config.task.clients) if config.backbone.device == "cpu" else 1
    with Workers(backbone.text, count) as pool:
        yield Laboratory(config, backbone, source, tasks, features, pool, reporter)


def make_task(config: ExperimentConfig, source: Source, seed: int) -> Task:
    """The task that a config describes."""
    task = config.task
    return base_to_novel(
        source,
        clients=task.clients,
        classes_per_client=task.classes_per_client,
        shots=task.shots,
        seed=seed,
        evaluate_on=task.evaluate_on,
    )


def _check_method(config: ExperimentConfig, name: str, backbone: Backbone, task: Task) -> None:
    """Raises ConfigError where a method does not fit the aggregator, the checkpoint or the class names."""
    method, aggregator = config.methods[name], config.aggregator
    if method.aggregator is not None and aggregator != FedAvg():
        raise ConfigError(
            f"federation.aggregator must be {DEFAULT_AGGREGATOR} as it is for {name}, whose server is its own"
            f" ({method.aggregator.name}), got {aggregator}: leave out {name}, or the aggregator"
        )
    if method.pooled and aggregator.controls:
        raise ConfigError(
            f"federation.aggregator must be one that clients need not know of for {name}, which has no clients in"
            f" training, got {aggregator.name}: leave out {name}, or take fedavg"
        )
    shared = method.init_shared(task, backbone, torch.Generator())
    server = (method.aggregator or aggregator).begin(shared, len(task.clients))
    received = (method.aggregator or aggregator).download(server, 0).shared
    frozen = frozen_of(method, task, backbone)
    longest = backbone.class_tokens([*task.class_names, *method.extra_names]).ids.shape[1]
    room = backbone.text.longest - 1 - longest
    for client in task.clients:
        private = method.init_private(task, backbone, torch.Generator(), client.id)
        for context in method.prompts(Params(shared, private, received), frozen):
            if context.shape[-2] > room:
                raise ConfigError(
                    f"a context of {name} must have at most {room} vectors for this checkpoint and these class names,"
                    f" got {context.shape[-2]}: change the settings of [{name}], such as context_length"
                )
