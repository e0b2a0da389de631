"""Weights & Biases."""

from collections.abc import Mapping
from typing import Any

import wandb

from fedpgp.laboratory import Silent
from fedpgp.results import Run
from fedpgp.tracking.numbers import numbers, settings


class WandB(Silent):
    """A run of a project for each run. Nothing is sent unless WANDB_MODE=online is set: `wandb sync` does it later."""

    def __init__(self, project: str):
        self._project, self._runs = project, dict[tuple[str, int], Any]()

    def round(self, method: str, seed: int, record: Mapping[str, Any]) -> None:
        self._run(method, seed).log(numbers(record), step=record["round"])

    def finish(self, run: Run) -> None:
        made = self._run(run.method, run.seed)
        made.config.update(settings(run))
        made.summary.update(numbers(run.results["final"], "final/"))
        made.finish()
        del self._runs[run.method, run.seed]

    def _run(self, method: str, seed: int) -> Any:
        import os

        if (method, seed) not in self._runs:
            mode: Any = os.environ.get("WANDB_MODE", "offline")
            made = wandb.init(project=self._project, name=f"{method}, seed {seed}", mode=mode, reinit="create_new")
            self._runs[method, seed] = made
        return self._runs[method, seed]
