"""The search itself: trials in batches, in any number of processes, to the same result."""

import json
import os
import time
import tomllib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import optuna
import torch
from filelock import FileLock, Timeout
from optuna.trial import TrialState
from pydantic import ValidationError

from fedpgp import __version__
from fedpgp.config import ExperimentConfig
from fedpgp.directory import run_directory, writing
from fedpgp.errors import ConfigError, DataError, InUseError, OutputError, TrainingError
from fedpgp.experiment import chosen_methods, chosen_seeds
from fedpgp.federation.rounds import federate
from fedpgp.federation.state import State
from fedpgp.files import write, write_json
from fedpgp.laboratory import Laboratory, Reporter, laboratory
from fedpgp.methods import METHODS, Method
from fedpgp.metrics import own_images
from fedpgp.plugins import fingerprint, installed, loaded_files
from fedpgp.processes import ENDED, context
from fedpgp.randomness import generator
from fedpgp.report.formats import to_csv
from fedpgp.tuning.space import Space, Value, describe, described_space, search_spaces
from fedpgp.workers import end_pool, start_process

Objective = Literal["cm", "hm", "local", "base", "novel"]
OBJECTIVES: tuple[Objective, ...] = ("cm", "hm", "local", "base", "novel")
FIGURES = ("local", "base", "novel", "hm", "cm")
BATCH = 4  # trials of a method that are proposed together, whatever the number of processes
DRAWN = 8  # trials of a method before proposals learn from those that are done
MINIMUM = 10  # validation images of every client's own classes, below which a choice would be luck
PLAN, TRIALS, CONFIG = "plan.json", "trials.jsonl", "config.toml"


@dataclass(frozen=True)
class Trial:
    """One setting of a method, and what it gave.

    number: 0 is the config as it stands. figures: means over the seeds, of the last round on validation images; value:
    the objective among them, None where the trial failed, with its reason.
    """

    method: str
    number: int
    settings: Mapping[str, Value]
    value: float | None
    figures: Mapping[str, float]
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class Tuning:
    """What a search found. config: the one that was given, with the best setting of each method."""

    trials: Sequence[Trial]
    config: ExperimentConfig
    objective: Objective

    @cached_property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(trial.method for trial in self.trials))

    def of(self, method: str) -> list[Trial]:
        return [trial for trial in self.trials if trial.method == method]

    def best(self, method: str) -> Trial | None:
        """The trial with the highest value, the first of equal ones; None where all of them failed."""
        return _best(self.of(method))

    def as_json(self) -> dict[str, Any]:
        """The one object that `--json` prints."""
        best = {method: self.best(method) for method in self.methods}
        return {
            "objective": self.objective,
            "best": {method: None if trial is None else asdict(trial) for method, trial in best.items()},
            "trials": [asdict(trial) for trial in self.trials],
        }


@dataclass(frozen=True)
class _Plan:
    """What is searched. config: as it was given; spaces: of each method."""

    config: ExperimentConfig
    spaces: Mapping[str, Space]
    trials: int
    seeds: Sequence[int]
    objective: Objective

    @property
    def methods(self) -> list[str]:
        return list(self.spaces)


@dataclass(frozen=True)
class _Job:
    """A trial to be evaluated, wherever."""

    config: ExperimentConfig
    method: str
    number: int
    settings: Mapping[str, Value]
    seeds: Sequence[int]
    objective: Objective
    cache: Path | str | None
    skip_bad_images: bool


