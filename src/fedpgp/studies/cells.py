"""The cells of a grid: all checked before any work, then run one after another, and gone on with after a stop."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedpgp.backbone import load_backbone
from fedpgp.config import ExperimentConfig
from fedpgp.data.tasks import Task
from fedpgp.errors import CheckpointError, ConfigError, DataError, OutputError
from fedpgp.reporting import Reporter, hears_notices
from fedpgp.results.run import Comparison, Run
from fedpgp.results.run_store import load_comparison
from fedpgp.runs.comparison_plan import duration
from fedpgp.runs.execution import Execution
from fedpgp.runs.run import compare, resume
from fedpgp.runs.setup import checked


@dataclass(frozen=True)
class StudyCell:
    """Methods on one config. place: its directory below that of the grid; name: what it is, for messages."""

    place: str
    name: str
    config: ExperimentConfig
    methods: tuple[str, ...]

    def is_finished(self, directory: Path) -> bool:
        """directory: of the grid."""
        return (directory / self.place / "comparison.json").exists()


def distinct(cells: Mapping[Any, StudyCell]) -> list[StudyCell]:
    """Each cell once, in order."""
    return list({cell.place: cell for cell in cells.values()}.values())


@contextmanager
def naming(cell: str) -> Iterator[None]:
    """Says of which cell a config or a task cannot be."""
    try:
        yield
    except (ConfigError, DataError, CheckpointError) as error:
        raise ConfigError(f"{cell}: {error}") from error


def check_cells(cells: Sequence[StudyCell], seeds: Sequence[int]) -> dict[str, float]:
    """By place, how much work a cell is: the texts that its text encoder reads. Nothing is encoded or trained.

    Raises ConfigError with a line for each thing that stands in the way, and how many cells it concerns.
    """
    work: dict[str, float] = {}
    faults: dict[str, list[str]] = {}
    for cell in cells:
        try:
            _, tasks, _ = checked(cell.config, cell.methods, seeds)
            work[cell.place] = _texts(cell, tasks[seeds[0]])
        except (ConfigError, DataError, CheckpointError) as error:
            for fault in dict.fromkeys([str(error), *_checkpoint_faults(cell.config)]):
                faults.setdefault(fault, []).append(cell.name)
    if faults:
        raise ConfigError("\n".join(f"{_first_of(names)}: {fault}" for fault, names in faults.items()))
    return work


def _checkpoint_faults(config: ExperimentConfig) -> list[str]:
    """What is wrong with the checkpoint of a cell that fails anyway, so that it is told beside what else is missing."""
    try:
        load_backbone(config.backbone.checkpoint, config.backbone.precision, config.backbone.device)
    except CheckpointError as error:
        return [str(error)]
    return []


def _first_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _texts(cell: StudyCell, task: Task) -> float:
    """Class names times steps and evaluations of clients: what the time of prompt learning goes into."""
    settings = cell.config.federation
    steps = sum(math.ceil(len(client.train) / settings.batch_size) for client in task.clients)
    a_round = settings.participation * settings.local_epochs * steps + len(task.clients) / settings.eval_every
    return settings.rounds * a_round * len(task.base) * len(cell.methods)


def run_cells(
    cells: Sequence[StudyCell],
    seeds: Sequence[int],
    directory: Path,
    execution: Execution,
) -> None:
    """Does what is not finished, cell by cell, and tells after each about how long the others take.

    What is left is estimated by the work of `check_cells` and the time of the cells that this call began.
    """
    left = check_cells([cell for cell in cells if not cell.is_finished(directory)], seeds)
    reporter, seconds, done = execution.listener, 0.0, 0.0
    for cell in cells:
        if cell.is_finished(directory):
            continue
        reporter.progress("cells", len(cells) - len(left), len(cells), cell.name)
        place, begun, started = directory / cell.place, (directory / cell.place).exists(), time.perf_counter()
        told = _Within(cell.name, reporter) if hears_notices(reporter) else reporter
        if begun:
            resume(place, **execution.heard_by(told))
        else:
            compare(
                cell.methods,
                seeds,
                config=cell.config,
                output=place,
                **execution.heard_by(told),
            )
        of_cell = left.pop(cell.place)
        if not begun:
            seconds, done = seconds + time.perf_counter() - started, done + of_cell
        known = f"about {duration(seconds * sum(left.values()) / done)} left" if left and done else ""
        reporter.progress("cells", len(cells) - len(left), len(cells), known)


def load_cells(cells: Sequence[StudyCell], directory: Path, command: str) -> dict[str, Comparison]:
    """Place -> comparison; raises OutputError where one is missing. command: what goes on with them."""
    for cell in cells:
        if not cell.is_finished(directory):
            raise OutputError(f"{directory} is not finished: {cell.place} is missing; go on with: {command}")
    return {cell.place: load_comparison(directory / cell.place) for cell in cells}


class _Within:
    """Tells what goes on inside of a cell."""

    def __init__(self, cell: str, reporter: Reporter):
        self._cell, self._reporter = cell, reporter

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None:
        self._reporter.progress(f"{self._cell}: {what}", done, total, detail)

    def notice(self, text: str) -> None:
        self._reporter.notice(f"{self._cell}: {text}")

    def begin(self, method: str, seed: int, config: ExperimentConfig) -> None:
        self._reporter.begin(method, seed, config)

    def round(self, method: str, seed: int, record: Mapping[str, Any]) -> None:
        self._reporter.round(method, seed, record)

    def finish(self, run: Run) -> None:
        self._reporter.finish(run)
