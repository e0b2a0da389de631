"""Who hears how a run goes: the contract of a reporter, one that says nothing, and one with bars."""

from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from fedpgp.config import ExperimentConfig
from fedpgp.results.run import Run


class Reporter(Protocol):
    """Hears what is going on. All calls may be ignored; an error that one raises stops the run, as Ctrl-C would."""

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None:
        """So many of `total` are done of something, with a few words on the last."""
        ...

    def notice(self, text: str) -> None:
        """A sentence for whoever runs this."""
        ...

    def begin(self, method: str, seed: int, config: ExperimentConfig) -> None:
        """A run begins, or goes on after a stop."""
        ...

    def round(self, method: str, seed: int, record: Mapping[str, Any]) -> None:
        """A round is finished and safe; those before a stop are not told again. record: its line of rounds.jsonl."""
        ...

    def finish(self, run: Run) -> None:
        """A run is finished, and written where it has a directory."""
        ...


class Silent:
    """A reporter that says nothing: the base of those that hear some calls alone."""

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None:
        pass

    def notice(self, text: str) -> None:
        pass

    def begin(self, method: str, seed: int, config: ExperimentConfig) -> None:
        pass

    def round(self, method: str, seed: int, record: Mapping[str, Any]) -> None:
        pass

    def finish(self, run: Run) -> None:
        pass


def hears_notices(reporter: Reporter) -> bool:
    """Whether anybody hears how it goes; those that only watch rounds do not."""
    return type(reporter).notice is not Silent.notice


class ProgressBars(Silent):
    """A reporter that draws bars on standard error, in a terminal or a notebook, and prints notices.

    >>> fedpgp.compare(["promptfl", "fedpgp"], reporter=fedpgp.ProgressBars())  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None:
        if not self._tasks:
            self._bars.start()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total, detail=detail)
        self._bars.update(self._tasks[what], completed=done, total=total, detail=detail)
        if done >= total:
            del self._tasks[what]
        if not self._tasks:
            self._bars.stop()
            for task in self._bars.task_ids:
                self._bars.remove_task(task)

    def notice(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)
