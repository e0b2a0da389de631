"""What a search finds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from fedpgp.config import ExperimentConfig
from fedpgp.errors import ConfigError
from fedpgp.results.formats import to_csv
from fedpgp.studies.tuning.space import Value

Objective = Literal["cm", "hm", "local", "base", "novel"]
OBJECTIVES: tuple[Objective, ...] = ("cm", "hm", "local", "base", "novel")
FIGURES = ("local", "base", "novel", "hm", "cm")


@dataclass(frozen=True)
class Trial:
    """One setting of a method, and what it gave.

    number: 0 is the config as it stands. figures: means over the seeds, of the last round on validation images; value:
    the objective among them, None where the trial failed, with its reason.
    """

    method: str
    number: int
    settings: Mapping[str, Value]
    value: float | None
    figures: Mapping[str, float]
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class Tuning:
    """What a search found. before: the config that was given."""

    trials: Sequence[Trial]
    before: ExperimentConfig
    objective: Objective

    @cached_property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(trial.method for trial in self.trials))

    def of(self, method: str) -> list[Trial]:
        return [trial for trial in self.trials if trial.method == method]

    def best(self, method: str) -> Trial | None:
        """The trial with the highest value, the first of equal ones; None where all of them failed."""
        values = {trial.number: trial.value for trial in self.of(method) if trial.value is not None}
        return None if not values else self.of(method)[max(values, key=values.__getitem__)]

    @cached_property
    def config(self) -> ExperimentConfig:
        """The one that was given with the best setting of each method; one that failed throughout keeps its own."""
        methods, origins = dict(self.before.methods), dict(self.before.origins)
        for name in self.methods:
            if best := self.best(name):
                methods[name] = replace(methods[name], **best.settings)
                which = f"trial {best.number} of {len(self.of(name))}"
                why = f"{which}: {self.objective.upper()} {best.value:.1f} on validation"
                origins |= {f"{name}.{field}": why for field in best.settings}
        return replace(self.before, methods=methods, origins=origins)

    def as_json(self) -> dict[str, Any]:
        """The one object that `--json` prints."""
        best = {method: self.best(method) for method in self.methods}
        return {
            "objective": self.objective,
            "best": {method: None if trial is None else asdict(trial) for method, trial in best.items()},
            "trials": [asdict(trial) for trial in self.trials],
        }


def in_words(trial: Trial, objective: str) -> str:
    """A trial in a line."""
    settings = ", ".join(f"{field} {value_in_words(value)}" for field, value in trial.settings.items())
    found = "failed" if trial.value is None else f"{objective.upper()} {trial.value:.1f}"
    return f"{trial.method} {trial.number}: {found} with {settings}"


def value_in_words(value: Value) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def csv_of(trials: Sequence[Trial]) -> str:
    return to_csv(
        [
            {
                "method": trial.method,
                "trial": trial.number,
                "state": "failed" if trial.value is None else "complete",
                "value": trial.value,
                **{name: trial.figures.get(name) for name in FIGURES},
                "settings": json.dumps(trial.settings),
                "seconds": trial.seconds,
                "reason": trial.reason,
            }
            for trial in trials
        ]
    )


def checked_objective(name: str) -> Objective:
    """Raises ConfigError for one that is unknown."""
    for known in OBJECTIVES:
        if name == known:
            return known
    raise ConfigError(f"objective must be one of {', '.join(OBJECTIVES)}, got {name!r}")
