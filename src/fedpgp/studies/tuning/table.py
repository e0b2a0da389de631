"""Table of the results of a search."""

from fedpgp.results.formats import Table, TableCell
from fedpgp.studies.tuning.tuning import FIGURES, Tuning, settings_text


def table(tuning: Tuning) -> Table:
    """Return a table with a row for each method: its best trial, and the value of the config before the search."""
    objective, rows = tuning.objective, []
    shown = [objective, *(name for name in FIGURES if name != objective)]
    for method in tuning.methods:
        trials, best = tuning.of(method), tuning.best(method)
        before, failed = trials[0].value, sum(trial.value is None for trial in trials)
        texts = [method, "" if best is None else str(best.number), "failed" if before is None else f"{before:.1f}"]
        texts += ["" if best is None else f"{best.figures[name]:.1f}" for name in shown]
        settings = "all trials failed; the config is unchanged" if best is None else settings_text(best.settings, " = ")
        rows.append([TableCell(text) for text in [*texts, str(failed or ""), settings]])
    return Table(
        f"best of {tuning.count} trials of each method on validation images, percent",
        ["method", "trial", "before", *(name.upper() for name in shown), "failed", "settings"],
        rows,
        f"before: {objective.upper()} of trial 0, which has the settings of the given config.",
    )
