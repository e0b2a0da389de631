"""TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from fedpgp.laboratory import Silent
from fedpgp.results import Run
from fedpgp.tracking.numbers import numbers, settings


class TensorBoard(Silent):
    """Event files, a directory for each run: METHOD/seed-SEED below `directory`."""

    def __init__(self, directory: Path | str):
        self._directory, self._writers = Path(directory), dict[tuple[str, int], SummaryWriter]()

    def round(self, method: str, seed: int, record: Mapping[str, Any]) -> None:
        writer = self._writer(method, seed)
        for name, value in numbers(record).items():
            writer.add_scalar(name, value, record["round"])
        writer.flush()

    def finish(self, run: Run) -> None:
        writer = self._writer(run.method, run.seed)
        writer.add_text("config", "\n".join(f"- {name} = {value!r}" for name, value in settings(run).items()))
        for name, value in numbers(run.results["final"], "final/").items():
            writer.add_scalar(name, value, run.results["rounds"])
        writer.close()
        del self._writers[run.method, run.seed]

    def _writer(self, method: str, seed: int) -> SummaryWriter:
        if (method, seed) not in self._writers:
            self._writers[method, seed] = SummaryWriter(str(self._directory / method / f"seed-{seed}"))
        return self._writers[method, seed]
