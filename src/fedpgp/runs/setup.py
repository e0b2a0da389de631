"""What all runs of an experiment share, after everything is checked that can be checked without work."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from inspect import signature

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpgp.aggregators import Aggregator, FedAvg
from fedpgp.backbone import Backbone, Towers, bfloat16_speed, load_backbone
from fedpgp.backbone.layers import Prompt
from fedpgp.config import EMBEDDED_ORIGIN, ExperimentConfig
from fedpgp.data.cache import cache_directory, check_cache
from fedpgp.data.client_task import OWN, own_task
from fedpgp.data.features import SplitPart, Tokens, split_features, token_features, views_of
from fedpgp.data.image_features import ImageFeatures
from fedpgp.data.partition import PARTITIONS
from fedpgp.data.protocols import CLASSES, PROTOCOLS
from fedpgp.data.settings import TaskConfig
from fedpgp.data.sources import SPLITS, ImageDataset, Source, load_source, load_target, pictograms
from fedpgp.data.subset import narrowed, part_of, without
from fedpgp.data.tasks import Task
from fedpgp.errors import ConfigError
from fedpgp.evaluation.inference import kind_of
from fedpgp.evaluation.metrics import evaluation_sets
from fedpgp.federation.client_runner import Data, frozen_of
from fedpgp.federation.optimization import remarks
from fedpgp.federation.privacy import check_privacy, protected
from fedpgp.federation.run_spec import aggregator_for
from fedpgp.federation.settings import DEFAULT_AGGREGATOR
from fedpgp.methods import Method, Params
from fedpgp.methods.plugins import own_errors
from fedpgp.runs.execution import Execution
from fedpgp.runs.published import fitted
from fedpgp.runtime.processes import warm_up
from fedpgp.runtime.workers import Workers


@dataclass(frozen=True)
class RunSetup:
    """What all runs of an experiment share: the frozen CLIP, the data, its features, the worker processes.

    tasks: by seed; features: by a split's fingerprint, [n, D], or [n, K, D] of the training split where K > 1 views are
    asked for; tokens: by kind, seed and fingerprint, what methods read beside that of the images that a task uses.
    """

    config: ExperimentConfig
    backbone: Backbone
    source: Source
    tasks: dict[int, Task]
    features: dict[str, Tensor]
    tokens: Mapping[tuple[str, int, str], Tokens]
    workers: Workers[Towers]
    execution: Execution

    def data(self, method: Method, seed: int) -> Data:
        """A task with what a method reads of its images."""
        task, kind = self.tasks[seed], kind_of(method)

        def images(dataset: ImageDataset) -> ImageFeatures:
            if kind is None:
                return ImageFeatures(self.features[dataset.fingerprint])
            kept, places = self.tokens[kind, seed, dataset.fingerprint]
            return ImageFeatures(self.features[dataset.fingerprint], kept, places)

        tests = {
            name: images(test.dataset)[torch.from_numpy(test.images)] for name, test in evaluation_sets(task).items()
        }
        return Data(task, images(task.train), tests)


@contextmanager
def open_setup(
    config: ExperimentConfig,
    methods: Sequence[str],
    seeds: Sequence[int],
    execution: Execution,
) -> Iterator[RunSetup]:
    """Prepares what all runs share, after checking everything that can be checked without work."""
    workers, reporter = execution.workers, execution.listener
    if workers < 1:
        raise ConfigError(f"workers must be 1 or more, got {workers}; without --workers every core has one")
    directory = cache_directory(execution.cache)
    check_cache(directory)
    if workers > 1:
        warm_up()
    source, whole, backbone = _loaded(config, seeds)
    config, reduced = fitted(config, methods, backbone)
    _check_methods(config, methods, backbone, whole[seeds[0]])
    asked = {key for key, origin in config.origins.items() if origin == "--set"}
    told = [text for name in methods for text in remarks(config.methods[name], config.federation, asked)]
    for text in [*reduced, *told]:
        reporter.notice(text)
    if config.data.source != pictograms.NAME and config.origins.get("backbone.checkpoint") == EMBEDDED_ORIGIN:
        reporter.notice(
            f"the backbone is {config.backbone.checkpoint}, which knows icons alone: for photographs take another, as"
            " with --set backbone.checkpoint=openai/clip-vit-base-patch16"
        )
    if config.backbone.precision == "bf16" and (speed := bfloat16_speed(config.backbone.device)) < 1:
        reporter.notice(f"bf16 is {1 / speed:.1f} times slower than float32 on this processor: float32 is better here")
    tasks: dict[int, Task] = {}
    features: dict[str, Tensor] = {}
    splits: dict[str, ImageDataset] = {}
    while not tasks:
        narrow = {seed: narrowed(task) for seed, task in whole.items()}
        read, splits = (
            splits,
            {
                dataset.fingerprint: dataset
                for task in narrow.values()
                for dataset in [task.train, *(test.dataset for test in evaluation_sets(task).values())]
            },
        )
        known = {key: features[key] for key in splits if key in features}
        for key, dataset in splits.items():
            if key not in known and (place := part_of(dataset, read)) is not None:
                known[key] = features[place[0]][torch.from_numpy(place[1])]
        fresh, bad = split_features(
            backbone.image,
            [dataset for key, dataset in splits.items() if key not in known],
            directory,
            augmented_views=config.data.augmented_views,
            skip_bad_images=execution.skip_bad_images,
            workers=workers,
            progress=reporter.progress,
            notice=reporter.notice,
        )
        features = known | fresh
        if bad:  # without these images others may be drawn, which may be bad, too
            source = without(source, splits, bad)
            whole = {seed: make_task(config, source, seed) for seed in seeds}
        else:
            tasks = narrow
    chosen = [config.methods[name] for name in methods]
    parts = {
        (kind, seed, dataset.fingerprint): SplitPart(
            dataset, images, kind, views_of(dataset.split, config.data.augmented_views)
        )
        for kind in dict.fromkeys(kind_of(method) for method in chosen)
        if kind is not None
        for seed, task in tasks.items()
        for dataset, images in _used(task)
    }
    found = token_features(
        backbone.image,
        list(parts.values()),
        directory,
        half=config.data.token_precision == "float16",
        workers=workers,
        progress=reporter.progress,
        notice=reporter.notice,
    )
    tokens = dict(zip(parts, found, strict=True))
    # Processes share the cores of a machine; one process keeps an accelerator busy.
    count = min(workers, config.task.clients) if config.backbone.device == "cpu" else 1
    with Workers(backbone.towers([what for method in chosen for what in method.reads]), count) as pool:
        yield RunSetup(config, backbone, source, tasks, features, tokens, pool, execution)


def checked(
    config: ExperimentConfig, methods: Sequence[str], seeds: Sequence[int]
) -> tuple[Source, dict[int, Task], Backbone]:
    """The data, each seed's task and the frozen CLIP, where methods and config fit them; else a FedPGPError."""
    source, tasks, backbone = _loaded(config, seeds)
    _check_methods(config, methods, backbone, tasks[seeds[0]])
    return source, tasks, backbone


