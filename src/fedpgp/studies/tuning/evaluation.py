"""Evaluation of trials, one by one in this process or several at the same time in worker processes."""

import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

from pydantic import ValidationError

from fedpgp.errors import ConfigError, TrainingError
from fedpgp.federation.settings import PrivacyConfig
from fedpgp.runs.execution import ExecutionOptions
from fedpgp.runs.run import compare
from fedpgp.runtime.code_files import loaded_files
from fedpgp.runtime.processes import ENDED, context
from fedpgp.runtime.workers import end_pool, start_process
from fedpgp.studies.tuning.space import Value
from fedpgp.studies.tuning.tuning import FIGURES, Trial, Tuning


def evaluate(tuning: Tuning, name: str, number: int, settings: Mapping[str, Value], options: ExecutionOptions) -> Trial:
    """Train a method with every seed and return the trial. If training fails, the trial has the reason.

    Training uses this process, whatever the engine of the config is, and therefore none of the features that only
    Flower has.

    Parameters
    ----------
    tuning
        The search.
    name
        Name of the method.
    number
        Number of the trial.
    settings
        Hyperparameters of the trial.
    options
        Options of the execution.
    """
    started, reason = time.perf_counter(), ""
    figures: dict[str, float] = {}
    federation = replace(tuning.validation.federation, engine="local")
    config = replace(tuning.validation, federation=federation, privacy=PrivacyConfig())
    try:
        method = replace(config.methods[name], **settings)
        means = compare(method, tuning.seeds, config=config, **options).mean(name)
        figures = {metric: means[metric][0] for metric in FIGURES}
    except (TrainingError, ConfigError, ValidationError) as error:
        reason = " ".join(str(error).split())
    seconds = round(time.perf_counter() - started, 3)
    return Trial(name, number, settings, figures.get(tuning.objective), figures, seconds, reason)


def evaluated(queue: deque[Callable[[], Trial]], workers: int) -> Generator[Trial]:
    """Yield the result of each call of a queue as soon as it is finished, until the queue is empty.

    Parameters
    ----------
    queue
        Calls without arguments. More calls may be added while others are running.
    workers
        Number of worker processes with one thread each; 1 uses this process.

    Raises
    ------
    TrainingError
        If a worker process ends unexpectedly.
    """
    if workers == 1:
        while queue:
            yield queue.popleft()()
        return
    pool = ProcessPoolExecutor(workers, context(), initializer=start_process, initargs=(loaded_files(),))
    waiting: set[Future[Trial]] = set()
    failed = True
    try:
        while queue or waiting:
            while queue:
                waiting.add(pool.submit(queue.popleft()))
            finished = next(iter(wait(waiting, return_when=FIRST_COMPLETED).done))
            waiting.remove(finished)
            yield finished.result()
        failed = False
    except BrokenProcessPool as error:
        raise TrainingError(f"a worker process {ENDED}", remedy="Continue the search with fewer --workers") from error
    finally:
        end_pool(pool, failed)
