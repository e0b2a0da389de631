"""Puts the pieces together: config -> results."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fedpgp.backbone import Backbone, load_backbone
from fedpgp.config import ExperimentConfig, load_config
from fedpgp.data.cache import cache_directory, check_cache
from fedpgp.data.features import source_features
from fedpgp.data.sources import Source, load_source
from fedpgp.data.tasks import Task, base_to_novel
from fedpgp.errors import ConfigError, Interrupted
from fedpgp.evaluate import evaluation_sets
from fedpgp.federation.client import LocalTraining
from fedpgp.federation.rounds import Data, Round, Schedule, federate
from fedpgp.methods import METHODS, Params, find_method
from fedpgp.record import figures, outcomes, prompts, provenance
from fedpgp.report.comparison import write_comparison
from fedpgp.results import Comparison, Run, check_output, new_directory, write_run
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


def run(
    method: str,
    seed: int = 0,
    *,
    config: ExperimentConfig | Path | str | None = None,
    changes: Sequence[str] = (),
    output: Path | str | None = None,
    force: bool = False,
    workers: int = 1,
    cache: Path | str | None = None,
    skip_bad_images: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Runs one method with one seed.

    Args:
        method: a name that `fedpgp methods` lists.
        config: an ExperimentConfig or a TOML file; None takes the recipe of the embedded benchmark.
        changes: "section.key=value" on top of the file.
        output: the run directory to write; None writes nothing. force: replace it if it exists.
        workers: processes; any number gives the same result. More than one needs `if __name__ == "__main__":`.
        cache: directory of image features; None takes the user's cache directory.
        skip_bad_images: go on without the images that do not decode, which are told to the reporter.

    Raises:
        FedPGPError: before any work where the method, the config, the data or the output do not fit.
        Interrupted: a KeyboardInterrupt; the rounds that were finished have been written to `output`.

    >>> run("fedpgp", seed=0, changes=["fedpgp.mu=1.0"]).results["final"]["local"]  # doctest: +SKIP
    """
    find_method(method)
    _check_seed(seed)
    settings = _settings(config, changes)
    directory = None if output is None else Path(output)
    if directory is not None:
        check_output(directory, force)
    with _laboratory(settings, [method], [seed], workers, cache, skip_bad_images, reporter) as laboratory:
        result = _run(laboratory, method, seed)
    if directory is not None:
        result.save(directory, force)
    if not result.finished:
        raise Interrupted(directory)
    return result


def compare(
    methods: Sequence[str] | str | None = None,
    seeds: int | Sequence[int] = 1,
    *,
    config: ExperimentConfig | Path | str | None = None,
    changes: Sequence[str] = (),
    output: Path | str | None = None,
    force: bool = False,
    workers: int = 1,
    cache: Path | str | None = None,
    skip_bad_images: bool = False,
    reporter: Reporter | None = None,
) -> Comparison:
    """Runs several methods on the same tasks: the same clients, shots and order of the images for equal seeds.

    methods: None takes all. seeds: a number n means 0 … n−1. The rest as in `run`. After Ctrl-C, or an error in the
    middle, what was finished is written to `output` before the exception goes on.
    """
    names = [methods] if isinstance(methods, str) else list(dict.fromkeys(METHODS if methods is None else methods))
    if not names:
        raise ConfigError(f"methods must name at least one, got none; known: {', '.join(METHODS)}")
    for name in names:
        find_method(name)
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(dict.fromkeys(seeds))
    if not chosen:
        raise ConfigError(f"seeds must be at least 1, got {seeds}")
    for seed in chosen:
        _check_seed(seed)
    settings = _settings(config, changes)
    directory = None if output is None else Path(output)
    if directory is not None:
        check_output(directory, force)
    runs: list[Run] = []
    try:
        with _laboratory(settings, names, chosen, workers, cache, skip_bad_images, reporter) as laboratory:
            for seed in chosen:
                for name in names:
                    runs.append(_run(laboratory, name, seed))
                    if not runs[-1].finished:
                        raise KeyboardInterrupt
    except KeyboardInterrupt as interruption:
        raise Interrupted(directory if runs else None) from interruption
    finally:
        if directory is not None and runs:
            _write(Comparison(runs), directory, force)
    return Comparison(runs)


