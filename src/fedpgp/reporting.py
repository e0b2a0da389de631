"""Who hears how a run goes: the contract of a reporter, one that says nothing, and one with bars."""

from collections.abc import Mapping
from typing import Any, Protocol

from tqdm.auto import tqdm

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
    """A reporter that draws a bar on standard error for whatever lasts, and prints notices.

    >>> fedpgp.compare(["promptfl", "fedpgp"], reporter=fedpgp.ProgressBars())  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._bars: dict[str, tqdm[Any]] = {}

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None:
        if what not in self._bars:
            self._bars[what] = tqdm(total=total, desc=what, initial=done, bar_format="{l_bar}{bar}{n}/{total}{postfix}")
        bar = self._bars[what]
        bar.total = total
        bar.set_postfix_str(detail, refresh=False)
        bar.update(done - bar.n)
        if done >= total:
            self._bars.pop(what).close()

    def notice(self, text: str) -> None:
        tqdm.write(text)