def tune(
    methods: Sequence[str | Method] | str | Method = "all",
    *,
    trials: int = 16,
    seeds: int | Sequence[int] = 2,
    objective: Objective = "cm",
    config: ExperimentConfig | Path | str | None = None,
    changes: Sequence[str] = (),
    space: Path | str | None = None,
    search: Sequence[str] = (),
    output: Path | str,
    force: bool = False,
    workers: int = 1,
    cache: Path | str | None = None,
    skip_bad_images: bool = False,
    reporter: Reporter | None = None,
) -> Tuning:
    """Searches for the settings of each method with as many trials as of every other, and writes them as a config file.

    A trial trains a method within the base classes and is judged on validation images of base classes: the test split
    is not even read. The first is the config as it stands, so that the search never ends below it on validation.

    Args:
        methods: "all" takes every built-in one that has something to search.
        seeds: of every trial; its value is their mean.
        objective: cm, hm, local, base or novel, of the last round.
        space, search: what is searched, see `fedpgp.tuning.space.search_spaces`.
        output: a directory for plan.json, trials.jsonl, trials.csv and tuned.toml. After Ctrl-C, a kill or an error,
            `resume_tuning(output)` goes on.
        workers: processes; any number gives the same result.
        The rest as in `fedpgp.run`.

    Raises:
        FedPGPError: before any work where method, config, space, data or output do not fit.
    """
    if trials < 1:
        raise ConfigError(f"trials must be 1 or more, got {trials}")
    checked_objective(objective)
    names, settings = chosen_methods(methods, config, changes)
    spaces = search_spaces({name: settings.methods[name] for name in names}, space, search)
    empty = [name for name in names if not spaces[name]]
    if methods == "all":
        spaces = {name: spaces[name] for name in names if spaces[name]}
    elif empty:
        raise ConfigError(
            f"nothing is searched of {', '.join(empty)}: name a field with --search {empty[0]}.field=low..high, or"
            " leave it out"
        )
    plan = _Plan(settings, spaces, trials, chosen_seeds(seeds, "seeds"), objective)
    directory = Path(output)
    with _prepared(plan, workers, cache, skip_bad_images, reporter) as lab:
        with run_directory(directory, force) as scratch:
            write(scratch / CONFIG, settings.to_toml().encode())
            write_json(scratch / PLAN, _record(plan, lab))
            write(scratch / TRIALS, b"")
        heard = lab.reporter
    return _search(plan, directory, [], workers, cache, skip_bad_images, heard)


def resume_tuning(
    directory: Path | str,
    *,
    trials: int | None = None,
    methods: Sequence[str | Method] = (),
    workers: int = 1,
    cache: Path | str | None = None,
    skip_bad_images: bool = False,
    reporter: Reporter | None = None,
) -> Tuning:
    """Goes on with a search that was stopped, to the same result as if it never was, or adds trials to a finished one.

    trials: of each method; None takes what was planned. methods: those that are neither ours nor of an installed
    package, as they were given before. Raises OutputError where the directory holds no search, or one of another
    version of fedpgp or on another task.
    """
    directory = Path(directory)
    record = _read_plan(directory)
    ours = [name for name in record["spaces"] if name in {*METHODS, *installed()}]
    _, settings = chosen_methods([*ours, *methods], directory / CONFIG, ())
    unknown = record["spaces"].keys() - settings.methods.keys()
    if unknown:
        raise OutputError(
            f"{directory} was begun with {', '.join(sorted(unknown))}, neither ours nor of an installed package: name"
            " it as it was then, with --methods path/to/file.py:Name"
        )
    wanted = record["trials"] if trials is None else trials
    plan = _Plan(
        settings,
        {
            name: described_space(settings.methods[name], fields, str(directory / PLAN))
            for name, fields in record["spaces"].items()
        },
        wanted,
        record["seeds"],
        record["objective"],
    )
    if wanted < record["trials"]:
        raise ConfigError(f"trials must be at least {record['trials']}, as many as were planned, got {wanted}")
    with _prepared(plan, workers, cache, skip_bad_images, reporter) as lab:
        now = _record(plan, lab)
        for what, before in record.items():
            if what != "trials" and now.get(what) != before:
                raise OutputError(
                    f"{directory} holds a search with {what} {_short(before)}, here it is {_short(now.get(what))}:"
                    " go on with what it was begun with, or search again into another directory"
                )
        write_json(directory / PLAN, now)
        heard = lab.reporter
    return _search(plan, directory, _known(directory), workers, cache, skip_bad_images, heard)


