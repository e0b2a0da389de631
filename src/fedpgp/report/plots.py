"""The figures of a comparison for a notebook or a paper of one's own."""

from dataclasses import dataclass

from altair.typing import ChartType

from fedpgp.errors import OutputError
from fedpgp.report import charts, frames
from fedpgp.report.style import styled
from fedpgp.report.tables import others_title
from fedpgp.results.run import Comparison


@dataclass(frozen=True)
class Plots:
    """The figures of a comparison as Altair charts, which notebooks show: each call makes a new one, the caller's own.

    Raises OutputError without a finished run.

    >>> fedpgp.Plots(comparison).tradeoff().save("tradeoff.pdf")  # doctest: +SKIP
    """

    comparison: Comparison

    def __post_init__(self) -> None:
        if not self.comparison.runs:
            raise OutputError("the comparison has no finished run: there is nothing to draw; finish one, with resume")

    def tradeoff(self) -> ChartType:
        """Local against HM(Base, Novel) along each method's path, as in comparison.svg."""
        return styled(charts.tradeoff(frames.tradeoff(self.comparison), others_title(self.comparison)))

    def curves(self) -> ChartType:
        """Local, Base, Novel and CM over the rounds, mean of the seeds and a band of their standard deviation."""
        return styled(charts.curves(frames.learning_curves(self.comparison)))
