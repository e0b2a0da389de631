"""What callers choose: methods, seeds, settings."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from fedpgp.config import ExperimentConfig, load_config
from fedpgp.errors import ConfigError
from fedpgp.methods import METHODS, Method
from fedpgp.methods.plugins import check_instance, find_method
from fedpgp.methods.published import PUBLISHED, published_settings
from fedpgp.methods.reserved import ALL
from fedpgp.reporting import Reporter
from fedpgp.runs.published import descriptions, with_unused
from fedpgp.runtime.validation import whole_number

HEADLINE = ("zero-shot", "local", "promptfl", "fedpgp")  # what is compared unless methods are named


def chosen_seeds(given: int | Sequence[int], what: str) -> list[int]:
    """0 … n−1 for a number n, or those that are given, each once. what: the argument's name, for a message."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        return list(range(whole_number(given, what, 1)))
    seeds = list(dict.fromkeys(whole_number(seed, "seed", 0) for seed in given))
    if not seeds:
        raise ConfigError(f"{what} must name at least one, got none")
    return seeds


def chosen_methods(
    methods: Sequence[str | Method] | str | Method,
    config: ExperimentConfig | Path | str | None,
    changes: Sequence[str],
    settings: str | None = None,
    *,
    of_task: bool = False,
) -> tuple[list[str], ExperimentConfig]:
    """The names of the methods, each once, and a config that has them all; raises ConfigError where one is unknown.

    methods: names, files "path/to/file.py:Name", "all", or methods with their hyperparameters.
    settings: "published" takes the published values of each method's section, with of_task those of the task, too.
    """
    if settings not in (None, PUBLISHED):
        raise ConfigError(f'settings must be "{PUBLISHED}" or left out, got {settings!r}')
    methods = [methods] if isinstance(methods, str | Method) else methods
    wanted = [name for method in methods for name in (METHODS if method == ALL else [method])]
    if not wanted:
        raise ConfigError(f"methods must name at least one, got none; known: {', '.join(METHODS)}")
    chosen = [method if isinstance(method, Method) else find_method(method) for method in wanted]
    for method in chosen:
        if isinstance(method, Method):
            check_instance(method)
    for name, count in Counter(method.name for method in dict.fromkeys(chosen)).items():
        if count > 1:
            raise ConfigError(
                f"methods must have names of their own, got {count} called {name!r}: run them apart, or give a subclass"
                " another name"
            )
    names = list(dict.fromkeys(method.name for method in chosen))
    given = {method.name: method for method in chosen if isinstance(method, Method)}
    if settings and given:
        raise ConfigError(
            f'settings must be left out for methods that come with theirs, got "{settings}" for {", ".join(given)}:'
            " name the method instead"
        )
    published = [setting for name in names for setting in published_settings(name)] if settings else []
    if isinstance(config, ExperimentConfig):
        if changes or settings:
            raise ConfigError("changes and settings go with a config file; make another ExperimentConfig instead")
        experiment = config
    else:
        classes = [method if isinstance(method, type) else type(method) for method in chosen]
        taken = [setting for setting in published if of_task or setting.of_method]
        experiment = load_config(config, changes, classes, published=taken)
    if settings:
        experiment = with_unused(experiment, names)
    sections = {method.name: method() for method in chosen if isinstance(method, type)}
    _check_engine(experiment.federation.engine)
    return names, replace(experiment, methods={**sections, **experiment.methods, **given})


def describe(settings: str | None, experiment: ExperimentConfig, methods: Sequence[str], reporter: Reporter) -> None:
    """Tells the reporter which published settings an experiment has."""
    if settings is not None:
        for text in descriptions(experiment, methods):
            reporter.notice(text)


def _check_engine(engine: str) -> None:
    if engine == "deployment":
        raise ConfigError(
            'federation.engine = "deployment" needs machines: fedpgp federate init writes what each of them is to'
            " start; here take local or simulation"
        )
    if engine == "simulation" and not all(find_spec(package) for package in ("flwr", "ray")):
        raise ConfigError(
            'federation.engine = "simulation" needs Flower and Ray: pip install "fedpgp[flower]", or take local'
        )