def checked_objective(name: str) -> Objective:
    """Raises ConfigError for one that is unknown."""
    for known in OBJECTIVES:
        if name == known:
            return known
    raise ConfigError(f"objective must be one of {', '.join(OBJECTIVES)}, got {name!r}")


# --------------------------------------------------------------------------------------------------------------- plan


@contextmanager
def _prepared(
    plan: _Plan, workers: int, cache: Path | str | None, skip_bad_images: bool, reporter: Reporter | None
) -> Iterator[Laboratory]:
    """Everything is checked, and all images are encoded, before the first trial."""
    if plan.config.task.protocol != "base-to-novel":
        raise ConfigError(
            f"task.protocol must be base-to-novel to choose settings, got {plan.config.task.protocol}: tune there, and"
            " take the settings"
        )
    on_validation = _validation(plan.config)
    with laboratory(on_validation, plan.methods, plan.seeds, workers, cache, skip_bad_images, reporter) as lab:
        for seed, task in lab.tasks.items():
            for client, own in zip(task.clients, own_images(task, task.clients, "base"), strict=True):
                if own.sum() < MINIMUM:
                    names = ", ".join(task.class_names[label] for label in client.classes)
                    raise DataError(
                        f"client {client.id} (seed {seed}; {names}) has {own.sum()} validation images, and a choice"
                        f" needs at least {MINIMUM}: give the data set a larger validation split, or have fewer clients"
                    )
        yield lab


