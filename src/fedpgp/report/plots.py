"""The figures of a comparison for a notebook or a paper of one's own."""

from dataclasses import dataclass

from matplotlib.figure import Figure

from fedpgp.errors import OutputError
from fedpgp.report import curves, tradeoff
from fedpgp.report.tables import titles
from fedpgp.results.run import Comparison


@dataclass(frozen=True)
class Plots:
    """The figures of a comparison as matplotlib's, outside of pyplot: each call draws a new one, the caller's own.

    Raises OutputError without a finished run.

    >>> fedpgp.Plots(comparison).tradeoff().savefig("tradeoff.pdf")  # doctest: +SKIP
    """

    comparison: Comparison

    def __post_init__(self) -> None:
        if not self.comparison.runs:
            raise OutputError("the comparison has no finished run: there is nothing to draw; finish one, with resume")

    def tradeoff(self) -> Figure:
        """Local against HM(Base, Novel) along each method's path, as in comparison.svg."""
        return tradeoff.figure(self.comparison)

    def curves(self) -> Figure:
        """Local, Base, Novel and CM over the rounds, mean of the seeds and a band of their standard deviation."""
        found = self.comparison
        return curves.rounds_figure({method: found.of(method) for method in found.methods}, titles(found), "")
