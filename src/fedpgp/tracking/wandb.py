"""Weights & Biases, on this machine alone unless its mode is another."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from fedpgp.config import ExperimentConfig
from fedpgp.results.run import Run
from fedpgp.tracking.base import Tracker, needed
from fedpgp.tracking.figures import final, settings


class WandB(Tracker[Any]):
    """One of W&B's runs for each run, in a group for each method: settings as its config, every scalar over the rounds.

    mode: "offline" writes below directory/wandb, from where `wandb sync` uploads; "online" needs `wandb login` before;
    None takes what WANDB_MODE says, or else offline. directory: None takes WANDB_DIR, or else the working directory.
    A run that goes on after a stop is a run of its own, with the rounds that were left. Of code, a git repository and
    the machine nothing goes with it but what W&B always notes: versions, the platform, and which known packages are
    loaded.
    """

    kind, target = "wandb", "PROJECT"

    def __init__(
        self, project: str, mode: Literal["offline", "online"] | None = None, directory: Path | str | None = None
    ):
        super().__init__()
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else errors go to its makers, also offline
        self._wandb = needed("wandb", "wandb")
        self._project, self._directory = project, directory
        self._mode = mode or os.environ.get("WANDB_MODE", "offline")

    def open(self, method: str, seed: int, config: ExperimentConfig) -> Any:
        entry = self._wandb.init(
            project=self._project,
            name=f"{method}, seed {seed}",
            group=method,
            config=settings(config, method, seed),
            mode=self._mode,
            dir=None if self._directory is None else str(self._directory),
            reinit="create_new",
            settings=self._wandb.Settings(
                silent=True,
                host="-",  # else the machine's name
                console="off",
                save_code=False,
                disable_git=True,
                x_disable_stats=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
            ),
        )
        entry.define_metric("*", step_metric="round")  # its own steps count what is logged
        return entry

    def log(self, entry: Any, figures: Mapping[str, float], number: int) -> None:
        entry.log({"round": number, **figures})

    def end(self, entry: Any, run: Run) -> None:
        figures = final(run)
        entry.summary.update(figures)
        rows = [[*name.split("/", 1), value] for name, value in figures.items()]
        entry.log({"table": self._wandb.Table(columns=["part", "metric", "percent"], data=rows)})
        entry.finish()

    def abandon(self, entry: Any) -> None:
        entry.finish(exit_code=1)