def _validation(config: ExperimentConfig) -> ExperimentConfig:
    """The same task within the base classes, on validation images; half of the clients, so that each has as many."""
    return replace(
        config,
        task=replace(config.task, evaluate_on="validation", clients=max(1, config.task.clients // 2)),
        federation=replace(config.federation, eval_every=config.federation.rounds, path_points=1),
    )


def _record(plan: _Plan, lab: Laboratory) -> dict[str, Any]:
    """What must be the same when a search goes on, in JSON's types."""
    return {
        "fedpgp": __version__,
        "objective": plan.objective,
        "seeds": list(plan.seeds),
        "trials": plan.trials,
        "spaces": {name: describe(space) for name, space in plan.spaces.items()},
        "code": {name: fingerprint(plan.config.methods[name]) for name in plan.methods},
        "config": tomllib.loads(plan.config.to_toml()),
        "checkpoint": lab.backbone.fingerprint,
        "images": {"train": lab.source.train.fingerprint, "validation": lab.source.validation.fingerprint},
    }


def _read_plan(directory: Path) -> dict[str, Any]:
    path = directory / PLAN
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not {"fedpgp", "spaces", "trials", "seeds", "objective"} <= record.keys():
            raise ValueError("it is the plan of something else")
    except FileNotFoundError as error:
        raise OutputError(f"{directory} holds no search; name a directory that fedpgp tune wrote") from error
    except (OSError, ValueError, AttributeError) as error:
        raise OutputError(f"{path} is no plan of a search: {error}; search again into another directory") from error
    if record["fedpgp"] != __version__:
        raise OutputError(
            f"{directory} holds a search of fedpgp {record['fedpgp']}, here is {__version__}: go on with that version,"
            " or search again into another directory"
        )
    return record


def _short(content: Any) -> str:
    text = str(content)
    return text if len(text) < 60 else text[:57] + "…"


def _known(directory: Path) -> list[Trial]:
    """The trials that are done. What a kill left of a last line is cut off, so that the next begins one of its own."""
    path = directory / TRIALS
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write(path, whole)
    try:
        return [Trial(**json.loads(line)) for line in whole.splitlines()]
    except (ValueError, TypeError) as error:
        raise OutputError(f"{path} is damaged: {error}; search again into another directory") from error


# ------------------------------------------------------------------------------------------------------------- search


def _search(
    plan: _Plan,
    directory: Path,
    known: Sequence[Trial],
    workers: int,
    cache: Path | str | None,
    skip_bad_images: bool,
    reporter: Reporter,
) -> Tuning:
    """Proposes and evaluates what is not known, and writes what came of it."""
    on_validation, total, count = _validation(plan.config), plan.trials * len(plan.methods), 0
    searches = {name: _Search(plan, name, [trial for trial in known if trial.method == name]) for name in plan.methods}

    def hand_out(search: _Search) -> None:
        for number, settings in search.open():
            pool.submit(
                _Job(on_validation, search.name, number, settings, plan.seeds, plan.objective, cache, skip_bad_images)
            )
            search.out += 1

    with _locked(directory), _pool(workers) as pool, (directory / TRIALS).open("a", encoding="utf-8") as file:
        for search in searches.values():
            hand_out(search)
        count = sum(len(search.done) for search in searches.values())
        while any(search.out for search in searches.values()):
            trial = pool.next()
            with writing(directory, f"free space, then go on with: fedpgp tune --resume {directory}"):
                file.write(json.dumps(asdict(trial), allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            count += 1
            reporter.progress("trials", count, total, in_words(trial, plan.objective))
            search = searches[trial.method]
            search.done[trial.number] = trial
            search.out -= 1
            if not search.out:
                hand_out(search)
    trials = [search.done[number] for search in searches.values() for number in range(plan.trials)]
    found = Tuning(trials, _tuned(plan, trials), plan.objective)
    with writing(directory, f"free space, then go on with: fedpgp tune --resume {directory}"):
        write(directory / "trials.csv", _csv(trials).encode())
        write(directory / "tuned.toml", found.config.to_toml().encode())
    return found


class _Search:
    """One method: what is proposed next depends on the trials before the batch alone.

    So it is the same after a kill, and for any number of processes. done: by number; out: how many are evaluated now.
    """

    def __init__(self, plan: _Plan, name: str, known: Sequence[Trial]):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.name, self.out = name, 0
        self.done = {trial.number: trial for trial in known}
        self._method, self._space, self._count = plan.config.methods[name], dict(plan.spaces[name]), plan.trials
        self._study = optuna.create_study(direction="maximize")
        self._asked: dict[int, optuna.Trial] = {}
        self._start = 0

    def open(self) -> list[tuple[int, dict[str, Value]]]:
        """Numbers and settings of the next batch that has trials to evaluate; none at the end."""
        while self._start < self._count:
            numbers = range(self._start, min(self._start + BATCH, self._count))
            batch = [(number, self._propose(number)) for number in numbers]
            for number, settings in batch:
                if number in self.done and self.done[number].settings != settings:
                    raise OutputError(
                        f"{TRIALS}: trial {number} of {self.name} has other settings than this search proposes: it was"
                        " changed, or made with another version of optuna; search again into another directory"
                    )
            missing = [(number, settings) for number, settings in batch if number not in self.done]
            if missing:
                return missing
            for number in numbers:
                self._tell(number)
            self._start += BATCH
        return []

    def _propose(self, number: int) -> dict[str, Value]:
        if number == 0:
            return {field: getattr(self._method, field) for field in self._space}
        if number not in self._asked:
            seed = torch.randint(2**31, (1,), generator=generator(0, f"tuning {self.name}", number)).item()
            self._study.sampler = optuna.samplers.TPESampler(seed=int(seed), n_startup_trials=DRAWN)
            self._asked[number] = self._study.ask(self._space)
        return dict(self._asked[number].params)

    def _tell(self, number: int) -> None:
        """The config as it stands is not told: it may lie outside of the ranges."""
        if number in self._asked:
            value = self.done[number].value
            self._study.tell(self._asked[number], value, None if value is not None else TrialState.FAIL)


def _evaluate(job: _Job) -> Trial:
    """Trains with every seed; a setting with which that cannot be done has failed, and says why."""
    started, figures, reason = time.perf_counter(), {}, ""
    try:
        method = replace(job.config.methods[job.method], **job.settings)
        config = replace(job.config, methods={**job.config.methods, job.method: method})
        with laboratory(config, [job.method], job.seeds, 1, job.cache, job.skip_bad_images, None) as lab:
            last = [_last_round(lab, method, seed) for seed in job.seeds]
        figures = {name: fmean(record[name] for record in last) for name in FIGURES}
    except (TrainingError, ConfigError, ValidationError) as error:
        reason = " ".join(str(error).split())
    value = figures.get(job.objective)
    return Trial(job.method, job.number, job.settings, value, figures, round(time.perf_counter() - started, 3), reason)


def _last_round(lab: Laboratory, method: Method, seed: int) -> Mapping[str, Any]:
    with State.create() as state:
        *_, last = federate(
            method,
            lab.data(method, seed),
            lab.backbone,
            lab.config.federation,
            seed,
            lab.workers,
            state,
            lab.config.aggregator,
        )
    return last


class _Here:
    """Evaluates one job after the other in this process."""

    def __init__(self) -> None:
        self._jobs: deque[_Job] = deque()

    def submit(self, job: _Job) -> None:
        self._jobs.append(job)

    def next(self) -> Trial:
        return _evaluate(self._jobs.popleft())


class _Processes:
    """Evaluates many jobs at once, each in one thread of a process."""

    def __init__(self, executor: ProcessPoolExecutor):
        self._executor = executor
        self._waiting: set[Future[Trial]] = set()

    def submit(self, job: _Job) -> None:
        self._waiting.add(self._executor.submit(_evaluate, job))

    def next(self) -> Trial:
        finished = next(iter(wait(self._waiting, return_when=FIRST_COMPLETED).done))
        self._waiting.remove(finished)
        try:
            return finished.result()
        except BrokenProcessPool as error:
            raise TrainingError(f"a worker process {ENDED}") from error


@contextmanager
def _pool(workers: int) -> Iterator[_Here | _Processes]:
    if workers == 1:
        yield _Here()
        return
    executor = ProcessPoolExecutor(workers, context(), initializer=start_process, initargs=(loaded_files(),))
    failed = True
    try:
        yield _Processes(executor)
        failed = False
    finally:
        end_pool(executor, failed)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    lock = FileLock(directory / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InUseError(f"{directory} is in use: another process works on this search; wait for it") from error
    try:
        yield
    finally:
        lock.release()


# ------------------------------------------------------------------------------------------------------------ results


def in_words(trial: Trial, objective: str) -> str:
    """A trial in a line."""
    settings = ", ".join(f"{field} {value_in_words(value)}" for field, value in trial.settings.items())
    found = "failed" if trial.value is None else f"{objective.upper()} {trial.value:.1f}"
    return f"{trial.method} {trial.number}: {found} with {settings}"


def value_in_words(value: Value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _best(trials: Sequence[Trial]) -> Trial | None:
    good = [trial for trial in trials if trial.value is not None]
    return max(good, key=lambda trial: trial.value or 0.0, default=None)  # the first of equal ones


def _tuned(plan: _Plan, trials: Sequence[Trial]) -> ExperimentConfig:
    """The config with the best setting of each method; one that failed throughout keeps its own."""
    methods, origins = dict(plan.config.methods), dict(plan.config.origins)
    for name in plan.methods:
        best = _best([trial for trial in trials if trial.method == name])
        if best is None or best.value is None:
            continue
        methods[name] = replace(methods[name], **best.settings)
        why = f"trial {best.number} of {plan.trials}: {plan.objective.upper()} {best.value:.1f} on validation"
        origins |= {f"{name}.{field}": why for field in best.settings}
    return replace(plan.config, methods=methods, origins=origins)


def _csv(trials: Sequence[Trial]) -> str:
    return to_csv(
        [
            {
                "method": trial.method,
                "trial": trial.number,
                "state": "failed" if trial.value is None else "complete",
                "value": trial.value,
                **{name: trial.figures.get(name) for name in FIGURES},
                "settings": json.dumps(trial.settings),
                "seconds": trial.seconds,
                "reason": trial.reason,
            }
            for trial in trials
        ]
    )
