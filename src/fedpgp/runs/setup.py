"""What all runs of an experiment share, after everything is checked that can be checked without work."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from fedpgp.backbone import PHOTOCLIP, Backbone, Towers, bfloat16_speed, configured_backbone
from fedpgp.config import EMBEDDED_ORIGIN, ExperimentConfig
from fedpgp.data.cache import cache_directory, check_cache
from fedpgp.data.features import Tokens
from fedpgp.data.image_features import ImageFeatures
from fedpgp.data.sources import ImageDataset, Source, pictograms
from fedpgp.data.tasks import Client, Task
from fedpgp.evaluation.inference import kind_of
from fedpgp.federation.client_runner import ClientRunner, Data
from fedpgp.federation.optimization import remarks
from fedpgp.federation.privacy import protected
from fedpgp.federation.run_spec import RunSpec
from fedpgp.methods import Method
from fedpgp.results.provenance import origin
from fedpgp.runs.checks import check_methods
from fedpgp.runs.execution import Execution
from fedpgp.runs.features import encode_images, encode_tokens
from fedpgp.runs.published import fitted
from fedpgp.runs.tasks import load_tasks
from fedpgp.runtime.processes import warm_up
from fedpgp.runtime.validation import flag, whole_number
from fedpgp.runtime.workers import Workers


def run_spec(config: ExperimentConfig, method: str, seed: int, task: Task, backbone: Backbone) -> RunSpec:
    """What server and clients of a run agree on; the aggregator is the method's own, the private mean, or the config's.

    Of the task, class names and templates are read: a server in another place than the images has these, too.
    """
    aggregator = protected(config.privacy, config.aggregator)
    return RunSpec(config.methods[method], task, backbone, config.federation, seed, aggregator)


@dataclass(frozen=True)
class OpenRun:
    """The parts of one run, from which every engine, joining and serving start: see `open_run` and `RunSetup.open`."""

    setup: "RunSetup"
    name: str
    seed: int

    @property
    def config(self) -> ExperimentConfig:
        return self.setup.config

    @property
    def task(self) -> Task:
        return self.setup.tasks[self.seed]

    @property
    def backbone(self) -> Backbone:
        return self.setup.backbone

    @property
    def workers(self) -> Workers[Towers]:
        return self.setup.workers

    @cached_property
    def method(self) -> Method:
        return self.config.methods[self.name]

    @cached_property
    def data(self) -> Data:
        """The task with what the method reads of its images."""
        return self.setup.data(self.method, self.seed)

    @cached_property
    def spec(self) -> RunSpec:
        return run_spec(self.config, self.name, self.seed, self.task, self.backbone)

    @cached_property
    def runner(self) -> ClientRunner:
        """All clients of the run."""
        return ClientRunner(self.spec, self.data)

    def runner_of(self, client: Client) -> ClientRunner:
        """One client of the run alone, which goes by its number there."""
        return ClientRunner(self.spec, replace(self.data, task=replace(self.task, clients=(client,))))

    def origin(self) -> dict[str, Any]:
        """What the run is, see `fedpgp.results.provenance.origin`."""
        return origin(self.config, self.name, self.seed, self.backbone, self.setup.source)


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

    def open(self, method: str, seed: int) -> OpenRun:
        return OpenRun(self, method, seed)

    def data(self, method: Method, seed: int) -> Data:
        """A task with what a method reads of its images."""
        task, kind = self.tasks[seed], kind_of(method)

        def images(dataset: ImageDataset) -> ImageFeatures:
            if kind is None:
                return ImageFeatures(self.features[dataset.fingerprint])
            kept, places = self.tokens[kind, seed, dataset.fingerprint]
            return ImageFeatures(self.features[dataset.fingerprint], kept, places)

        return Data.of(task, images)


@contextmanager
def open_run(config: ExperimentConfig, method: str, seed: int, execution: Execution) -> Iterator[OpenRun]:
    """The parts of one run, after everything is checked that can be checked without work."""
    with open_setup(config, [method], [seed], execution) as setup:
        yield setup.open(method, seed)


@contextmanager
def open_setup(
    config: ExperimentConfig,
    methods: Sequence[str],
    seeds: Sequence[int],
    execution: Execution,
) -> Iterator[RunSetup]:
    """Prepares what all runs share, after checking everything that can be checked without work."""
    workers, reporter = execution.workers, execution.listener
    workers = whole_number(workers, "workers", 1, "; without --workers every core has one")
    flag(execution.skip_bad_images, "skip_bad_images")
    check_cache(cache_directory(execution.cache))
    if workers > 1:
        warm_up()
    source, tasks, backbone = _loaded(config, seeds)
    config, reduced = fitted(config, methods, backbone)
    check_methods(config, methods, backbone, tasks[seeds[0]])
    asked = {key for key, origin in config.origins.items() if origin == "--set"}
    notices = [text for name in methods for text in remarks(config.methods[name], config.federation, asked)]
    for text in [*reduced, *notices]:
        reporter.notice(text)
    if config.data.source != pictograms.NAME and config.origins.get("backbone.checkpoint") == EMBEDDED_ORIGIN:
        reporter.notice(
            f"the backbone is {config.backbone.checkpoint}, which knows only icons: for photographs use"
            f" --backbone {PHOTOCLIP}, which is embedded, too, or a CLIP such as openai/clip-vit-base-patch16"
        )
    if config.backbone.checkpoint == PHOTOCLIP:
        reporter.notice(
            f"the backbone is {PHOTOCLIP}, a small one that knows things, animals, plants and food: a CLIP such as"
            " --backbone openai/clip-vit-base-patch16 is more accurate, also knows scenes, textures, people and"
            " actions, and runs the methods that change an image tower"
        )
    if config.backbone.precision == "bf16" and (speed := bfloat16_speed(config.backbone.device)) < 1:
        reporter.notice(f"bf16 is {1 / speed:.1f} times slower than float32 on this processor: float32 is better here")
    source, tasks, features = encode_images(config, execution, backbone, source, tasks)
    chosen = [config.methods[name] for name in methods]
    tokens = encode_tokens(config, execution, backbone, tasks, chosen)
    # Processes share the cores of a machine; one process keeps an accelerator busy.
    count = min(workers, config.task.clients) if config.backbone.device == "cpu" else 1
    with Workers(backbone.towers([what for method in chosen for what in method.reads]), count) as pool:
        yield RunSetup(config, backbone, source, tasks, features, tokens, pool, execution)


def checked(
    config: ExperimentConfig, methods: Sequence[str], seeds: Sequence[int]
) -> tuple[Source, dict[int, Task], Backbone]:
    """The data, each seed's task and the frozen CLIP, where methods and config fit them; else a FedPGPError."""
    source, tasks, backbone = _loaded(config, seeds)
    check_methods(config, methods, backbone, tasks[seeds[0]])
    return source, tasks, backbone


def _loaded(config: ExperimentConfig, seeds: Sequence[int]) -> tuple[Source, dict[int, Task], Backbone]:
    source, tasks = load_tasks(config, seeds)
    return source, tasks, configured_backbone(config.backbone)
