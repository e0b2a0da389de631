"""The files of a comparison."""

from functools import partial
from pathlib import Path

from fedpgp.report import tables
from fedpgp.report.style import write_figure
from fedpgp.report.tradeoff import picture
from fedpgp.results import formats
from fedpgp.results.run import Comparison
from fedpgp.runtime.files import write, write_json


def write_comparison(comparison: Comparison, directory: Path) -> None:
    """Writes the tables as .md, .tex and .csv, the picture as .svg and .png and, last of all, comparison.json."""
    texts = {
        "comparison.md": markdown(comparison),
        "comparison.tex": formats.latex(tables.table(comparison)),
        "comparison.csv": tables.comparison_csv(comparison),
        "runs.csv": formats.to_csv(comparison.rows),
        "path.csv": tables.path_csv(comparison),
        "differences.csv": tables.differences_csv(comparison),
    }
    for name, text in texts.items():
        write(directory / name, text.encode())
    write_figure(directory, "comparison", partial(picture, comparison))
    write_json(directory / "comparison.json", comparison.as_json())


def all_tables(comparison: Comparison, reference: str | None = None) -> list[formats.Table]:
    """Those that are printed: the figures and, of several methods, the differences and the diagnosis."""
    found = [tables.table(comparison)]
    if len(comparison.methods) > 1:
        found += [tables.difference_table(comparison, reference), tables.diagnosis_table(comparison)]
    return found


def markdown(comparison: Comparison, reference: str | None = None) -> str:
    """All tables as Markdown."""
    return "\n".join(f"{one.heading}\n\n{formats.markdown(one)}" for one in all_tables(comparison, reference))
