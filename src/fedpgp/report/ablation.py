"""Tables and figures of ablations."""

from pathlib import Path
from typing import TYPE_CHECKING

from altair.typing import ChartType

from fedpgp.evaluation.bootstrap import METRICS
from fedpgp.report import charts, frames
from fedpgp.report.style import write_chart
from fedpgp.report.tables import caption, difference_text, figure_texts, text_table, titles, write_tables
from fedpgp.results.formats import Table, to_csv
from fedpgp.results.run import columns
from fedpgp.runtime.files import write

if TYPE_CHECKING:
    from fedpgp.studies.ablation import Ablation

SHOWN = ("local", "base", "novel", "area")


def write_ablation(ablation: "Ablation", directory: Path) -> None:
    """Write a figure for each study, then ablation.md and ablation.tex, and at the end ablation.csv."""
    for study in ablation.settings:
        write_chart(directory, study, chart(ablation, study))
    write_tables(directory, "ablation", [table(ablation, study) for study in ablation.settings])
    write(directory / "ablation.csv", to_csv(ablation.rows()).encode())


def table(ablation: "Ablation", study: str) -> Table:
    """Return a table with a row for each setting: mean ± std over the seeds, and the changes of CM and area."""
    named, shown = titles(ablation.standing), [name for name in METRICS if name in columns(ablation.standing.runs[0])]
    rows = []
    for label in ablation.settings[study]:
        texts = figure_texts([ablation.of(study, label)], shown)
        change = ablation.against_standing(study, label)
        changes = ["as it stands", ""] if change is None else [difference_text(change[name]) for name in ("cm", "area")]
        rows.append([label, *texts, *changes])
    return text_table(
        f"{study} of {ablation.method}: {caption(ablation.standing)}",
        [study, *(named[name] for name in shown), "CM, change", "area, change"],
        rows,
        "change: difference from the config without changes, with its 95 % interval (paired bootstrap over images).",
    )


def chart(ablation: "Ablation", study: str) -> ChartType:
    """Return a chart of Local, Base, Novel and the area of each setting; bars are the standard deviation over seeds."""
    settings = ablation.settings[study]
    runs = [(ablation.method, label, run) for label in settings for run in ablation.of(study, label)]
    points: list[frames.Point] = [(method, label, run.results["final"]) for method, label, run in runs]
    points += [("zero-shot", None, run.results["final"]) for run in ablation.standing.of("zero-shot")]
    frame = frames.spreads("label", points, frames.panels(titles(ablation.standing), SHOWN))
    standing = [label for label in settings if ablation.stands(study, label)]
    return charts.curves(frame, study, title=ablation.method, standing=standing)
