"""Experiment trackers that people use already: each hears of every round, as a reporter."""

from fedpgp.errors import ConfigError, nearest
from fedpgp.laboratory import Reporter

KINDS = ("tensorboard", "mlflow", "wandb")


def tracker(text: str) -> Reporter:
    """The tracker that "KIND:WHERE" names: tensorboard:DIRECTORY, mlflow:URI or wandb:PROJECT.

    Raises ConfigError for another kind, for none, and where its package is not installed.
    """
    kind, _, where = text.partition(":")
    if kind not in KINDS:
        raise ConfigError(f"track must be KIND:WHERE, got {text!r}; {nearest(kind, KINDS)}")
    if not where:
        raise ConfigError(f"track must say where, such as {kind}:logs, got {text!r}")
    try:
        if kind == "tensorboard":
            from fedpgp.tracking.tensorboard import TensorBoard

            return TensorBoard(where)
        if kind == "mlflow":
            from fedpgp.tracking.mlflow import MLflow

            return MLflow(where)
        from fedpgp.tracking.wandb import WandB

        return WandB(where)
    except ImportError as error:
        raise ConfigError(f'{kind} is not installed ({error.name}): pip install "fedpgp[tracking]"') from error
