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
        allowed = "tensorboard:DIR, mlflow:URI or wandb:PROJECT"
        raise ConfigError(where="--track", allowed=allowed, got=text, remedy=nearest(kind, KINDS))
    if not where:
        target = KINDS[kind].target
        remedy = f"Add the {target} after the colon"
        raise ConfigError(where="--track", allowed=f"{kind}:{target}", got=text, remedy=remedy)
    return KINDS[kind](where)
