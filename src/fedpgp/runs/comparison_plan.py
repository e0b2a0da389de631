"""What an experiment is going to do, and about how long it takes."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

Cell = tuple[str, int]  # method and seed


class ComparisonPlan:
    """The runs that are left, with an estimate of each, which is corrected by those that are done."""

    def __init__(self, seconds: Mapping[Cell, float]):
        self._left = dict(seconds)
        self.runs = len(seconds)
        # The estimate weighs as much as a tenth of the work, or the first short run would turn it upside down.
        self._estimated = self._taken = sum(seconds.values()) / 10

    def done(self, cell: Cell, seconds: float) -> None:
        self._estimated += self._left.pop(cell)
        self._taken += seconds

    @property
    def finished(self) -> int:
        return self.runs - len(self._left)

    @property
    def seconds(self) -> float:
        """What is left."""
        pace = self._taken / self._estimated if self._estimated else 1.0
        return sum(self._left.values()) * pace

    @property
    def in_words(self) -> str:
        return f"about {duration(self.seconds)} left" if self._left else ""

    def describe(self, processes: int) -> str:
        """All of it in a line."""
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
    """Which seeds, in words."""
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def counted(number: int, word: str, plural: str = "s") -> str:
    """A number of things. plural: what their word then ends in."""
    return f"{number} {word}{plural * (number != 1)}"


def duration(seconds: float) -> str:
    """In words, as exact as an estimate is."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
