"""Cells of a study. All cells are checked before any work, then run one after another; a stopped study continues."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpgp.backbone import configured_backbone
from fedpgp.config import ExperimentConfig
from fedpgp.data.tasks import Task
from fedpgp.errors import CheckpointError, ConfigError, DataError, FedPGPError, combined, located
from fedpgp.methods import Method
from fedpgp.methods.plugins import is_registered
from fedpgp.reporting import Reporter, hears_notices
from fedpgp.results.run import Run
from fedpgp.runs.choices import chosen_methods
from fedpgp.runs.comparison_plan import duration
from fedpgp.runs.execution import Execution
from fedpgp.runs.run import compare, resume
from fedpgp.runs.setup import checked


@dataclass(frozen=True)
class StudyCell:
    """Some methods on one config.

    Attributes
    ----------
    place
        Directory of the cell, relative to the directory of the study.
    name
        Description of the cell, for messages.
    config
        Config of the cell.
    methods
        Names of the methods.
    """

    place: str
    name: str
    config: ExperimentConfig
    methods: tuple[str, ...]

    @property
    def chosen(self) -> list[str | Method]:
        """The methods: names, and methods that their name is not enough to find."""
        return [name if is_registered(name) else self.config.methods[name] for name in self.methods]

    def is_finished(self, directory: Path) -> bool:
        """Return whether all results of the cell exist below `directory`, the directory of the study."""
        return (directory / self.place / "comparison.json").exists()

    def work(self, task: Task) -> float:
        """Return a number that is proportional to the time of the cell: class names × (local steps + evaluations)."""
        settings = self.config.federation
        steps = sum(math.ceil(len(client.train) / settings.batch_size) for client in task.clients)
        a_round = settings.participation * settings.local_epochs * steps + len(task.clients) / settings.eval_every
        return settings.rounds * a_round * len(task.base) * len(self.methods)


def check_cells(cells: Sequence[StudyCell], seeds: Sequence[int]) -> dict[str, float]:
    """Return the work of each cell by its place. Nothing is encoded or trained.

    Parameters
    ----------
    cells
        Cells to check.
    seeds
        Seeds of every cell.

    Raises
    ------
    ConfigError
        If a cell cannot be run. The message has a line for each problem, with the number of cells that have it.
    """
    work: dict[str, float] = {}
    faults: dict[str, tuple[FedPGPError, list[str]]] = {}
    for cell in cells:
        try:
            chosen_methods(cell.chosen, cell.config, ())
            _, tasks, _ = checked(cell.config, cell.methods, seeds)
            work[cell.place] = cell.work(tasks[seeds[0]])
        except (ConfigError, DataError, CheckpointError) as error:
            for text, fault in {str(fault): fault for fault in [error, *_checkpoint_faults(cell.config)]}.items():
                faults.setdefault(text, (fault, []))[1].append(cell.name)
    if faults:
        raise combined([located(fault, _first_of(names)) for fault, names in faults.values()])
    return work


def _checkpoint_faults(config: ExperimentConfig) -> list[CheckpointError]:
    """Return the error of the checkpoint of a cell that has failed already, so that both errors are reported."""
    try:
        configured_backbone(config.backbone)
    except CheckpointError as error:
        return [error]
    return []


def _first_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def run_cells(cells: Sequence[StudyCell], seeds: Sequence[int], directory: Path, execution: Execution) -> None:
    """Run the unfinished cells one by one, and report the estimated remaining time after each.

    The estimate uses the work that `check_cells` returns and the time of the cells that this call has started.

    Parameters
    ----------
    cells
        All cells of the study.
    seeds
        Seeds of every cell.
    directory
        Directory of the study.
    execution
        Options of the execution, and the reporter.
    """
    left = check_cells([cell for cell in cells if not cell.is_finished(directory)], seeds)
    reporter, seconds, done = execution.listener, 0.0, 0.0
    printed: set[str] = set()
    for cell in cells:
        if cell.place not in left:
            continue
        reporter.progress("cells", len(cells) - len(left), len(cells), cell.name)
        place, begun, started = directory / cell.place, (directory / cell.place).exists(), time.perf_counter()
        options = execution.heard_by(
            _CellReporter(cell.name, reporter, printed) if hears_notices(reporter) else reporter
        )
        if begun:
            resume(place, methods=[method for method in cell.chosen if isinstance(method, Method)], **options)
        else:
            compare(cell.chosen, seeds, config=cell.config, output=place, **options)
        work = left.pop(cell.place)
        if not begun:
            seconds, done = seconds + time.perf_counter() - started, done + work
        remaining = f"about {duration(seconds * sum(left.values()) / done)} left" if left and done else ""
        reporter.progress("cells", len(cells) - len(left), len(cells), remaining)


class _CellReporter:
    """Reporter of one cell: it adds the name of the cell. Notices in `printed` are not repeated."""

    def __init__(self, cell: str, reporter: Reporter, printed: set[str]):
        self._cell, self._reporter, self._printed = cell, reporter, printed

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None:
        self._reporter.progress(f"{self._cell}: {what}", done, total, detail)

    def notice(self, text: str) -> None:
        if text not in self._printed:
            self._printed.add(text)
            self._reporter.notice(f"{self._cell}: {text}")

    def begin(self, method: str, seed: int, config: ExperimentConfig) -> None:
        self._reporter.begin(method, seed, config)

    def round(self, method: str, seed: int, record: Mapping[str, Any]) -> None:
        self._reporter.round(method, seed, record)

    def finish(self, run: Run) -> None:
        self._reporter.finish(run)
