"""Tracker for Weights & Biases, which by default writes only to this machine."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from fedpgp.config import ExperimentConfig
from fedpgp.results.run import Run
from fedpgp.tracking.base import Tracker, needed
from fedpgp.tracking.figures import final, settings


class WandB(Tracker[Any]):
    """Tracker that writes a run of W&B for each run, in a group for each method: settings as config, and all scalars.

    A run that continues after a stop becomes another run of W&B, with the remaining rounds. The tracker sends nothing
    about the code, the git repository and the machine, except what W&B always records: versions, the platform, and
    which known packages are loaded.

    Parameters
    ----------
    project
        Name of the project in W&B.
    mode
        "offline" writes to directory/wandb, which `wandb sync` can upload. "online" needs `wandb login` first. None
        means WANDB_MODE, or offline if it is not set.
    directory
        Directory to write to. None means WANDB_DIR, or the working directory if it is not set.
    """

    kind, target = "wandb", "PROJECT"

    def __init__(
        self, project: str, mode: Literal["offline", "online"] | None = None, directory: Path | str | None = None
    ):
        super().__init__()
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # otherwise W&B's makers get its errors, even offline
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
                host="-",  # otherwise the machine's name
                console="off",
                save_code=False,
                disable_git=True,
                x_disable_stats=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
            ),
        )
        entry.define_metric("*", step_metric="round")  # W&B's own steps count the calls of `log`
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
