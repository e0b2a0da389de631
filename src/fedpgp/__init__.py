"""Federated prompt learning on CLIP: FedPGP (Cui et al., ICML 2024) and the methods it is compared with.

>>> import fedpgp
>>> comparison = fedpgp.compare(["zero-shot", "fedpgp"], seeds=1)  # doctest: +SKIP
>>> comparison.mean("fedpgp")["local"]  # doctest: +SKIP
"""

from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedpgp.runtime.version import __version__

if TYPE_CHECKING:
    from fedpgp.config import ExperimentConfig, load_config
    from fedpgp.errors import FedPGPError
    from fedpgp.report.plots import Plots
    from fedpgp.reporting import ProgressBars, Reporter, Silent
    from fedpgp.results.run import Comparison, Run
    from fedpgp.results.run_store import load_comparison, load_run
    from fedpgp.runs.join import join
    from fedpgp.runs.run import compare, resume, rounds, run
    from fedpgp.serving.classifier import Classifier, load
    from fedpgp.studies.ablation import ablate, load_ablation, resume_ablation
    from fedpgp.studies.reproduction import load_reproduction, reproduce, resume_reproduction
    from fedpgp.studies.sweep import load_sweep, resume_sweep, sweep
    from fedpgp.studies.tuning import resume_tuning, tune

__all__ = [
    "Classifier",
    "Comparison",
    "ExperimentConfig",
    "FedPGPError",
    "Plots",
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
    "ablate": "studies.ablation",
    "load_ablation": "studies.ablation",
    "resume_ablation": "studies.ablation",
    "load_reproduction": "studies.reproduction",
    "reproduce": "studies.reproduction",
    "resume_reproduction": "studies.reproduction",
    "load_sweep": "studies.sweep",
    "resume_sweep": "studies.sweep",
    "sweep": "studies.sweep",
    "ExperimentConfig": "config",
    "load_config": "config",
    "FedPGPError": "errors",
    "Reporter": "reporting",
    "Silent": "reporting",
    "Plots": "report.plots",
    "ProgressBars": "reporting",
    "join": "runs.join",
    "compare": "runs.run",
    "resume": "runs.run",
    "rounds": "runs.run",
    "run": "runs.run",
    "resume_tuning": "studies.tuning",
    "tune": "studies.tuning",
    "Classifier": "serving.classifier",
    "load": "serving.classifier",
    "Comparison": "results.run",
    "Run": "results.run",
    "load_comparison": "results.run_store",
    "load_run": "results.run_store",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: PyTorch takes a second that `fedpgp --help` need not wait for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedpgp' has no attribute {name!r}")
    found = getattr(import_module(f"fedpgp.{_HOMES[name]}"), name)
    if "options" not in getattr(found, "__annotations__", ()):
        return found
    # It takes `fedpgp.runs.execution.Execution`, and may need packages above its own.
    from fedpgp.flower.engines import ENGINES
    from fedpgp.report import writers

    @wraps(found)
    def complete(*given: Any, **options: Any) -> Any:
        return found(*given, **{"writers": writers, "engines": ENGINES, **options})

    return complete
