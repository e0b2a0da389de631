"""The figures of a comparison for a notebook or a paper of one's own."""

from dataclasses import dataclass

from matplotlib.figure import Figure

from fedpgp.report import curves, tradeoff
from fedpgp.report.tables import titles
from fedpgp.results.run import Comparison


@dataclass(frozen=True)
class Plots:
    """Each method draws a new figure, outside of pyplot, which the caller may change and save."""

    comparison: Comparison

    def tradeoff(self) -> Figure:
        """Local against HM(Base, Novel) along each method's path, as in comparison.svg."""
        return tradeoff.figure(self.comparison)

    def curves(self) -> Figure:
        """Local, Base, Novel and CM over the rounds, mean of the seeds and a band of their standard deviation."""
        found = self.comparison
        return curves.rounds_figure({method: found.of(method) for method in found.methods}, titles(found), "")
