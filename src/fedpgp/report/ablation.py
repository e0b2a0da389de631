"""The tables and figures of ablations."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from fedpgp.evaluation.bootstrap import METRICS
from fedpgp.report.style import COLOURS, MARKERS, house_style, rendered, turn_labels, write_figure
from fedpgp.report.tables import caption, difference_text, figure_text, titles
from fedpgp.results.formats import Table, TableCell, latex, markdown, to_csv
from fedpgp.results.run import columns, spread
from fedpgp.runtime.files import write

if TYPE_CHECKING:
    from fedpgp.studies.ablation import Ablation

SHOWN = ("local", "base", "novel", "area")


def write_ablation(found: "Ablation", directory: Path) -> None:
    """Writes a figure for each study as .svg and .png, ablation.md, .tex and, last of all, ablation.csv."""
    for study in found.settings:
        write_figure(directory, study, partial(picture, found, study))
    tables = [table(found, study) for study in found.settings]
    write(directory / "ablation.md", "\n".join(f"{one.heading}\n\n{markdown(one)}" for one in tables).encode())
    write(directory / "ablation.tex", "\n".join(map(latex, tables)).encode())
    write(directory / "ablation.csv", to_csv(found.rows()).encode())


def table(found: "Ablation", study: str) -> Table:
    """A row for each setting: mean ± std over the seeds, and what it changes of CM and area."""
    named, shown = titles(found.standing), [name for name in METRICS if name in columns(found.standing.runs[0])]
    rows = []
    for label in found.settings[study]:
        runs = found.of(study, label)
        texts = [figure_text(*spread([run.results["final"][name] for run in runs])) for name in shown]
        change = found.against_standing(study, label)
        changes = ["as it stands", ""] if change is None else [difference_text(change[name]) for name in ("cm", "area")]
        rows.append([TableCell(label), *map(TableCell, [*texts, *changes])])
    return Table(
        f"{study} of {found.method}: {caption(found.standing)}",
        [study, *(named[name] for name in shown), "CM, change", "area, change"],
        rows,
        "change: against the config as it stands, with the 95 % interval of the paired bootstrap over test images.",
    )


def picture(found: "Ablation", study: str, suffix: str) -> bytes:
    """Local, Base, Novel and the area over the settings; bars are the std over seeds, dashes zero-shot CLIP."""
    labels = list(found.settings[study])
    named = titles(found.standing)
    zero_shot = found.standing.mean("zero-shot")
    with house_style():
        figure = Figure(figsize=(max(4.2, 0.62 * len(labels) + 1.8), 3.2), layout="constrained")
        axes = figure.add_subplot()
        places = range(len(labels))
        for i, name in enumerate(name for name in SHOWN if name in zero_shot):
            colour = COLOURS[(2, 1, 3, 0)[i]]
            spreads = [spread([run.results["final"][name] for run in found.of(study, label)]) for label in labels]
            axes.errorbar(
                [place + 0.04 * (i - 1.5) for place in places],
                [mean for mean, _ in spreads],
                [deviation or 0.0 for _, deviation in spreads],
                color=colour,
                marker=MARKERS[i],
                capsize=2,
                linewidth=1.2,
                label=named[name],
            )
            axes.axhline(zero_shot[name][0], color=colour, linewidth=0.8, linestyle=(0, (4, 3)))
        standing = [place for place, label in enumerate(labels) if found.settings[study][label] is found.standing]
        for place in standing:
            axes.axvspan(place - 0.3, place + 0.3, color="#000000", alpha=0.06, linewidth=0)
        axes.set_xticks(list(places), labels)
        if max(map(len, labels)) > 8:
            turn_labels(axes, 25)
        axes.set(xlabel=study, ylabel="%", title=f"{found.method}; dashed: zero-shot CLIP; grey: as it stands")
        axes.title.set_fontsize(8)
        axes.grid(alpha=0.3, axis="y")
        figure.legend(frameon=False, ncols=len(SHOWN), loc="outside lower center")
        return rendered(figure, suffix)
