"""Trackers: reporters that pass figures on to TensorBoard, MLflow or Weights & Biases.

It may import reporting and what is below it. Start with `base`.
"""

from typing import Any

from fedpgp.errors import ConfigError, nearest
from fedpgp.tracking.base import Several, Tracker
from fedpgp.tracking.mlflow import MLflow
from fedpgp.tracking.tensorboard import TensorBoard
from fedpgp.tracking.wandb import WandB

__all__ = ["KINDS", "MLflow", "Several", "TensorBoard", "Tracker", "WandB", "tracker"]

KINDS: dict[str, type[TensorBoard] | type[MLflow] | type[WandB]] = {
    made.kind: made for made in (TensorBoard, MLflow, WandB)
}


def tracker(text: str) -> Tracker[Any]:
    """The tracker that "tensorboard:DIR", "mlflow:URI" or "wandb:PROJECT" names.

    Raises ConfigError for another text, and where its package is missing or its place cannot be written.
    """
    kind, _, where = text.partition(":")
    if kind not in KINDS:
        raise ConfigError(
            f"--track must be tensorboard:DIR, mlflow:URI or wandb:PROJECT, got {text!r}; {nearest(kind, KINDS)}"
        )
    if not where:
        raise ConfigError(f"--track must say where to: {kind}:{KINDS[kind].target}, got {text!r}")
    return KINDS[kind](where)
