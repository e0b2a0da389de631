"""What is searched, and the directory that keeps it."""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fedpgp.config import ExperimentConfig
from fedpgp.errors import ConfigError, DataError, OutputError
from fedpgp.evaluation.metrics import own_images
from fedpgp.methods.plugins import fingerprint
from fedpgp.results.run_store import TUNING
from fedpgp.runs.execution import Execution
from fedpgp.runs.setup import RunSetup, open_setup
from fedpgp.runtime.files import write
from fedpgp.runtime.version import __version__
from fedpgp.studies.tuning.space import Space, describe
from fedpgp.studies.tuning.trials import Objective, Trial

MINIMUM = 10  # validation images of every client's own classes, below which a choice would be luck
TRIALS, CONFIG = "trials.jsonl", "config.toml"


@dataclass(frozen=True)
class SearchPlan:
    """What is searched. config: as it was given; spaces: of each method."""

    config: ExperimentConfig
    spaces: Mapping[str, Space]
    trials: int
    seeds: Sequence[int]
    objective: Objective

    @property
    def methods(self) -> list[str]:
        return list(self.spaces)

    @cached_property
    def validation(self) -> ExperimentConfig:
        """The same task within the base classes, on validation images.

        It has half of the clients, so that each has as many classes: half of the base classes play the novel ones.
        """
        return replace(
            self.config,
            task=replace(self.config.task, evaluate_on="validation", clients=max(1, self.config.task.clients // 2)),
            federation=replace(self.config.federation, eval_every=self.config.federation.rounds, path_points=1),
        )


@contextmanager
def prepared(plan: SearchPlan, execution: Execution) -> Iterator[RunSetup]:
    """Everything is checked, and all images are encoded, before the first trial."""
    if plan.config.task.protocol != "base-to-novel":
        raise ConfigError(
            f"task.protocol must be base-to-novel to choose settings, got {plan.config.task.protocol}: tune there, and"
            " take the settings"
        )
    with open_setup(plan.validation, plan.methods, plan.seeds, execution) as setup:
        for seed, task in setup.tasks.items():
            for client, own in zip(task.clients, own_images(task, task.clients, "base"), strict=True):
                if own.sum() < MINIMUM:
                    names = ", ".join(task.class_names[label] for label in client.classes)
                    raise DataError(
                        f"client {client.id} (seed {seed}; {names}) has {own.sum()} validation images, and a choice"
                        f" needs at least {MINIMUM}: give the data set a larger validation split, or have fewer clients"
                    )
        yield setup


def recorded(plan: SearchPlan, setup: RunSetup) -> dict[str, Any]:
    """What must be the same when a search goes on, in JSON's types."""
    return {
        "fedpgp": __version__,
        "objective": plan.objective,
        "seeds": list(plan.seeds),
        "trials": plan.trials,
        "spaces": {name: describe(space) for name, space in plan.spaces.items()},
        "code": {name: fingerprint(plan.config.methods[name]) for name in plan.methods},
        "config": tomllib.loads(plan.config.to_toml()),
        "checkpoint": setup.backbone.fingerprint,
        "images": {"train": setup.source.train.fingerprint, "validation": setup.source.validation.fingerprint},
    }


def check_same(directory: Path, record: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises OutputError where a search would go on with something else than it was begun with."""
    for what, before in record.items():
        if what != "trials" and now.get(what) != before:
            raise OutputError(
                f"{directory} holds a search with {what} {_short(before)}, here it is {_short(now.get(what))}:"
                " go on with what it was begun with, or search again into another directory"
            )


def read_plan(directory: Path) -> dict[str, Any]:
    """What `recorded` wrote; raises OutputError where there is none, or it is another version's."""
    path = directory / TUNING
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not {"fedpgp", "spaces", "trials", "seeds", "objective"} <= record.keys():
            raise ValueError("it is the plan of something else")
    except FileNotFoundError as error:
        raise OutputError(f"{directory} holds no search; name a directory that fedpgp tune wrote") from error
    except (OSError, ValueError, AttributeError) as error:
        raise OutputError(f"{path} is no plan of a search: {error}; search again into another directory") from error
    if record["fedpgp"] != __version__:
        raise OutputError(
            f"{directory} holds a search of fedpgp {record['fedpgp']}, here is {__version__}: go on with that version,"
            " or search again into another directory"
        )
    return record


def _short(content: Any) -> str:
    text = str(content)
    return text if len(text) < 60 else text[:57] + "…"


def known_trials(directory: Path) -> list[Trial]:
    """The trials that are done. What a kill left of a last line is cut off, so that the next begins one of its own."""
    path = directory / TRIALS
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write(path, whole)
    try:
        return [Trial(**json.loads(line)) for line in whole.splitlines()]
    except (ValueError, TypeError) as error:
        raise OutputError(f"{path} is damaged: {error}; search again into another directory") from error
