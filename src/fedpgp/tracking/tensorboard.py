"""Tracker for TensorBoard, which writes event files."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from textwrap import indent
from typing import Any

from fedpgp.config import ExperimentConfig
from fedpgp.errors import ConfigError
from fedpgp.results.run import Run
from fedpgp.tracking.base import Tracker, needed
from fedpgp.tracking.figures import final, settings, table


class TensorBoard(Tracker[Any]):
    """Tracker that writes a directory METHOD/seed-SEED for each run, for `tensorboard --logdir`.

    It writes the config as text, the scalars of every round, and at the end the table, and the settings with the final
    figures for the tab HPARAMS. A run that continues after a stop continues the same curves.

    Parameters
    ----------
    directory
        Directory for all runs.

    Raises
    ------
    ConfigError
        If the directory cannot be written.
    """

    kind, target = "tensorboard", "DIR"

    def __init__(self, directory: Path | str):
        super().__init__()
        needed("tensorboard", "tensorboard")
        self._writer = needed("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._hparams = needed("torch.utils.tensorboard.summary", "tensorboard").hparams
        self._directory = Path(directory)
        self._used: Counter[tuple[str, int]] = Counter()
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the directory cannot be written: {error.strerror}",
                where=f"--track tensorboard:{directory}",
                remedy="Choose another directory",
            ) from error

    def open(self, method: str, seed: int, config: ExperimentConfig) -> Any:
        self._used[method, seed] += 1
        number = f"-{self._used[method, seed]}" if self._used[method, seed] > 1 else ""  # another cell of a grid
        writer = self._writer(str(self._directory / method / f"seed-{seed}{number}"))
        writer.add_text("config", indent(config.to_toml(), "    "), 0)  # a code block in Markdown
        writer.flush()
        return writer

    def log(self, entry: Any, figures: Mapping[str, float], number: int) -> None:
        for name, value in figures.items():
            entry.add_scalar(name, value, number)
        entry.flush()

    def end(self, entry: Any, run: Run) -> None:
        entry.add_text("table", table(run), run.results["rounds"])
        figures = final(run)
        for summary in self._hparams(settings(run.config, run.method, run.seed), figures):
            entry.file_writer.add_summary(summary)  # `add_hparams` would create another directory
        self.log(entry, figures, run.results["rounds"])
        entry.close()

    def abandon(self, entry: Any) -> None:
        entry.close()
