"""Execution of runs: the options of callers, and interfaces for packages that this package may not import."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, cast

from fedpgp.reporting import Reporter, Silent
from fedpgp.results.run import Comparison

if TYPE_CHECKING:
    from fedpgp.federation.state import State


class Writers(Protocol):
    """Interface for writing tables and figures into the directory of a comparison or a study."""

    def comparison(self, comparison: Comparison, directory: Path) -> None: ...
    def sweep(self, study: Any, directory: Path) -> None: ...
    def ablation(self, study: Any, directory: Path) -> None: ...
    def reproduction(self, study: Any, directory: Path) -> None: ...


class Engine(Protocol):
    """Interface for training and evaluating the clients of a run outside of this process (`federation.engine`).

    Its argument `opened` is an OpenRun. It yields the record of each round.
    """

    def __call__(self, opened: Any, directory: Path | None, state: State) -> Iterator[dict[str, Any]]: ...


class ExecutionOptions(TypedDict, total=False):
    """The fields of `Execution` as optional keyword arguments."""

    workers: int
    cache: Path | str | None
    skip_bad_images: bool
    reporter: Reporter | None
    writers: Writers | None
    engines: Mapping[str, Engine]


@dataclass(frozen=True)
class Execution:
    """Options for the execution of runs. Results do not depend on them, except for images that cannot be decoded.

    Attributes
    ----------
    workers
        Number of worker processes; a script that uses more than one needs `if __name__ == "__main__":`.
    cache
        Directory of the cache of image features; None takes the user's cache directory.
    skip_bad_images
        Leave out images that cannot be decoded, and report them.
    reporter
        Receives the progress and the record of every round.
    writers
        Writes tables and figures; None writes none.
    engines
        The engines other than "local": value of federation.engine -> engine.
    """

    workers: int = 1
    cache: Path | str | None = None
    skip_bad_images: bool = False
    reporter: Reporter | None = None
    writers: Writers | None = None
    engines: Mapping[str, Engine] = field(default_factory=dict)

    def heard_by(self, reporter: Reporter) -> ExecutionOptions:
        """Return the options with another reporter, as keyword arguments."""
        return cast(ExecutionOptions, {**vars(self), "reporter": reporter})

    @property
    def listener(self) -> Reporter:
        """The reporter, or one that prints nothing."""
        return self.reporter or Silent()
