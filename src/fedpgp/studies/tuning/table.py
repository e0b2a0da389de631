"""What a search found, as a table."""

from fedpgp.results.formats import Table, TableCell
from fedpgp.studies.tuning.trials import FIGURES, Trial, value_text
from fedpgp.studies.tuning.tuning import Tuning


def table(found: Tuning) -> Table:
    """A row for each method: its best trial, and what its config gave before."""
    objective, rows = found.objective, []
    for method in found.methods:
        trials, best = found.of(method), found.best(method)
        failed = sum(trial.value is None for trial in trials)
        settings = "all failed: the config stays" if best is None else _settings(best)
        cells = [
            method,
            "" if best is None else str(best.number),
            _figure(trials[0].value),
            *("" if best is None else _figure(best.figures[name]) for name in (objective, *_others(objective))),
            str(failed or ""),
            settings,
        ]
        rows.append([TableCell(text) for text in cells])
    return Table(
        f"best of {len(found.trials) // len(found.methods)} trials of each method on validation images, percent",
        [
            "method",
            "trial",
            "before",
            *(name.upper() for name in (objective, *_others(objective))),
            "failed",
            "settings",
        ],
        rows,
        f"before: {objective.upper()} of the config as it stood, trial 0.",
    )


def _others(objective: str) -> list[str]:
    return [name for name in FIGURES if name != objective]


def _settings(trial: Trial) -> str:
    return ", ".join(f"{field} = {value_text(value)}" for field, value in trial.settings.items())


def _figure(value: float | None) -> str:
    return "failed" if value is None else f"{value:.1f}"
