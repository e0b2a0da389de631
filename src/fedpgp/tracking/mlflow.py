"""Tracker for MLflow, with a database in a file, or a server."""

import logging
import os
import re
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

from fedpgp.config import ExperimentConfig
from fedpgp.errors import ConfigError, first_line
from fedpgp.results.run import Run
from fedpgp.tracking.base import Tracker, needed
from fedpgp.tracking.figures import final, settings, table

SQLITE = "sqlite:///"
FORBIDDEN = r"[^\w\-. :/]"  # characters that the name of a metric may not have


class MLflow(Tracker[str]):
    """Tracker that writes an MLflow run for each run: settings as parameters, scalars as metrics, the table as a file.

    A run that continues after a stop becomes another run of MLflow, with the remaining rounds.

    Parameters
    ----------
    uri
        A database file, as "sqlite:///runs.db" or "runs.db", or the address of an MLflow server. The files of a
        database runs.db are in runs.db.files next to it.
    experiment
        Name of the experiment in MLflow.

    Raises
    ------
    ConfigError
        If the store cannot be opened.
    """

    kind, target = "mlflow", "URI"

    def __init__(self, uri: str, experiment: str = "fedpgp"):
        super().__init__()
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # otherwise its import sends usage data to its makers
        client = needed("mlflow", "mlflow-skinny").MlflowClient
        self._entities = needed("mlflow.entities", "mlflow-skinny")
        path = Path(uri.removeprefix(SQLITE)).absolute() if uri.startswith(SQLITE) or uri.endswith(".db") else None
        if path is not None:
            needed("sqlalchemy", "sqlalchemy")
            needed("alembic", "alembic")
        logging.getLogger("alembic").setLevel(logging.WARNING)  # otherwise it logs every step of a new database
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # SQLAlchemy warns about MLflow's code
                self._client = client(tracking_uri=uri if path is None else f"{SQLITE}{path}")
                files = None if path is None else path.with_name(f"{path.name}.files").as_uri()
                known = self._client.get_experiment_by_name(experiment)
                self._experiment = known.experiment_id if known else self._client.create_experiment(experiment, files)
        except Exception as error:
            raise ConfigError(
                f"the store cannot be opened: {first_line(error).rstrip('.')}",
                where=f"--track mlflow:{uri}",
                remedy="Use a database file such as mlflow:sqlite:///runs.db, or the address of an MLflow server",
            ) from error

    def open(self, method: str, seed: int, config: ExperimentConfig) -> str:
        entry = str(self._client.create_run(self._experiment, run_name=f"{method}, seed {seed}").info.run_id)
        values = settings(config, method, seed)
        self._client.log_batch(entry, params=[self._entities.Param(key, str(value)) for key, value in values.items()])
        self._client.log_text(entry, config.to_toml(), "config.toml")
        return entry

    def log(self, entry: str, figures: Mapping[str, float], number: int) -> None:
        now = time.time_ns() // 1_000_000
        names = {re.sub(FORBIDDEN, "_", name): value for name, value in figures.items()}
        metrics = [self._entities.Metric(name, value, now, number) for name, value in names.items()]
        self._client.log_batch(entry, metrics=metrics)

    def end(self, entry: str, run: Run) -> None:
        self.log(entry, final(run), run.results["rounds"])
        self._client.log_text(entry, table(run), "table.md")
        self._client.log_dict(entry, dict(run.results), "results.json")
        self._client.set_terminated(entry)

    def abandon(self, entry: str) -> None:
        self._client.set_terminated(entry, "KILLED")
