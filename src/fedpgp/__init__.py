"""Federated prompt learning on CLIP: FedPGP (Cui et al., ICML 2024) and the methods it is compared with.

>>> import fedpgp
>>> comparison = fedpgp.compare(["zero-shot", "fedpgp"], seeds=1)  # doctest: +SKIP
>>> comparison.mean("fedpgp")["local"]  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedpgp.ablation import ablate, load_ablation, resume_ablation
    from fedpgp.config import ExperimentConfig, load_config
    from fedpgp.directory import load_comparison, load_run
    from fedpgp.errors import FedPGPError
    from fedpgp.experiment import compare, resume, rounds, run
    from fedpgp.grid.sweeping import load_sweep, resume_sweep, sweep
    from fedpgp.joining import join
    from fedpgp.laboratory import Reporter, Silent
    from fedpgp.progress import ProgressBars
    from fedpgp.reproduction.run import load_reproduction, reproduce, resume_reproduction
    from fedpgp.results import Comparison, Run
    from fedpgp.serving.classifier import Classifier, load
    from fedpgp.tuning import resume_tuning, tune

__version__ = "0.1.0"

__all__ = [
    "Classifier",
    "Comparison",
    "ExperimentConfig",
    "FedPGPError",
    "ProgressBars",
    "Reporter",
    "Run",
    "Silent",
    "__version__",
    "ablate",
    "compare",
    "join",
    "load",
    "load_ablation",
    "load_comparison",
    "load_config",
    "load_reproduction",
    "load_run",
    "load_sweep",
    "reproduce",
    "resume",
    "resume_ablation",
    "resume_reproduction",
    "resume_sweep",
    "resume_tuning",
    "rounds",
    "run",
    "sweep",
    "tune",
]

_HOMES = {
    "ablate": "ablation",
    "load_ablation": "ablation",
    "resume_ablation": "ablation",
    "load_reproduction": "reproduction.run",
    "reproduce": "reproduction.run",
    "resume_reproduction": "reproduction.run",
    "load_sweep": "grid.sweeping",
    "resume_sweep": "grid.sweeping",
    "sweep": "grid.sweeping",
    "ExperimentConfig": "config",
    "load_config": "config",
    "FedPGPError": "errors",
    "Reporter": "laboratory",
    "Silent": "laboratory",
    "ProgressBars": "progress",
    "join": "joining",
    "compare": "experiment",
    "resume": "experiment",
    "rounds": "experiment",
    "run": "experiment",
    "resume_tuning": "tuning",
    "tune": "tuning",
    "Classifier": "serving.classifier",
    "load": "serving.classifier",
    "Comparison": "results",
    "Run": "results",
    "load_comparison": "directory",
    "load_run": "directory",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: PyTorch takes a second that `fedpgp --help` need not wait for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedpgp' has no attribute {name!r}")
    return getattr(import_module(f"fedpgp.{_HOMES[name]}"), name)
