"""MLflow."""

from collections.abc import Mapping
from typing import Any

from mlflow.tracking import MlflowClient

from fedpgp.laboratory import Silent
from fedpgp.results import Run
from fedpgp.tracking.numbers import numbers, settings

LONGEST = 500  # characters of a parameter


class MLflow(Silent):
    """A run of an MLflow experiment for each run. uri: of the tracking store, such as sqlite:///mlflow.db."""

    def __init__(self, uri: str, experiment: str = "fedpgp"):
        self._client, self._runs = MlflowClient(tracking_uri=uri), dict[tuple[str, int], str]()
        known = self._client.get_experiment_by_name(experiment)
        self._experiment = self._client.create_experiment(experiment) if known is None else known.experiment_id

    def round(self, method: str, seed: int, record: Mapping[str, Any]) -> None:
        for name, value in numbers(record).items():
            self._client.log_metric(self._run(method, seed), name, value, step=record["round"])

    def finish(self, run: Run) -> None:
        number = self._run(run.method, run.seed)
        for name, value in settings(run).items():
            self._client.log_param(number, name, str(value)[:LONGEST])
        for name, value in numbers(run.results["final"], "final/").items():
            self._client.log_metric(number, name, value)
        self._client.set_terminated(number)
        del self._runs[run.method, run.seed]

    def _run(self, method: str, seed: int) -> str:
        if (method, seed) not in self._runs:
            made = self._client.create_run(self._experiment, run_name=f"{method}, seed {seed}")
            self._runs[method, seed] = made.info.run_id
            for name, value in (("method", method), ("seed", str(seed))):
                self._client.set_tag(made.info.run_id, name, value)
        return self._runs[method, seed]
