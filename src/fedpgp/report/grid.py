"""Table and figures of a grid, and their files."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from altair.typing import ChartType

from fedpgp.report import charts, frames
from fedpgp.report.style import write_chart
from fedpgp.report.tables import figure_texts, text_table, titles, write_tables
from fedpgp.results.formats import Table, to_csv
from fedpgp.results.run import columns
from fedpgp.runs.comparison_plan import seeds_text
from fedpgp.runtime.files import write
from fedpgp.studies.axes import is_numeric, slug

if TYPE_CHECKING:
    from fedpgp.studies.study import Key, Study, StudyPart


def write_sweep(study: "Study", directory: Path) -> None:
    """Write the figures, then sweep.md and sweep.tex, and at the end sweep.csv."""
    (part,) = study.parts
    write_figures(study, part, directory)
    write_tables(directory, "sweep", [table(study, part)])
    write(directory / "sweep.csv", to_csv(study.rows()).encode())


def table(study: "Study", part: "StudyPart") -> Table:
    """Return a table with a row for each cell and method: mean ± std over the seeds in the last round."""
    comparisons = [study.comparisons[key] for key in part.cell_keys()]
    named = {name: title for one in comparisons for name, title in titles(one).items()}
    shown = list(dict.fromkeys(name for one in comparisons for name in columns(one.runs[0])))
    rows = []
    for key, method in product(part.cell_keys(), study.methods_of(part)):
        rows.append([*key[1:], method, *figure_texts([study.comparisons[key].of(method)], shown)])
    return text_table(
        f"{', '.join(part.axes)}: last round, percent, {seeds_text(study.seeds)}",
        [*part.axes, "method", *(named[name] for name in shown)],
        rows,
    )


def write_figures(study: "Study", part: "StudyPart", directory: Path, prefix: str = "") -> dict[str, str]:
    """Write the figures of a part, and return a description of each figure by its name, which starts with `prefix`.

    There is a figure for each axis and each combination of points of the other axes. Learning curves have a figure for
    each cell or, if there is only one method, one figure for all cells.
    """
    drawn = {}
    for name, axis, keys in axes_of(part):
        write_chart(directory, prefix + name, along(study, part, axis, keys))
        others = "".join(f", {other}" for other in _points(part, keys[0], axis))
        drawn[prefix + name] = f"metrics over {axis}{others}; bars: standard deviation over the seeds"
    cells = {key: study.comparisons[key] for key in part.cell_keys()}
    if len(study.methods_of(part)) == 1:
        (method,), axes = study.methods_of(part), ", ".join(part.axes)
        points = [point for key, one in cells.items() for point in frames.points_of(one.of(method), ", ".join(key[1:]))]
        frame = frames.spreads("round", points, frames.panels(titles(next(iter(cells.values())))))
        if frame.empty:  # zero-shot CLIP has no rounds
            return drawn
        write_chart(directory, f"{prefix}rounds", charts.curves(frame, title=method, legend=axes))
        return {
            **drawn,
            f"{prefix}rounds": f"learning curves of {method} by {axes}; bands: standard deviation over the seeds",
        }
    for number, (key, comparison) in enumerate(cells.items()):
        name = "-".join([f"{prefix}rounds", *([str(number), *map(slug, key[1:])] if len(cells) > 1 else [])])
        frame = frames.learning_curves(comparison)
        if frame.empty:
            continue
        write_chart(directory, name, charts.curves(frame, title=", ".join(_points(part, key))))
        drawn[name] = f"learning curves, {part.describe(key)}; bands: standard deviation over the seeds"
    return drawn


def axes_of(part: "StudyPart") -> Iterator[tuple[str, str, list["Key"]]]:
    """Yield each axis that has several points, for each combination of points of the other axes.

    Each item is the name of a figure, the axis, and the keys along the axis; numbers are sorted.
    """
    for axis, points in part.axes.items():
        if len(points) == 1:
            continue
        others = [list(labels) for name, labels in part.axes.items() if name != axis]
        place = list(part.axes).index(axis)
        for number, fixed in enumerate(product(*others)):
            labels = sorted(points, key=float) if is_numeric(points) else list(points)
            # The number distinguishes labels that become the same text in a path.
            steps = [slug(axis), *([str(number), *map(slug, fixed)] if others else [])]
            yield "-".join(steps), axis, [(part.name, *fixed[:place], label, *fixed[place:]) for label in labels]


def along(study: "Study", part: "StudyPart", axis: str, keys: Sequence["Key"]) -> ChartType:
    """Return a chart of Local, Base, Novel and CM of each method along an axis, with lines if labels are numbers."""
    place = 1 + list(part.axes).index(axis)
    points = [
        (method, key[place], run.results["final"])
        for method in study.methods_of(part)
        for key in keys
        for run in study.comparisons[key].of(method)
    ]
    frame = frames.spreads("label", points, frames.panels(titles(study.comparisons[keys[0]])))
    return charts.curves(frame, axis, title=", ".join(_points(part, keys[0], axis)), joined=is_numeric(part.axes[axis]))


def _points(part: "StudyPart", key: "Key", without: str = "") -> list[str]:
    """Return the points of a cell in words, without one axis."""
    return [f"{name} {label}" for name, label in zip(part.axes, key[1:], strict=True) if name != without]
