"""Iterator over the rounds of a run."""

from collections.abc import Generator, Iterator
from typing import Any, TypeVar

from fedpgp.errors import OutputError
from fedpgp.results.run import Run

Result = TypeVar("Result")
Records = Generator[dict[str, Any], None, Result]  # yields the record of each round when it is finished


def exhausted(records: Records[Result]) -> Result:
    """Run a generator to its end and return its result."""
    while True:
        try:
            next(records)
        except StopIteration as end:
            return end.value


class Rounds(Iterator[dict[str, Any]]):
    """Iterator over the records of a run's rounds.

    A round is computed when its record is requested, and nothing runs in between. Use it in one thread only.

    >>> for record in fedpgp.rounds("fedpgp", 0): print(record["round"], record.get("local"))  # doctest: +SKIP
    """

    def __init__(self, records: Records[Run]):
        self._records = records
        self._run: Run | None = None

    def __next__(self) -> dict[str, Any]:
        try:
            return next(self._records)
        except StopIteration as end:
            self._run = end.value or self._run
            raise StopIteration from None

    @property
    def run(self) -> Run:
        """The finished run, after computing its remaining rounds.

        Raises
        ------
        OutputError
            The run was closed before its last round.
        """
        for _ in self:
            pass
        if self._run is None:
            raise OutputError(
                "the run was stopped before its last round",
                remedy="Resume it with `fedpgp.resume(output)` if it has an output directory, or begin it again",
            )
        return self._run

    def close(self) -> None:
        """Stop the run after the last computed round; `fedpgp.resume(output)` continues it."""
        self._records.close()