def _loaded(config: ExperimentConfig, seeds: Sequence[int]) -> tuple[Source, dict[int, Task], Backbone]:
    # Without the test split nothing can touch a test image while settings are chosen.
    splits = SPLITS if config.task.evaluate_on == "test" else ("train", "validation")
    source = load_source(config.data, splits)
    source = with_targets(config, source)
    tasks = {seed: make_task(config, source, seed) for seed in seeds}
    backbone = load_backbone(config.backbone.checkpoint, config.backbone.precision, config.backbone.device)
    return source, tasks, backbone


def _check_methods(config: ExperimentConfig, methods: Sequence[str], backbone: Backbone, task: Task) -> None:
    for name in methods:
        with own_errors(config.methods[name]):
            _check_method(config, name, backbone, task)


def _used(task: Task) -> list[tuple[ImageDataset, NDArray[np.int64]]]:
    """The images of every split that clients hold or that are tested on."""
    used = [(task.train, client.train) for client in (*task.clients, *task.new_clients)]
    used += [(test.dataset, test.images) for test in evaluation_sets(task).values()]
    splits = {dataset.fingerprint: dataset for dataset, _ in used}
    return [
        (dataset, np.unique(np.concatenate([images for other, images in used if other.fingerprint == key])))
        for key, dataset in splits.items()
    ]


def with_targets(config: ExperimentConfig, source: Source) -> Source:
    """The source with the test splits of what a task is tested on beside it, where its test split was read."""
    found: dict[str, ImageDataset] = {}
    for name in config.task.targets if source.test is not None else ():
        target = load_target(replace(config.data, source=name, layout="auto", names=""))
        found[target.name if target.name not in found else f"{target.name} ({name})"] = target
    return replace(source, targets=found)


