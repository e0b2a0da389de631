"""The picture of a comparison: what each method's models trade."""

import math
from dataclasses import dataclass
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedpgp.report.style import COLOURS, MARKERS, house_style, rendered
from fedpgp.report.tables import others_title
from fedpgp.results.run import Comparison

TOGETHER = 8  # methods that one pair of axes can hold
ACROSS = 4  # pairs of axes beside each other, where there are more


@dataclass(frozen=True)
class _Curve:
    """[A] means over the seeds. own: of each seed, the clients' own models."""

    local: list[float]
    others: list[float]
    own: list[tuple[float, float]]


def picture(comparison: Comparison, suffix: str) -> bytes:
    """The figure as "svg" or "png"."""
    with house_style():
        return rendered(figure(comparison), suffix)


def figure(comparison: Comparison) -> Figure:
    """Local against HM(Base, Novel): a curve for each method with a path, a mark for its clients' own models.

    Beyond eight methods each has axes of its own, with all others behind it in grey.
    """
    curves = {method: _curve(comparison, method) for method in comparison.methods}
    x = "Local: accuracy on the client's own images (%)"
    y = f"{others_title(comparison)}: accuracy\non everybody else's (%)"
    with house_style():
        if len(curves) <= TOGETHER:
            drawn = Figure(figsize=(5.4, 4), layout="constrained")
            axes = drawn.add_subplot()
            for i, (method, curve) in enumerate(curves.items()):
                _draw(axes, curve, COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], method)
            axes.set(xlabel=x, ylabel=y)
            axes.legend(frameon=False)
            axes.grid(alpha=0.3)
            return drawn
        rows = math.ceil(len(curves) / ACROSS)
        drawn = Figure(figsize=(2.2 * ACROSS, 1.9 * rows + 0.4), layout="constrained")
        grid = drawn.subplots(rows, ACROSS, sharex=True, sharey=True, squeeze=False)
        places = list(grid.flat)
        for axes, (method, curve) in zip(places, curves.items(), strict=False):
            for other in curves.values():
                axes.plot(other.local, other.others, "-", color="#BBBBBB", linewidth=0.7)
                axes.plot(other.local[-1], other.others[-1], ".", color="#BBBBBB", markersize=4)
            _draw(axes, curve, COLOURS[3], "o", method)
            axes.set_title(method, fontsize=9)
            axes.grid(alpha=0.3)
        for axes in places[len(curves) - ACROSS : len(curves)]:  # the lowest of each column
            axes.tick_params(labelbottom=True)
        for empty in places[len(curves) :]:
            empty.set_axis_off()
        drawn.supxlabel(x, fontsize=9)
        drawn.supylabel(y, fontsize=9)
        return drawn


def _curve(comparison: Comparison, method: str) -> _Curve:
    runs = comparison.of(method)
    longest = max(len(run.results["path"]) for run in runs)
    # A run whose clients all stayed at the shared part is one point, wherever α is.
    paths = [run.results["path"] * (longest if len(run.results["path"]) == 1 else 1) for run in runs]
    points = list(zip(*paths, strict=True))
    return _Curve(
        local=[fmean(point["local"] for point in at) for at in points],
        others=[fmean(point["others"] for point in at) for at in points],
        own=[(point["local"], point["others"]) for point in points[-1]],
    )


def _draw(axes: Axes, curve: _Curve, colour: str, marker: str, label: str) -> None:
    axes.plot(curve.local, curve.others, "-", color=colour, linewidth=1.3)
    axes.plot(curve.local[:-1], curve.others[:-1], ".", color=colour, markersize=4)
    axes.plot(*zip(*curve.own, strict=True), ".", color=colour, alpha=0.4)
    axes.plot(
        curve.local[-1], curve.others[-1], marker, color=colour, markersize=7, markeredgecolor="white", label=label
    )
