"""Hyperparameter search with the same number of trials for every method and without test images."""

from importlib.util import find_spec

from fedpgp.errors import ConfigError

if find_spec("optuna") is None:
    raise ConfigError(
        "the hyperparameter search needs Optuna, which is not installed",
        remedy='Install it with `pip install "fedpgp[tune]"`',
    )

from fedpgp.studies.tuning.search import resume_tuning, tune
from fedpgp.studies.tuning.tuning import Trial, Tuning

__all__ = ["Trial", "Tuning", "resume_tuning", "tune"]
