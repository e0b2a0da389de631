"""The search for hyperparameters, on equal terms for every method and without a test image."""

from importlib.util import find_spec

from fedpgp.errors import ConfigError

if find_spec("optuna") is None:
    raise ConfigError('a search for settings needs Optuna, which is missing: pip install "fedpgp[tune]"')

from fedpgp.studies.tuning.search import resume_tuning, tune
from fedpgp.studies.tuning.tuning import Trial, Tuning

__all__ = ["Trial", "Tuning", "resume_tuning", "tune"]
