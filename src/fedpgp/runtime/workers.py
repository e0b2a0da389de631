"""Independent jobs of a round, in one or several processes, with bit-identical results."""

import multiprocessing
import multiprocessing.connection
import os
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch

from fedpgp.errors import TrainingError
from fedpgp.runtime.code_files import load_file, loaded_files
from fedpgp.runtime.processes import ENDED, ENDED_REMEDY, context, leave_ctrl_c

AHEAD = 8  # jobs that are pickled in advance for each process; the number limits the memory

Job = TypeVar("Job")
Result = TypeVar("Result")
Common = TypeVar("Common")

_COMMON: Any = None  # in a worker process, the data of all jobs, received once at the start


class Workers(Generic[Common]):
    """A pool that calls `function(towers, job)` for many jobs and returns the results in order.

    As a context manager, it sets PyTorch to one thread in all processes. The operations of a round are too small for
    several threads, which would wait for each other and be many times slower on a busy machine.

    Parameters
    ----------
    towers
        Data that all jobs need, such as the towers of a frozen encoder. Every process gets it once.
    count
        Number of worker processes; 1 works in this process. A script that uses more than one needs
        `if __name__ == "__main__":`.
    """

    def __init__(self, towers: Common, count: int):
        self.towers = towers
        self.count = count
        self._threads = torch.get_num_threads()
        self._pool: ProcessPoolExecutor | None = None
        if count > 1:
            arguments = (pickle.dumps(towers), loaded_files())
            self._pool = ProcessPoolExecutor(count, context(), initializer=_start, initargs=arguments)

    def map(self, function: Callable[[Common, Job], Result], jobs: Iterable[Job]) -> list[Result]:
        """Call the function for all jobs and return the results in the order of the jobs.

        Raises
        ------
        TrainingError
            A worker process ended too early.
        """
        if self._pool is None:
            return [function(self.towers, job) for job in jobs]
        results: list[Result] = []
        waiting: deque[Future[bytes]] = deque()
        try:
            for job in jobs:
                if len(waiting) == AHEAD * self.count:
                    results.append(pickle.loads(waiting.popleft().result()))
                # PyTorch's own pickles would send every small tensor through a separate shared-memory file.
                waiting.append(self._pool.submit(_call, pickle.dumps((function, job))))
            return results + [pickle.loads(future.result()) for future in waiting]
        except (BrokenProcessPool, BrokenPipeError, EOFError) as error:
            raise TrainingError(f"a worker process {ENDED}", remedy=ENDED_REMEDY) from error
        finally:
            for future in waiting:
                future.cancel()

    def start(self) -> None:
        """Start all processes and wait for them. Otherwise they start with the first jobs, which takes seconds."""
        there = {os.getpid()} if self._pool is None else set()
        while len(there) < self.count:
            there.update(self.map(_who, [0.02] * self.count))

    def __enter__(self) -> "Workers[Common]":
        torch.set_num_threads(1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        torch.set_num_threads(self._threads)
        if self._pool is not None:
            end_pool(self._pool, kind is not None)


def start_process(method_files: Sequence[Path]) -> None:
    """Prepare a worker process: import the method files that the parent has loaded, and end with the parent."""
    leave_ctrl_c()
    for path in method_files:
        load_file(path)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)


def end_pool(pool: ProcessPoolExecutor, failed: bool) -> None:
    """End the processes of a pool; after a failure, without waiting for their work."""
    if failed:
        for process in multiprocessing.active_children():
            process.terminate()
    pool.shutdown(cancel_futures=True)


def _start(towers: bytes, method_files: Sequence[Path]) -> None:
    global _COMMON
    start_process(method_files)
    _COMMON = pickle.loads(towers)


def _end_with_parent() -> None:
    """Exit when the parent is killed; otherwise a worker would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _who(towers: object, seconds: float) -> int:
    time.sleep(seconds)  # another process can take the next job
    return os.getpid()


def _call(packed: bytes) -> bytes:
    function, job = pickle.loads(packed)
    result: Any = function(_COMMON, job)
    return pickle.dumps(result)
