"""The figures of a grid: what changes along its axes, and over the rounds."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedpgp.report.style import COLOURS, MARKERS, house_style, rendered, turn_labels, write_figure
from fedpgp.report.tables import titles
from fedpgp.results.run import Run, spread
from fedpgp.studies.axes import is_numeric, slug

if TYPE_CHECKING:
    from fedpgp.studies.study import Key, Study, StudyPart

SHOWN = ("local", "base", "novel", "cm")
CROWDED = 24  # letters that the labels below one panel have room for


def write_figures(found: "Study", part: "StudyPart", directory: Path, prefix: str = "") -> dict[str, str]:
    """Writes those of a part as .svg and .png: what each shows, by its name, in which `prefix` comes first.

    One for each axis at each combination of the points of the others; learning curves of each cell, or, with one
    method, of all cells together.
    """
    methods, drawn = found.methods, {}
    for name, axis, keys in axes_of(part):
        write_figure(directory, prefix + name, partial(along, found, axis, keys))
        drawn[prefix + name] = f"along {axis}{_rest(part, axis, keys[0])}; bars: standard deviation over the seeds"
    cells = list(part.cell_keys())
    runs = {key: {method: found.comparisons[key].of(method) for method in methods} for key in cells}
    if len(methods) == 1:
        lines = {", ".join(key[1:]): runs[key][methods[0]] for key in cells}
        write_figure(
            directory,
            f"{prefix}rounds",
            partial(over_rounds, lines, titles(found.comparisons[cells[0]]), ", ".join(part.axes)),
        )
        drawn[f"{prefix}rounds"] = f"{methods[0]} over the rounds, by {', '.join(part.axes)}; bands: as the bars"
        return drawn
    for number, key in enumerate(cells):
        name = "-".join([f"{prefix}rounds", *([str(number), *map(slug, key[1:])] if len(cells) > 1 else [])])
        write_figure(directory, name, partial(over_rounds, runs[key], titles(found.comparisons[key]), ""))
        drawn[name] = f"over the rounds, {part.describe(key)}; bands: standard deviation over the seeds"
    return drawn


def axes_of(part: "StudyPart") -> Iterator[tuple[str, str, list["Key"]]]:
    """Every axis with more than one point, at each combination of the points of the others.

    Gives the name of a figure, the axis, and the keys along it, those of numbers by their size.
    """
    for axis, points in part.axes.items():
        if len(points) == 1:
            continue
        others = [list(labels) for name, labels in part.axes.items() if name != axis]
        place = list(part.axes).index(axis)
        for number, fixed in enumerate(product(*others)):
            labels = sorted(points, key=float) if is_numeric(points) else list(points)
            # The number tells apart labels that differ in what a path cannot have.
            steps = [slug(axis), *([str(number), *map(slug, fixed)] if others else [])]
            yield "-".join(steps), axis, [(part.name, *fixed[:place], label, *fixed[place:]) for label in labels]


def along(found: "Study", axis: str, keys: Sequence["Key"], suffix: str) -> bytes:
    """A panel for each of Local, Base, Novel and CM, marks for each method, joined where the axis is of numbers."""
    part = next(part for part in found.parts if part.name == keys[0][0])
    labels = [key[1 + list(part.axes).index(axis)] for key in keys]
    crowded = sum(map(len, labels)) > CROWDED
    joined = "-" if is_numeric(part.axes[axis]) else "none"
    named = titles(found.comparisons[keys[0]])
    finals = [found.comparisons[key].runs[0].results["final"] for key in keys]
    shown = [name for name in SHOWN if all(name in final for final in finals)]
    with house_style():
        figure, panels = _panels([named[name] for name in shown], max(map(len, labels)) if crowded else 0)
        for panel, name in zip(panels, shown, strict=True):
            for i, method in enumerate(found.methods):
                spreads = [
                    spread([r.results["final"][name] for r in found.comparisons[key].of(method)]) for key in keys
                ]
                panel.errorbar(
                    range(len(keys)),
                    [mean for mean, _ in spreads],
                    [deviation or 0.0 for _, deviation in spreads],
                    color=COLOURS[i % len(COLOURS)],
                    marker=MARKERS[i % len(MARKERS)],
                    linestyle=joined,
                    capsize=2,
                    linewidth=1.2,
                    label=method if name == shown[0] else None,
                )
            panel.set_xticks(range(len(keys)), labels)
            panel.set_xlim(-0.4, len(keys) - 0.6)
            panel.set_xlabel(axis)
            if crowded:
                turn_labels(panel, 40)
        if rest := _rest(part, axis, keys[0]):
            figure.suptitle(rest.removeprefix(", "), fontsize=8)
        _legend(figure, len(found.methods), "")
        return rendered(figure, suffix)


def over_rounds(lines: Mapping[str, Sequence[Run]], named: Mapping[str, str], what: str, suffix: str) -> bytes:
    """The figure as "svg" or "png"."""
    with house_style():
        return rendered(rounds_figure(lines, named, what), suffix)


def rounds_figure(lines: Mapping[str, Sequence[Run]], named: Mapping[str, str], what: str) -> Figure:
    """A panel for each of Local, Base, Novel and CM over the rounds, a line for each label: the mean of its runs.

    named: the titles of the panels; what: that of the legend. What is trained without rounds is a dashed level.
    """
    shown = [name for name in SHOWN if all(name in run.results["final"] for runs in lines.values() for run in runs)]
    with house_style():
        figure, panels = _panels([named[name] for name in shown])
        for panel, name in zip(panels, shown, strict=True):
            for i, (label, runs) in enumerate(lines.items()):
                colour = COLOURS[i % len(COLOURS)]
                records = [[record for record in run.rounds if name in record] for run in runs]
                at = [record["round"] for record in records[0]]
                title = label if name == shown[0] else None
                values = [spread([record[name] for record in of_round]) for of_round in zip(*records, strict=True)]
                means = [mean for mean, _ in values]
                if len(at) == 1:
                    panel.axhline(means[0], color=colour, linestyle=(0, (4, 3)), linewidth=1, label=title)
                    continue
                panel.plot(
                    at, means, color=colour, marker=MARKERS[i % len(MARKERS)], markersize=3, linewidth=1.2, label=title
                )
                low, high = ([m + sign * (d or 0.0) for m, d in values] for sign in (-1, 1))
                panel.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
            panel.set_xlabel("round")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(figure, len(lines), what)
        return figure


def _panels(shown: Sequence[str], below: int = 0) -> tuple[Figure, list[Axes]]:
    """below: letters of the longest label that is turned."""
    figure = Figure(figsize=(2.3 * len(shown) + 0.6, 2.8 + 0.05 * below), layout="constrained")
    panels = list(figure.subplots(1, len(shown), squeeze=False)[0])
    for panel, title in zip(panels, shown, strict=True):
        panel.set(ylabel="%", title=title)
        panel.grid(alpha=0.3, axis="y")
    return figure, panels


def _legend(figure: Figure, count: int, title: str) -> None:
    figure.legend(frameon=False, ncols=min(6, count), loc="outside lower center", title=title or None)


def _rest(part: "StudyPart", axis: str, key: "Key") -> str:
    """The points of the other axes in words, each after a comma."""
    return "".join(f", {name} {label}" for name, label in zip(part.axes, key[1:], strict=True) if name != axis)
