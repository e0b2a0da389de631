"""The tables and figures of a grid."""

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from fedpgp.files import write
from fedpgp.grid.axes import is_numeric, slug
from fedpgp.report.formats import Cell, Table, latex, markdown, to_csv
from fedpgp.report.style import COLOURS, MARKERS, house_style, rendered
from fedpgp.report.tables import figure_text, titles
from fedpgp.results import Run, columns, spread

if TYPE_CHECKING:
    from fedpgp.grid.plan import Found, Key, Part

SHOWN = ("local", "base", "novel", "cm")


def write_sweep(found: "Found", directory: Path) -> None:
    """Writes figures as .svg and .png, sweep.md, sweep.tex and, last of all, sweep.csv."""
    (part,) = found.grid.parts
    for name, axis, keys in curves(part):
        for suffix in ("svg", "png"):
            write(directory / f"{name}.{suffix}", picture(found, axis, keys, suffix))
    one = table(found, part)
    write(directory / "sweep.md", f"{one.heading}\n\n{markdown(one)}".encode())
    write(directory / "sweep.tex", latex(one).encode())
    write(directory / "sweep.csv", to_csv(found.rows()).encode())


def table(found: "Found", part: "Part") -> Table:
    """A row for each method at each point of a part: mean ± std over the seeds, of the last round."""
    comparisons = [found.comparisons[key] for key in part.cell_keys()]
    named = {name: title for one in comparisons for name, title in titles(one).items()}
    shown = list(dict.fromkeys(name for one in comparisons for name in columns(one.runs[0])))
    rows = []
    for key in part.cell_keys():
        for method in found.grid.methods:
            figures = found.comparisons[key].mean(method)
            texts = [figure_text(*figures[name]) if name in figures else "" for name in shown]
            rows.append([Cell(text) for text in (*key[1:], method, *texts)])
    return Table(
        f"{', '.join(part.axes)}: last round, percent, {seeds_text(found.grid.seeds)}",
        [*part.axes, "method", *(named[name] for name in shown)],
        rows,
    )


def seeds_text(seeds: Sequence[int]) -> str:
    """Which seeds, in words."""
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def curves(part: "Part") -> Iterator[tuple[str, str, list["Key"]]]:
    """Every figure of a part: its name, its axis, and the keys along it.

    There is one for each axis of numbers at each combination of the points of the others.
    """
    for axis, points in part.axes.items():
        if not is_numeric(points):
            continue
        others = [list(labels) for name, labels in part.axes.items() if name != axis]
        place = list(part.axes).index(axis)
        for number, fixed in enumerate(product(*others)):
            along = sorted(points, key=float)
            # The number tells apart labels that differ in what a path cannot have.
            steps = [slug(axis), *([str(number), *map(slug, fixed)] if others else [])]
            yield "-".join(steps), axis, [(part.name, *fixed[:place], label, *fixed[place:]) for label in along]


def picture(found: "Found", axis: str, keys: Sequence["Key"], suffix: str) -> bytes:
    """A panel for each of Local, Base, Novel and CM, a line for each method; bars are the std over seeds."""
    part = next(part for part in found.grid.parts if part.name == keys[0][0])
    place = 1 + list(part.axes).index(axis)
    first = found.comparisons[keys[0]]
    shown = [name for name in SHOWN if all(name in found.comparisons[key].runs[0].results["final"] for key in keys)]
    others = [f"{name} {label}" for name, label in zip(part.axes, keys[0][1:], strict=True) if name != axis]
    with house_style():
        figure = Figure(figsize=(2.3 * len(shown) + 0.6, 2.8), layout="constrained")
        for panel, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            for i, method in enumerate(found.grid.methods):
                spreads = [spread(_values(found.comparisons[key].of(method), name)) for key in keys]
                panel.errorbar(
                    range(len(keys)),
                    [mean for mean, _ in spreads],
                    [deviation or 0.0 for _, deviation in spreads],
                    color=COLOURS[i % len(COLOURS)],
                    marker=MARKERS[i % len(MARKERS)],
                    capsize=2,
                    linewidth=1.2,
                    label=method if name == shown[0] else None,
                )
            panel.set_xticks(range(len(keys)), [key[place] for key in keys])
            panel.set(xlabel=axis, ylabel="%", title=titles(first)[name])
            panel.grid(alpha=0.3, axis="y")
        if others:
            figure.suptitle(", ".join(others), fontsize=8)
        figure.legend(frameon=False, ncols=min(6, len(found.grid.methods)), loc="outside lower center")
        return rendered(figure, suffix)


def _values(runs: Sequence[Run], name: str) -> list[float]:
    return [run.results["final"][name] for run in runs]
