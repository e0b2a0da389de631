"""Plan of a comparison: its runs, and an estimate of the remaining time."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

Cell = tuple[str, int]  # method and seed


class ComparisonPlan:
    """Remaining runs with estimates of their time, which are corrected by the time of finished runs.

    Parameters
    ----------
    seconds
        Estimated time of each run.
    """

    def __init__(self, seconds: Mapping[Cell, float]):
        self._left = dict(seconds)
        self.runs = len(seconds)
        # The estimate has the weight of a tenth of the work, so that a short first run does not change it too much.
        self._estimated = self._taken = sum(seconds.values()) / 10

    def done(self, cell: Cell, seconds: float) -> None:
        """Record a finished run and its time."""
        self._estimated += self._left.pop(cell)
        self._taken += seconds

    @property
    def finished(self) -> int:
        """Number of finished runs."""
        return self.runs - len(self._left)

    @property
    def seconds(self) -> float:
        """Estimate of the remaining time in seconds."""
        pace = self._taken / self._estimated if self._estimated else 1.0
        return sum(self._left.values()) * pace

    @property
    def in_words(self) -> str:
        """The remaining time as text; "" if no run is left."""
        return f"about {duration(self.seconds)} left" if self._left else ""

    def describe(self, processes: int) -> str:
        """Return the plan in one line: the number of runs, the time, and the methods with their seeds."""
        seeds: dict[str, list[int]] = defaultdict(list)
        for method, seed in self._left:
            seeds[method].append(seed)
        groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for method, of_method in seeds.items():
            groups[tuple(of_method)].append(method)
        parts = [f"{', '.join(methods)} with {seeds_text(of_group)}" for of_group, methods in groups.items()]
        runs, of_them = counted(self.runs, "run"), counted(processes, "process", "es")
        return f"{runs}, about {duration(self.seconds)} in {of_them}: {'; '.join(parts)}"


def seeds_text(seeds: Sequence[int]) -> str:
    """Return seeds as text, such as "seeds 0, 1"."""
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def counted(number: int, word: str, plural: str = "s") -> str:
    """Return a number with its noun, such as "1 run" or "2 runs"; `plural` is the ending of the noun."""
    return f"{number} {word}{plural * (number != 1)}"


def duration(seconds: float) -> str:
    """Return a duration as text, with the precision of an estimate."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
