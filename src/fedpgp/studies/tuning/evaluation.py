"""Trials are evaluated one by one in this process, or in others."""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from pydantic import ValidationError

from fedpgp.config import ExperimentConfig
from fedpgp.errors import ConfigError, TrainingError
from fedpgp.federation.rounds import federate
from fedpgp.federation.state import State
from fedpgp.runs.execution import Execution
from fedpgp.runs.setup import OpenRun, open_setup
from fedpgp.runtime.code_files import loaded_files
from fedpgp.runtime.processes import ENDED, context
from fedpgp.runtime.workers import end_pool, start_process
from fedpgp.studies.tuning.space import Value
from fedpgp.studies.tuning.trials import FIGURES, Objective, Trial


@dataclass(frozen=True)
class Job:
    """A trial to be evaluated, wherever."""

    config: ExperimentConfig
    method: str
    number: int
    settings: Mapping[str, Value]
    seeds: Sequence[int]
    objective: Objective
    execution: Execution


def evaluate(job: Job) -> Trial:
    """Trains with every seed; a setting with which that cannot be done has failed, and says why."""
    started, figures, reason = time.perf_counter(), {}, ""
    try:
        method = replace(job.config.methods[job.method], **job.settings)
        config = replace(job.config, methods={**job.config.methods, job.method: method})
        with open_setup(config, [job.method], job.seeds, job.execution) as setup:
            last = [_last_round(setup.open(job.method, seed)) for seed in job.seeds]
        figures = {name: fmean(record[name] for record in last) for name in FIGURES}
    except (TrainingError, ConfigError, ValidationError) as error:
        reason = " ".join(str(error).split())
    value = figures.get(job.objective)
    return Trial(job.method, job.number, job.settings, value, figures, round(time.perf_counter() - started, 3), reason)


def _last_round(opened: OpenRun) -> Mapping[str, Any]:
    with State.create() as state:
        *_, last = federate(opened.runner, opened.workers, state)
    return last


class _Here:
    """Evaluates one job after the other in this process."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        self._jobs.append(job)

    def next(self) -> Trial:
        return evaluate(self._jobs.popleft())


class _Processes:
    """Evaluates many jobs at once, each in one thread of a process."""

    def __init__(self, executor: ProcessPoolExecutor):
        self._executor = executor
        self._waiting: set[Future[Trial]] = set()

    def submit(self, job: Job) -> None:
        self._waiting.add(self._executor.submit(evaluate, job))

    def next(self) -> Trial:
        finished = next(iter(wait(self._waiting, return_when=FIRST_COMPLETED).done))
        self._waiting.remove(finished)
        try:
            return finished.result()
        except BrokenProcessPool as error:
            raise TrainingError(f"a worker process {ENDED}") from error


@contextmanager
def pool_of(workers: int) -> Iterator[_Here | _Processes]:
    """Something to submit jobs to, and to ask for the next trial that is done."""
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
