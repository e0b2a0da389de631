"""Trackers: reporters that write the figures of runs to TensorBoard, MLflow or Weights & Biases.

This package may import `reporting` and the packages below it. Start with `base`.
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
    """Return the tracker for "tensorboard:DIR", "mlflow:URI" or "wandb:PROJECT".

    Raises
    ------
    ConfigError
        If the text has another form, the tracker's package is missing, or its target cannot be written.
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
