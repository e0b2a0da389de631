"""The base of all trackers: each opens an entry for a run, writes to it after each round, and closes it."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar, Generic, Self, TypeVar

from fedpgp.config import ExperimentConfig
from fedpgp.errors import ConfigError, FedPGPError, OutputError, first_line
from fedpgp.reporting import Reporter, Silent
from fedpgp.results.run import Run
from fedpgp.tracking.figures import scalars

Entry = TypeVar("Entry")


class Tracker(Silent, Generic[Entry]):
    """A reporter that writes runs and rounds to a tracking package. As a context manager, it closes all open entries.

    `Entry` is the package's own type of a run. An exception of the package becomes an OutputError, which stops the run;
    `resume` can continue it.

    Attributes
    ----------
    kind
        Name of the tracker in --track.
    target
        Name of the value after the colon in --track.
    """

    kind: ClassVar[str]
    target: ClassVar[str]

    def __init__(self) -> None:
        self._entries: dict[tuple[str, int], Entry] = {}

    @abstractmethod
    def open(self, method: str, seed: int, config: ExperimentConfig) -> Entry:
        """Open an entry with the settings of its run, which begins or continues after a stop."""

    @abstractmethod
    def log(self, entry: Entry, figures: Mapping[str, float], number: int) -> None:
        """Write the figures of round `number`, by name."""

    @abstractmethod
    def end(self, entry: Entry, run: Run) -> None:
        """Write the final table, and close the entry of a finished run."""

    @abstractmethod
    def abandon(self, entry: Entry) -> None:
        """Close the entry of a run that was stopped."""

    def begin(self, method: str, seed: int, config: ExperimentConfig) -> None:
        with self._writing():
            self._entries[method, seed] = self.open(method, seed, config)

    def round(self, method: str, seed: int, record: Mapping[str, Any]) -> None:
        with self._writing():
            self.log(self._entries[method, seed], scalars(record), record["round"])

    def finish(self, run: Run) -> None:
        with self._writing():
            self.end(self._entries[run.method, run.seed], run)
        del self._entries[run.method, run.seed]

    def close(self) -> None:
        """Close the entries of runs that were stopped."""
        while self._entries:
            _, entry = self._entries.popitem()
            with self._writing():
                self.abandon(entry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except FedPGPError:
            raise
        except Exception as error:
            raise OutputError(
                f"the tracker cannot write: {first_line(error).rstrip('.')}",
                where=f"--track {self.kind}",
                remedy="Fix the cause, then resume the run, with this option or without it",
            ) from error


class Several:
    """Passes every call on to several reporters in their order. As a context manager, it closes the trackers."""

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
        with ExitStack() as stack:  # closes all trackers, even if one raises an error
            for reporter in self._reporters:
                if isinstance(reporter, Tracker):
                    stack.callback(reporter.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def needed(module: str, package: str) -> ModuleType:
    """Import a module that only a tracker needs; raise ConfigError if its package is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"the package {package} cannot be imported: {error}",
            where="--track",
            remedy='Install it with `pip install "fedpgp[tracking]"`',
        ) from error
