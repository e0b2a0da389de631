"""The search for hyperparameters, on equal terms for every method and without a test image."""

from fedpgp.studies.tuning.search import resume_tuning, tune
from fedpgp.studies.tuning.trials import Trial, Tuning

__all__ = ["Trial", "Tuning", "resume_tuning", "tune"]
