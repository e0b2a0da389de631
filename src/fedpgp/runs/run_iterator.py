"""A run that its caller drives, round by round."""

from collections.abc import Generator, Iterator
from typing import Any, TypeVar

from fedpgp.errors import OutputError
from fedpgp.results.run import Run

Result = TypeVar("Result")
Records = Generator[dict[str, Any], None, Result]  # yields the record of each round when it is finished


def exhausted(records: Records[Result]) -> Result:
    """What a generator returns in the end."""
    while True:
        try:
            next(records)
        except StopIteration as end:
            return end.value


class Rounds(Iterator[dict[str, Any]]):
    """The records of a run's rounds, each when it is asked for; in between nothing runs. Of one thread.

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
        """The finished run; what is left of its rounds is done first. Raises OutputError for one that was stopped."""
        for _ in self:
            pass
        if self._run is None:
            raise OutputError(
                "the run was stopped before its last round: go on with fedpgp.resume(output) where it has an output, or"
                " begin again"
            )
        return self._run

    def close(self) -> None:
        """Stops after the last round that was asked for; `fedpgp.resume(output)` goes on."""
        self._records.close()
