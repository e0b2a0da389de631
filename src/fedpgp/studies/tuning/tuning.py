"""A tuning study: what is searched of which methods, the trials that are done, and the config that they give."""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

from fedpgp.config import ExperimentConfig
from fedpgp.errors import ConfigError, DataError
from fedpgp.evaluation.metrics import own_images
from fedpgp.methods.plugins import fingerprint
from fedpgp.results.formats import to_csv
from fedpgp.runs.execution import Execution
from fedpgp.runs.setup import RunSetup, open_setup
from fedpgp.runtime.version import __version__
from fedpgp.studies.tuning.space import Space, Value, describe

MINIMUM = 10  # validation images of every client's own classes, below which a choice would be luck


Objective = Literal["local", "base", "novel", "hm", "cm"]
FIGURES: tuple[Objective, ...] = get_args(Objective)


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

    def describe(self, objective: Objective) -> str:
        """Return the trial in a line."""
        result = "failed" if self.value is None else f"{objective.upper()} {self.value:.1f}"
        return f"{self.method} {self.number}: {result} with {settings_text(self.settings, ' ')}"


@dataclass(frozen=True)
class Tuning:
    """A search for the settings of methods, with as many trials of each.

    before: the config that was given; spaces: of each method; count: of its trials; seeds: of every trial;
    trials: those that are done, by method and number.
    """

    before: ExperimentConfig
    spaces: Mapping[str, Space]
    count: int
    seeds: Sequence[int]
    objective: Objective
    trials: Sequence[Trial] = ()

    @property
    def methods(self) -> list[str]:
        return list(self.spaces)

    def of(self, method: str) -> list[Trial]:
        return [trial for trial in self.trials if trial.method == method]

    def best(self, method: str) -> Trial | None:
        """Return the trial with the highest value, the first of equal ones; None where all of them failed."""
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

    @cached_property
    def validation(self) -> ExperimentConfig:
        """The same task within the base classes, on validation images.

        It has half of the clients, so that each has as many classes: half of the base classes play the novel ones.
        """
        task, federation = self.before.task, self.before.federation
        return replace(
            self.before,
            task=replace(task, evaluate_on="validation", clients=max(1, task.clients // 2)),
            federation=replace(federation, eval_every=federation.rounds, path_points=1),
        )

    @contextmanager
    def prepared(self, execution: Execution) -> Iterator[RunSetup]:
        """Check everything, and encode all images, before the first trial."""
        if self.before.task.protocol != "base-to-novel":
            raise ConfigError(
                f"task.protocol must be base-to-novel to choose settings, got {self.before.task.protocol}: tune there,"
                " and take the settings"
            )
        with open_setup(self.validation, self.methods, self.seeds, execution) as setup:
            for seed, task in setup.tasks.items():
                for client, own in zip(task.clients, own_images(task, task.clients, "base"), strict=True):
                    if own.sum() < MINIMUM:
                        names = ", ".join(task.class_names[label] for label in client.classes)
                        raise DataError(
                            f"client {client.id} (seed {seed}; {names}) has {own.sum()} validation images, and a choice"
                            f" needs at least {MINIMUM}: give the data set a larger validation split, or have fewer"
                            " clients"
                        )
            yield setup

    def record(self, setup: RunSetup) -> dict[str, Any]:
        """Return what must be the same when a search goes on, in JSON's types."""
        return {
            "fedpgp": __version__,
            "objective": self.objective,
            "seeds": list(self.seeds),
            "trials": self.count,
            "spaces": {name: describe(space) for name, space in self.spaces.items()},
            "code": {name: fingerprint(self.before.methods[name]) for name in self.methods},
            "config": tomllib.loads(self.before.to_toml()),
            "checkpoint": setup.backbone.fingerprint,
            "images": {"train": setup.source.train.fingerprint, "validation": setup.source.validation.fingerprint},
        }

    def as_json(self) -> dict[str, Any]:
        """Return the one object that `--json` prints."""
        best = {method: self.best(method) for method in self.methods}
        return {
            "objective": self.objective,
            "best": {method: None if trial is None else asdict(trial) for method, trial in best.items()},
            "trials": [asdict(trial) for trial in self.trials],
        }

    def as_csv(self) -> str:
        """Return a row for every trial."""
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
                for trial in self.trials
            ]
        )


def settings_text(settings: Mapping[str, Value], separator: str) -> str:
    """Return settings in few digits."""
    values = {field: f"{value:.3g}" if isinstance(value, float) else value for field, value in settings.items()}
    return ", ".join(f"{field}{separator}{value}" for field, value in values.items())
