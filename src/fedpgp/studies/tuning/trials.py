"""Trials, which are evaluated one by one in this process, or several at once in others."""

import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Literal, get_args

from pydantic import ValidationError

from fedpgp.config import ExperimentConfig
from fedpgp.errors import ConfigError, TrainingError
from fedpgp.federation.settings import PrivacyConfig
from fedpgp.runs.execution import ExecutionOptions
from fedpgp.runs.run import compare
from fedpgp.runtime.code_files import loaded_files
from fedpgp.runtime.processes import ENDED, context
from fedpgp.runtime.workers import end_pool, start_process
from fedpgp.studies.tuning.space import Value

Objective = Literal["local", "base", "novel", "hm", "cm"]
FIGURES: tuple[Objective, ...] = get_args(Objective)


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

    def describe(self, objective: Objective) -> str:
        """Return the trial in a line."""
        settings = ", ".join(f"{field} {value_text(value)}" for field, value in self.settings.items())
        result = "failed" if self.value is None else f"{objective.upper()} {self.value:.1f}"
        return f"{self.method} {self.number}: {result} with {settings}"


@dataclass(frozen=True)
class Job:
    """A trial to be evaluated, in any process. config: with the task on validation images."""

    config: ExperimentConfig
    method: str
    number: int
    settings: Mapping[str, Value]
    seeds: Sequence[int]
    objective: Objective
    options: ExecutionOptions


def evaluate(job: Job) -> Trial:
    """Train with every seed in this process; a setting with which that cannot be done has failed, and says why."""
    started, reason = time.perf_counter(), ""
    figures: dict[str, float] = {}
    try:
        method = replace(job.config.methods[job.method], **job.settings)
        federation = replace(job.config.federation, engine="local")
        config = replace(job.config, federation=federation, privacy=PrivacyConfig())
        means = compare(method, job.seeds, config=config, **job.options).mean(job.method)
        figures = {name: means[name][0] for name in FIGURES}
    except (TrainingError, ConfigError, ValidationError) as error:
        reason = " ".join(str(error).split())
    value = figures.get(job.objective)
    return Trial(job.method, job.number, job.settings, value, figures, round(time.perf_counter() - started, 3), reason)


def evaluated(queue: deque[Job], workers: int) -> Generator[Trial]:
    """Yield the trial of each job of a queue as it is done, until the queue is empty; it may be filled meanwhile.

    workers: processes with one thread each; 1 works in this process.
    """
    if workers == 1:
        while queue:
            yield evaluate(queue.popleft())
        return
    pool = ProcessPoolExecutor(workers, context(), initializer=start_process, initargs=(loaded_files(),))
    waiting: set[Future[Trial]] = set()
    failed = True
    try:
        while queue or waiting:
            while queue:
                waiting.add(pool.submit(evaluate, queue.popleft()))
            finished = next(iter(wait(waiting, return_when=FIRST_COMPLETED).done))
            waiting.remove(finished)
            yield finished.result()
        failed = False
    except BrokenProcessPool as error:
        raise TrainingError(f"a worker process {ENDED}") from error
    finally:
        end_pool(pool, failed)


def value_text(value: Value) -> str:
    """Return the value of a setting in few digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
