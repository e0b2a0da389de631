"""Trials are evaluated one by one in this process, or several at once in others."""

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
    """Train a method with every seed; a setting with which that cannot be done has failed, and says why.

    It is trained in this process, whatever the engine of the config, and so without what only Flower has.
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
    """Yield what each call of a queue returns as it is done, until the queue is empty; it may be filled meanwhile.

    workers: processes with one thread each; 1 works in this process.
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
        raise TrainingError(f"a worker process {ENDED}") from error
    finally:
        end_pool(pool, failed)
