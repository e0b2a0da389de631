"""Figures of a comparison for notebooks and papers."""

from dataclasses import dataclass

from altair.typing import ChartType

from fedpgp.errors import OutputError
from fedpgp.report import charts, frames
from fedpgp.report.style import styled
from fedpgp.report.tables import others_title
from fedpgp.results.run import Comparison


@dataclass(frozen=True)
class Plots:
    """Figures of a comparison as Altair charts, which notebooks display. Each call makes a new chart.

    Parameters
    ----------
    comparison
        Comparison with at least one finished run.

    Raises
    ------
    OutputError
        If no run is finished.

    Examples
    --------
    >>> fedpgp.Plots(comparison).tradeoff().save("tradeoff.pdf")  # doctest: +SKIP
    """

    comparison: Comparison

    def __post_init__(self) -> None:
        if not self.comparison.runs:
            raise OutputError(
                "it has no finished run, so there is nothing to draw",
                where="comparison",
                remedy="Finish it with fedpgp compare --resume, and load it again",
            )

    def tradeoff(self) -> ChartType:
        """Return the chart of Local against HM(Base, Novel) along the path of each method, as in comparison.svg."""
        return styled(charts.tradeoff(frames.tradeoff(self.comparison), others_title(self.comparison)))

    def curves(self) -> ChartType:
        """Return the chart of Local, Base, Novel and CM over the rounds: mean and standard deviation of the seeds.

        Raises
        ------
        OutputError
            If no method trains, because then there are no rounds.
        """
        frame = frames.learning_curves(self.comparison)
        if frame.empty:
            raise OutputError(
                "no method of it trains, so there are no rounds to draw",
                where="comparison",
                remedy="Compare with a method that trains, or draw .tradeoff()",
            )
        return styled(charts.curves(frame))
