"""The table of a grid, and its files."""

from pathlib import Path
from typing import TYPE_CHECKING

from fedpgp.report.curves import write_figures
from fedpgp.report.tables import figure_text, titles
from fedpgp.results.formats import Table, TableCell, latex, markdown, to_csv
from fedpgp.results.run import columns
from fedpgp.runs.comparison_plan import seeds_text
from fedpgp.runtime.files import write

if TYPE_CHECKING:
    from fedpgp.studies.study import Study, StudyPart


def write_sweep(found: "Study", directory: Path) -> None:
    """Writes figures as .svg and .png, sweep.md, sweep.tex and, last of all, sweep.csv."""
    (part,) = found.parts
    write_figures(found, part, directory)
    one = table(found, part)
    write(directory / "sweep.md", f"{one.heading}\n\n{markdown(one)}".encode())
    write(directory / "sweep.tex", latex(one).encode())
    write(directory / "sweep.csv", to_csv(found.rows()).encode())


def table(found: "Study", part: "StudyPart") -> Table:
    """A row for each method at each point of a part: mean ± std over the seeds, of the last round."""
    comparisons = [found.comparisons[key] for key in part.cell_keys()]
    named = {name: title for one in comparisons for name, title in titles(one).items()}
    shown = list(dict.fromkeys(name for one in comparisons for name in columns(one.runs[0])))
    rows = []
    for key in part.cell_keys():
        for method in found.methods:
            figures = found.comparisons[key].mean(method)
            texts = [figure_text(*figures[name]) if name in figures else "" for name in shown]
            rows.append([TableCell(text) for text in (*key[1:], method, *texts)])
    return Table(
        f"{', '.join(part.axes)}: last round, percent, {seeds_text(found.seeds)}",
        [*part.axes, "method", *(named[name] for name in shown)],
        rows,
    )
