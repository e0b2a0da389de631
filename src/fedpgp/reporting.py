"""Reporters of a run: the interface, one that prints nothing, and one with progress bars."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment

from fedpgp.runtime import escaping

if TYPE_CHECKING:  # these imports take a second, and `fedpgp --help` does not need them
    from fedpgp.config import ExperimentConfig
    from fedpgp.results.run import Run

INTERVAL = 2.0  # seconds between two lines about the same task


class Reporter(Protocol):
    """Interface for the progress of a run.

    A method may ignore its call. An error that a method raises stops the run, as Ctrl-C does.
    """

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None:
        """Report that `done` of `total` steps of the task `what` are complete; `detail` describes the last step."""
        return

    def notice(self, text: str) -> None:
        """Report a sentence to the user."""
        return

    def begin(self, method: str, seed: int, config: ExperimentConfig) -> None:
        """Report that a run begins or is resumed."""
        return

    def round(self, method: str, seed: int, record: Mapping[str, Any]) -> None:
        """Report a finished and saved round. A resumed run does not report its earlier rounds again.

        Parameters
        ----------
        method, seed
            The run.
        record
            The line of the round in rounds.jsonl.
        """
        return

    def finish(self, run: Run) -> None:
        """Report that a run is finished and, if it has a directory, written."""
        return


class Silent(Reporter):
    """A reporter that prints nothing: the base class for reporters that use only some calls."""


def hears_notices(reporter: Reporter) -> bool:
    """Return whether a reporter uses notices, and not only rounds."""
    return type(reporter).notice is not Silent.notice


class SafeConsole(Console):
    """A console whose texts cannot control the terminal: names of files and classes may contain control characters."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as Console does, with visible control characters in all texts."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escaping.terminal(segment.text))


class ProgressBars(Silent):
    """A reporter that prints progress and notices: bars in a terminal or a notebook, plain lines elsewhere.

    As a context manager, it also removes the bars when an error leaves the block.

    Parameters
    ----------
    console
        Where to print; None takes standard error.

    Examples
    --------
    >>> fedpgp.compare(["promptfl", "fedpgp"], reporter=fedpgp.ProgressBars())  # doctest: +SKIP
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or SafeConsole(stderr=True, soft_wrap=True, highlight=False, emoji=False)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self._console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._printed: dict[str, float] = {}  # task -> time of its last line

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
        if finished:  # finished bars are removed, because the bars of many runs would fill the screen
            self._bars.remove_task(self._tasks.pop(what))
            self._console.print(f"{what}: done  {detail}", markup=False)
        if not self._tasks:
            self._bars.stop()

    def notice(self, text: str) -> None:
        self._console.print(text, markup=False)
