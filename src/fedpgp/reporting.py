"""Who hears how a run goes: the contract of a reporter, one that says nothing, and one with bars."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:  # `fedpgp --help` draws no bar, and imports nothing that takes a second
    from fedpgp.config import ExperimentConfig
    from fedpgp.results.run import Run

INTERVAL = 2.0  # seconds between two lines about the same thing


class Reporter(Protocol):
    """Hears what is going on. All calls may be ignored; an error that one raises stops the run, as Ctrl-C would."""

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None:
        """So many of `total` are done of something, with a few words on the last."""
        return

    def notice(self, text: str) -> None:
        """A sentence for whoever runs this."""
        return

    def begin(self, method: str, seed: int, config: ExperimentConfig) -> None:
        """A run begins, or goes on after a stop."""
        return

    def round(self, method: str, seed: int, record: Mapping[str, Any]) -> None:
        """A round is finished and safe; those before a stop are not told again. record: its line of rounds.jsonl."""
        return

    def finish(self, run: Run) -> None:
        """A run is finished, and written where it has a directory."""
        return


class Silent(Reporter):
    """A reporter that says nothing: the base of those that hear only some calls."""


def hears_notices(reporter: Reporter) -> bool:
    """Whether anybody hears how it goes; those that only watch rounds do not."""
    return type(reporter).notice is not Silent.notice


class ProgressBars(Silent):
    """A reporter on standard error: bars in a terminal or a notebook, plain lines elsewhere, and notices.

    As a context manager it also stops the bars when an error leaves the block.

    >>> fedpgp.compare(["promptfl", "fedpgp"], reporter=fedpgp.ProgressBars())  # doctest: +SKIP
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, soft_wrap=True, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._printed: dict[str, float] = {}  # when the last line about something was printed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._tasks:
            self._bars.stop()

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None:
        finished = done >= total
        if not (self._console.is_terminal or self._console.is_jupyter):
            now = time.monotonic()
            if done > 0 and (finished or now - self._printed.get(what, 0.0) >= INTERVAL):
                self._printed[what] = now
                self._console.print(f"{what}: {done}/{total}  {detail}".rstrip(), markup=False)
            return
        if what not in self._tasks:
            self._bars.start()
            self._tasks[what] = self._bars.add_task(what, total=total, detail=detail)
        self._bars.update(self._tasks[what], completed=done, total=total, detail=detail)
        if finished:  # the bars of many runs would fill the screen
            self._bars.remove_task(self._tasks.pop(what))
            self._console.print(f"{what}: done  {detail}", markup=False)
        if not self._tasks:
            self._bars.stop()

    def notice(self, text: str) -> None:
        self._console.print(text, markup=False)
