"""How runs execute: what callers may say about it, and what packages above provide for it."""

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
    """What writes tables and figures into the directory of a comparison or a study."""

    def comparison(self, comparison: Comparison, directory: Path) -> None: ...
    def sweep(self, study: Any, directory: Path) -> None: ...
    def ablation(self, study: Any, directory: Path) -> None: ...
    def reproduction(self, study: Any, directory: Path) -> None: ...


class Engine(Protocol):
    """What trains and evaluates the clients of a run elsewhere than in this process: `federation.engine`.

    opened: an OpenRun, which has an `Execution` itself.
    """

    def __call__(self, opened: Any, directory: Path | None, state: State) -> Iterator[dict[str, Any]]: ...


class ExecutionOptions(TypedDict, total=False):
    """The fields of `Execution` as keyword arguments, each with its default."""

    workers: int
    cache: Path | str | None
    skip_bad_images: bool
    reporter: Reporter | None
    writers: Writers | None
    engines: Mapping[str, Engine]


@dataclass(frozen=True)
class Execution:
    """How runs execute. Nothing here changes a result, but for images that do not decode.

    workers: processes; more than one needs `if __name__ == "__main__":`. cache: directory of image features; None takes
    the user's cache directory. skip_bad_images: go on without the images that do not decode, which are told to the
    reporter. reporter: hears of progress and of every round. writers: None writes no tables and figures.
    engines: by the value of federation.engine, those beside "local".
    """

    workers: int = 1
    cache: Path | str | None = None
    skip_bad_images: bool = False
    reporter: Reporter | None = None
    writers: Writers | None = None
    engines: Mapping[str, Engine] = field(default_factory=dict)

    def heard_by(self, reporter: Reporter) -> ExecutionOptions:
        """The same with another reporter, as keyword arguments."""
        return cast(ExecutionOptions, {**vars(self), "reporter": reporter})

    @property
    def listener(self) -> Reporter:
        """The reporter, or one that says nothing."""
        return self.reporter or Silent()
