"""Federated prompt learning on CLIP: FedPGP (Cui et al., ICML 2024) and the methods that it is compared with.

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
    from fedpgp.serving.score import Score, score
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
    "Score",
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
    "score",
    "sweep",
    "tune",
]

_HOMES = {  # module -> its public names, which are imported at their first use
    "config": ["ExperimentConfig", "load_config"],
    "errors": ["FedPGPError"],
    "report.plots": ["Plots"],
    "reporting": ["ProgressBars", "Reporter", "Silent"],
    "results.run": ["Comparison", "Run"],
    "results.run_store": ["load_comparison", "load_run"],
    "runs.join": ["join"],
    "runs.run": ["compare", "resume", "rounds", "run"],
    "serving.classifier": ["Classifier", "load"],
    "serving.score": ["Score", "score"],
    "studies.ablation": ["ablate", "load_ablation", "resume_ablation"],
    "studies.reproduction": ["load_reproduction", "reproduce", "resume_reproduction"],
    "studies.sweep": ["load_sweep", "resume_sweep", "sweep"],
    "studies.tuning": ["resume_tuning", "tune"],
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, because PyTorch takes a second and `fedpgp --help` does not need it."""
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'fedpgp' has no attribute {name!r}")
    public = getattr(import_module(f"fedpgp.{home}"), name)
    if "options" not in getattr(public, "__annotations__", ()):
        return public
    # Functions with the options of `fedpgp.runs.execution.Execution` need packages that they must not import.
    from fedpgp.flower.engines import ENGINES
    from fedpgp.report import writers

    @wraps(public)
    def complete(*given: Any, **options: Any) -> Any:
        return public(*given, **{"writers": writers, "engines": ENGINES, **options})

    return complete
