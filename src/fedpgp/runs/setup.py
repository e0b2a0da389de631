"""Data that all runs of an experiment share, prepared after all checks that need no training."""

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
from fedpgp.federation.protection import check_protection
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
    """Return the specification that server and clients of a run share.

    The method, differential privacy or the config determines the aggregator. Only the class names and the
    templates of the task are read, so that a server without images can use this function, too.

    Parameters
    ----------
    config
        Configuration of the experiment.
    method, seed
        The run.
    task
        The task.
    backbone
        The dual encoder.

    Raises
    ------
    ConfigError
        A setting against hostile clients cannot work.
    """
    aggregator = protected(config.privacy, config.aggregator)
    check_protection(config.federation, config.privacy, aggregator, len(task.clients))
    return RunSpec(config.methods[method], task, backbone, config.federation, seed, aggregator)


@dataclass(frozen=True)
class OpenRun:
    """The parts of one run, for every engine, for joining and for serving. See `open_run` and `RunSetup.open`.

    Attributes
    ----------
    setup
        Data that all runs of the experiment share.
    name, seed
        Method and seed of the run.
    """

    setup: "RunSetup"
    name: str
    seed: int

    @property
    def config(self) -> ExperimentConfig:
        """Configuration of the experiment."""
        return self.setup.config

    @property
    def task(self) -> Task:
        """The task with the seed of the run."""
        return self.setup.tasks[self.seed]

    @property
    def backbone(self) -> Backbone:
        """The dual encoder."""
        return self.setup.backbone

    @property
    def workers(self) -> Workers[Towers]:
        """The worker processes."""
        return self.setup.workers

    @cached_property
    def method(self) -> Method:
        """The method with its hyperparameters."""
        return self.config.methods[self.name]

    @cached_property
    def data(self) -> Data:
        """The task with the image features that the method reads."""
        return self.setup.data(self.method, self.seed)

    @cached_property
    def spec(self) -> RunSpec:
        """The specification that server and clients share."""
        return run_spec(self.config, self.name, self.seed, self.task, self.backbone)

    @cached_property
    def runner(self) -> ClientRunner:
        """The runner for all clients of the run."""
        return ClientRunner(self.spec, self.data)

    def runner_of(self, client: Client) -> ClientRunner:
        """Return the runner for a single client, which keeps its number."""
        return ClientRunner(self.spec, replace(self.data, task=replace(self.task, clients=(client,))))

    def origin(self) -> dict[str, Any]:
        """Return the identity of the run, see `fedpgp.results.provenance.origin`."""
        return origin(self.config, self.name, self.seed, self.backbone, self.setup.source)


@dataclass(frozen=True)
class RunSetup:
    """Data that all runs of an experiment share.

    Attributes
    ----------
    config
        Configuration of the experiment.
    backbone
        The frozen dual encoder.
    source
        The dataset.
    tasks
        Seed -> task.
    features
        Fingerprint of a split -> [n, D], or [n, K, D] for a training split with K > 1 views.
    tokens
        Kind, seed and fingerprint of a split -> what methods read of the images in addition to the features.
    workers
        The worker processes.
    execution
        Options of the execution.
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
        """Return the parts of one run."""
        return OpenRun(self, method, seed)

    def data(self, method: Method, seed: int) -> Data:
        """Return the task with the image features that a method reads."""
        task, kind = self.tasks[seed], kind_of(method)

        def images(dataset: ImageDataset) -> ImageFeatures:
            if kind is None:
                return ImageFeatures(self.features[dataset.fingerprint])
            kept, places = self.tokens[kind, seed, dataset.fingerprint]
            return ImageFeatures(self.features[dataset.fingerprint], kept, places)

        return Data.of(task, images)


@contextmanager
def open_run(config: ExperimentConfig, method: str, seed: int, execution: Execution) -> Iterator[OpenRun]:
    """Yield the parts of one run, after all checks that need no training; see `open_setup`."""
    with open_setup(config, [method], [seed], execution) as setup:
        yield setup.open(method, seed)


@contextmanager
def open_setup(
    config: ExperimentConfig,
    methods: Sequence[str],
    seeds: Sequence[int],
    execution: Execution,
) -> Iterator[RunSetup]:
    """Check everything that can be checked without training, and yield the data that all runs share.

    Parameters
    ----------
    config
        Configuration of the experiment.
    methods
        Names of the methods.
    seeds
        Seeds of the runs.
    execution
        Options of the execution.

    Raises
    ------
    FedPGPError
        A method, the config or the data do not fit.
    """
    workers, reporter = execution.workers, execution.listener
    workers = whole_number(workers, "workers", 1, "Leave out --workers to use every core, or use --workers 1")
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
            f"The backbone is {config.backbone.checkpoint}, which was trained on icons only. For photographs, use"
            f" --backbone {PHOTOCLIP}, which is embedded, too, or a CLIP such as openai/clip-vit-base-patch16."
        )
    if config.backbone.checkpoint == PHOTOCLIP:
        reporter.notice(
            f"The backbone is {PHOTOCLIP}, a small one for objects, animals, plants and food. A CLIP such as"
            " --backbone openai/clip-vit-base-patch16 is more accurate, also recognizes scenes, textures, people and"
            " actions, and works with the methods that change an image tower."
        )
    if config.backbone.precision == "bf16" and (speed := bfloat16_speed(config.backbone.device)) < 1:
        reporter.notice(
            f"bf16 is {1 / speed:.1f} times slower than float32 on this processor. Use --precision float32 instead."
        )
    source, tasks, features = encode_images(config, execution, backbone, source, tasks)
    chosen = [config.methods[name] for name in methods]
    tokens = encode_tokens(config, execution, backbone, tasks, chosen)
    # On CPUs, processes share the cores; on an accelerator, one process is enough.
    count = min(workers, config.task.clients) if config.backbone.device == "cpu" else 1
    with Workers(backbone.towers([what for method in chosen for what in method.reads]), count) as pool:
        yield RunSetup(config, backbone, source, tasks, features, tokens, pool, execution)


def checked(
    config: ExperimentConfig, methods: Sequence[str], seeds: Sequence[int]
) -> tuple[Source, dict[int, Task], Backbone]:
    """Check that methods and config fit, and return the dataset, the task of each seed and the frozen dual encoder.

    Parameters
    ----------
    config
        Configuration of the experiment.
    methods
        Names of the methods.
    seeds
        Seeds of the runs.

    Raises
    ------
    FedPGPError
        A method, the config or the data do not fit.
    """
    source, tasks, backbone = _loaded(config, seeds)
    check_methods(config, methods, backbone, tasks[seeds[0]])
    return source, tasks, backbone


def _loaded(config: ExperimentConfig, seeds: Sequence[int]) -> tuple[Source, dict[int, Task], Backbone]:
    source, tasks = load_tasks(config, seeds)
    return source, tasks, configured_backbone(config.backbone)