def _write(comparison: Comparison, output: Path, force: bool) -> None:
    with new_directory(output, force) as scratch:
        for result in comparison.runs:
            directory = scratch / result.method / f"seed-{result.seed}"
            directory.mkdir(parents=True)
            write_run(result, directory)
        write_comparison(comparison, scratch)


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ConfigError(f"seed must be 0 or more, got {seed}")


def _settings(config: ExperimentConfig | Path | str | None, changes: Sequence[str]) -> ExperimentConfig:
    if not isinstance(config, ExperimentConfig):
        return load_config(config, [changes] if isinstance(changes, str) else changes)
    if changes:
        raise ConfigError("changes go with a config file; make another ExperimentConfig instead")
    return config


@contextmanager
def _laboratory(
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
        raise ConfigError(f"workers must be 1 or more, got {workers}")
    directory = cache_directory(cache)
    check_cache(directory)
    source = load_source(config.data.source)
    tasks = {seed: _task(config, source, seed) for seed in seeds}
    first = tasks[seeds[0]]
    backbone = load_backbone(config.backbone.checkpoint, config.backbone.precision, config.backbone.device)
    for name in methods:
        _check_context(config, name, backbone, first)
    reporter = reporter or Silent()
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
        tasks = {seed: _task(config, source, seed) for seed in seeds}
    # Processes share the cores of a machine; one process keeps an accelerator busy.
    count = min(workers, config.task.clients) if config.backbone.device == "cpu" else 1
    with Workers(backbone.text, count) as pool:
        yield Laboratory(config, backbone, source, tasks, features, pool, reporter)


def _task(config: ExperimentConfig, source: Source, seed: int) -> Task:
    task = config.task
    return base_to_novel(
        source,
        clients=task.clients,
        classes_per_client=task.classes_per_client,
        shots=task.shots,
        seed=seed,
        evaluate_on=task.evaluate_on,
    )


def _check_context(config: ExperimentConfig, name: str, backbone: Backbone, task: Task) -> None:
    """Raises ConfigError where a method's context and the longest class name exceed what the text encoder reads."""
    method = config.methods[name]
    shared = method.init_shared(task, backbone, torch.Generator())
    private = method.init_private(task, backbone, torch.Generator())
    prompts = method.prompts(Params(shared, private))
    room = backbone.text.longest - 1 - backbone.class_tokens(task.class_names).ids.shape[1]
    if prompts.shape[1] > room:
        raise ConfigError(
            f"{name}.context_length must be at most {room} for this checkpoint and these class names,"
            f" got {prompts.shape[1]}"
        )


def _run(laboratory: Laboratory, name: str, seed: int) -> Run:
    """Runs one method; after Ctrl-C, the rounds that were finished, if any."""
    config, reporter, workers = laboratory.config, laboratory.reporter, laboratory.workers
    method, task = config.methods[name], laboratory.tasks[seed]
    features = laboratory.features
    tests = {
        key: features[test.dataset.split][torch.from_numpy(test.images)] for key, test in evaluation_sets(task).items()
    }
    settings = config.federation
    schedule = Schedule(
        rounds=settings.rounds,
        participation=settings.participation,
        everyone_first=settings.everyone_first,
        independent_private=settings.independent_private,
        training=LocalTraining(
            local_epochs=settings.local_epochs,
            batch_size=settings.batch_size,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        ),
    )
    label = f"{name}, seed {seed}"
    reporter.progress(label, 0, settings.rounds)
    started = time.perf_counter()
    records: list[Mapping[str, Any]] = []
    last: Round | None = None
    finished = False
    try:
        for state in federate(
            method, Data(task, features["train"], tests), laboratory.backbone, schedule, seed, workers
        ):
            last = state
            records.append(state.record)
            shown = ", ".join(f"{key.capitalize()} {state.record[key]:.1f}" for key in ("local", "base", "novel"))
            reporter.progress(label, len(records), settings.rounds if state.number else 1, shown)
        finished = True
    except KeyboardInterrupt:
        pass
    if last is None:
        raise KeyboardInterrupt
    seconds = time.perf_counter() - started
    return Run(
        config=config,
        results=figures(task, name, seed, last, records, finished, seconds),
        rounds=records,
        prompts=prompts(last),
        outcomes=outcomes(task, last),
        provenance=provenance(config, name, seed, laboratory.backbone, laboratory.source),
    )
