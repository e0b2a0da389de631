"""The search for hyperparameters, on equal terms for every method and without a test image."""

from fedpgp.tuning.search import resume_tuning, tune
from fedpgp.tuning.trials import Trial, Tuning

__all__ = ["Trial", "Tuning", "resume_tuning", "tune"]