def make_task(config: ExperimentConfig, source: Source, seed: int) -> Task:
    """The task that a config describes; raises ConfigError for a field that another protocol or partition has."""
    task = config.task
    if task.partition == OWN:
        if config.federation.engine != "deployment":
            raise ConfigError(
                f"task.partition must be another than {OWN} where all images are in one place, got {OWN!r}: natural"
                " takes a column that says whose an image is"
            )
        return own_task(config.data, task, source, seed)
    of_partition = {"classes_per_client", "class_division"}
    if task.partition != CLASSES:
        of_partition = set(signature(PARTITIONS[task.partition]).parameters) - {"pool"}
    of_all = {"protocol", "partition", "clients", "new_clients", "shots", "evaluate_on"}
    of_all.add("held_out" if task.protocol == "leave-one-domain-out" else "domain_per_client")
    if task.protocol == "cross-data-set":
        of_all.add("targets")
    fields = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    for name, value in fields.items():
        if name not in of_partition | of_all and value != getattr(TaskConfig(), name):
            raise ConfigError(
                f"task.{name} must be left out with the protocol {task.protocol} and the partition {task.partition},"
                f" which have no use for it, got {value!r}"
            )
    return PROTOCOLS[task.protocol](source, task, seed)


def _check_method(config: ExperimentConfig, name: str, backbone: Backbone, task: Task) -> None:
    """Raises ConfigError where a method does not fit the aggregator, the checkpoint or the class names."""
    method, aggregator = config.methods[name], config.aggregator
    own = method.own_aggregator(config.federation.rounds)
    if own is not None and aggregator != FedAvg():
        raise ConfigError(
            f"federation.aggregator must be {DEFAULT_AGGREGATOR} as it is for {name}, whose server is its own"
            f" ({own.name}), got {aggregator}: leave out {name}, or the aggregator"
        )
    check_privacy(config.privacy, config.federation.engine, name, aggregator, own is not None)
    if method.swaps and config.federation.optimizer_state == "keep":
        raise ConfigError(
            f"federation.optimizer_state must be reset for {name}, whose prompts change places after training, got"
            f" keep: leave it out, or leave out {name}"
        )
    if method.pooled and config.federation.engine != "local":
        raise ConfigError(
            f"federation.engine must be local for {name}, which trains on the images of all clients together, got"
            f" {config.federation.engine}: leave out {name}, or the engine"
        )
    if method.pooled and aggregator.controls:
        raise ConfigError(
            f"federation.aggregator must be one that clients need not know of for {name}, which has no clients in"
            f" training, got {aggregator.name}: leave out {name}, or take fedavg"
        )
    if {"patches", "image tower"} & {*method.reads} and not backbone.image.patches:
        raise ConfigError(
            f"{name} reads patches of images, and the image tower of {config.backbone.checkpoint} has none: choose a"
            " checkpoint with a vision transformer, such as openai/clip-vit-base-patch16, or leave the method out"
        )
    if aggregator.controls and method.swaps:
        raise ConfigError(
            f"federation.aggregator must be one that does not turn gradients for {name}, which sends others of its"
            f" parameters than it received, got {aggregator.name}: leave out {name}, or take fedavg"
        )
    shared = method.init_shared(task, backbone, torch.Generator())
    if "image tower" in method.reads and not 0 <= method.first_layer < backbone.image.layers:
        raise ConfigError(
            f"{name} must begin at a layer of the image tower, 0 to {backbone.image.layers - 1}, got first_layer"
            f" {method.first_layer}: change the settings of [{name}]"
        )
    server = (own or aggregator).begin(shared, len(task.clients))
    received = (own or aggregator).download(server, 0).shared
    frozen = frozen_of(method, task, backbone)
    longest = backbone.class_tokens([*task.class_names, *method.extra_names], method.tail).ids.shape[1]
    room = backbone.text.longest - 1 - longest
    for client in task.clients:
        private = method.init_private(task, backbone, torch.Generator(), client.id)
        params = Params(shared, private, received)
        some = torch.zeros(1, backbone.image.width).to(backbone.logit_scale)
        for context in [*method.prompts(params, frozen), *method.conditional_prompts(params, some, frozen)]:
            prompt = Prompt.of(context)
            if prompt.vectors.shape[-2] > room:
                raise ConfigError(
                    f"a context of {name} must have at most {room} vectors for this checkpoint and these class names,"
                    f" got {prompt.vectors.shape[-2]}: change the settings of [{name}], such as context_length"
                )
            if prompt.layers > len(backbone.text.layers):
                raise _too_deep(name, prompt.layers, "text", len(backbone.text.layers))
        for prompt in method.visual_prompts(params):
            if prompt.layers > backbone.image.layers:
                raise _too_deep(name, prompt.layers, "image", backbone.image.layers)


def _too_deep(name: str, layers: int, tower: str, has: int) -> ConfigError:
    return ConfigError(
        f"the prompts of {name} must reach into at most {has} layers, which is what the checkpoint's {tower} tower has,"
        f" got {layers}: change the settings of [{name}], such as depth"
    )


def aggregator_of(config: ExperimentConfig, name: str) -> Aggregator:
    """That of a run: the method's own, the config's, or the private mean."""
    chosen = aggregator_for(config.methods[name], config.federation.rounds, config.aggregator)
    return protected(config.privacy, chosen)
