"""A search for hyperparameters: the search spaces, the finished trials, and the resulting config."""

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

MINIMUM = 10  # least number of validation images of a client's own classes; with fewer, a choice would be luck


Objective = Literal["local", "base", "novel", "hm", "cm"]
FIGURES: tuple[Objective, ...] = get_args(Objective)


@dataclass(frozen=True)
class Trial:
    """Settings of a method, and their results.

    Attributes
    ----------
    method
        Name of the method.
    number
        Number of the trial; trial 0 has the settings of the given config.
    settings
        Values of the fields that are searched.
    value
        The objective; None if the trial failed.
    figures
        Means over the seeds of the metrics of the last round on validation images.
    seconds
        Time of the trial.
    reason
        Reason of the failure; empty if the trial succeeded.
    """

    method: str
    number: int
    settings: Mapping[str, Value]
    value: float | None
    figures: Mapping[str, float]
    seconds: float
    reason: str = ""

    def describe(self, objective: Objective) -> str:
        """Return the trial in one line."""
        result = "failed" if self.value is None else f"{objective.upper()} {self.value:.1f}"
        return f"{self.method} {self.number}: {result} with {settings_text(self.settings, ' ')}"


@dataclass(frozen=True)
class Tuning:
    """A search for hyperparameters, with the same number of trials for each method.

    Attributes
    ----------
    before
        The given config.
    spaces
        Search space of each method.
    count
        Number of trials of each method.
    seeds
        Seeds of every trial.
    objective
        Metric that is maximized.
    trials
        Finished trials, in the order of methods and numbers.
    """

    before: ExperimentConfig
    spaces: Mapping[str, Space]
    count: int
    seeds: Sequence[int]
    objective: Objective
    trials: Sequence[Trial] = ()

    @property
    def methods(self) -> list[str]:
        """Names of the methods."""
        return list(self.spaces)

    def of(self, method: str) -> list[Trial]:
        """Return the finished trials of a method."""
        return [trial for trial in self.trials if trial.method == method]

    def best(self, method: str) -> Trial | None:
        """Return the first trial with the highest value, or None if all trials failed."""
        values = {trial.number: trial.value for trial in self.of(method) if trial.value is not None}
        return None if not values else self.of(method)[max(values, key=values.__getitem__)]

    @cached_property
    def config(self) -> ExperimentConfig:
        """The given config with the best settings of each method, unless all trials of the method failed."""
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
        """Config of the trials: the same task, restricted to base classes and validation images.

        Half of the base classes serve as novel classes. The number of clients is halved, too, so that the number of
        classes of a client does not change.
        """
        task, federation = self.before.task, self.before.federation
        return replace(
            self.before,
            task=replace(task, evaluate_on="validation", clients=max(1, task.clients // 2)),
            federation=replace(federation, eval_every=federation.rounds, path_points=1),
        )

    @contextmanager
    def prepared(self, execution: Execution) -> Iterator[RunSetup]:
        """Check everything and encode all images before the first trial."""
        if self.before.task.protocol != "base-to-novel":
            raise ConfigError(
                where="task.protocol",
                allowed="base-to-novel in a search",
                got=self.before.task.protocol,
                remedy="Search with base-to-novel, and use the result with the other protocol",
            )
        with open_setup(self.validation, self.methods, self.seeds, execution) as setup:
            for seed, task in setup.tasks.items():
                for client, own in zip(task.clients, own_images(task, task.clients, "base"), strict=True):
                    if own.sum() < MINIMUM:
                        names = ", ".join(task.class_names[label] for label in client.classes)
                        raise DataError(
                            f"a search needs {MINIMUM} or more validation images of {names}, not {own.sum()}",
                            where=f"client {client.id} (seed {seed})",
                            got=int(own.sum()),
                            remedy="Use a larger validation split, or fewer clients, such as --set"
                            f" task.clients={max(1, self.before.task.clients // 2)}",
                        )
            yield setup

    def record(self, setup: RunSetup) -> dict[str, Any]:
        """Return what must not change before a search is continued, in the types of JSON."""
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
        """Return the object that `--json` prints."""
        best = {method: self.best(method) for method in self.methods}
        return {
            "objective": self.objective,
            "best": {method: None if trial is None else asdict(trial) for method, trial in best.items()},
            "trials": [asdict(trial) for trial in self.trials],
        }

    def as_csv(self) -> str:
        """Return CSV text with a row for every trial."""
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
    """Return settings as text, with numbers rounded to three digits."""
    values = {field: f"{value:.3g}" if isinstance(value, float) else value for field, value in settings.items()}
    return ", ".join(f"{field}{separator}{value}" for field, value in values.items())
