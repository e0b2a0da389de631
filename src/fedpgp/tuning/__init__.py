"""The search for hyperparameters, on equal terms for every method and without a test image."""

from fedpgp.tuning.search import Trial, Tuning, resume_tuning, tune

__all__ = ["Trial", "Tuning", "resume_tuning", "tune"]
