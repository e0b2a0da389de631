"""Files of a comparison."""

from pathlib import Path

from fedpgp.report import charts, frames, tables
from fedpgp.report.page.brief import comparison_page
from fedpgp.report.style import write_chart
from fedpgp.results import formats
from fedpgp.results.run import Comparison
from fedpgp.runtime.files import write, write_json


def write_comparison(comparison: Comparison, directory: Path) -> None:
    """Write the tables as .md, .tex and .csv, the trade-off as a figure, a page, and at the end comparison.json."""
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
    write_chart(directory, "comparison", charts.tradeoff(frames.tradeoff(comparison), tables.others_title(comparison)))
    svg = (directory / "comparison.svg").read_text(encoding="utf-8")
    write(directory / "comparison.html", comparison_page(comparison, svg).encode())
    write_json(directory / "comparison.json", comparison.as_json())


def all_tables(comparison: Comparison, reference: str | None = None) -> list[formats.Table]:
    """Return the tables of comparison.md: the metrics and, for several methods, the differences and the diagnosis."""
    shown = [tables.table(comparison)]
    if len(comparison.methods) > 1:
        shown += [tables.difference_table(comparison, reference), tables.diagnosis_table(comparison)]
    return shown


def markdown(comparison: Comparison, reference: str | None = None) -> str:
    """All tables as Markdown."""
    return tables.markdown(all_tables(comparison, reference))
