"""Several reporters in the place of one."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

from fedpgp.config import ExperimentConfig
from fedpgp.reporting import Reporter
from fedpgp.results.run import Run
from fedpgp.tracking.base import Tracker


class Several:
    """Passes every call on to each, in their order; a context manager, which closes those that are trackers."""

    def __init__(self, reporters: Sequence[Reporter]):
        self._reporters = list(reporters)

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None:
        for reporter in self._reporters:
            reporter.progress(what, done, total, detail)

    def notice(self, text: str) -> None:
        for reporter in self._reporters:
            reporter.notice(text)

    def begin(self, method: str, seed: int, config: ExperimentConfig) -> None:
        for reporter in self._reporters:
            reporter.begin(method, seed, config)

    def round(self, method: str, seed: int, record: Mapping[str, Any]) -> None:
        for reporter in self._reporters:
            reporter.round(method, seed, record)

    def finish(self, run: Run) -> None:
        for reporter in self._reporters:
            reporter.finish(run)

    def close(self) -> None:
        with ExitStack() as stack:  # all of them, also where one cannot be closed
            for reporter in self._reporters:
                if isinstance(reporter, Tracker):
                    stack.callback(reporter.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
