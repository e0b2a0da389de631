"""Choices of callers: methods, seeds and settings."""

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

HEADLINE = ("zero-shot", "local", "promptfl", "fedpgp")  # the default methods of a comparison


def chosen_seeds(given: int | Sequence[int], what: str) -> list[int]:
    """Return the seeds of an argument, each once.

    Parameters
    ----------
    given
        A number n for the seeds 0 … n−1, or a list of seeds.
    what
        Name of the argument, for the error.

    Raises
    ------
    ConfigError
        There is no seed, or a seed is not a whole number.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        return list(range(whole_number(given, what, 1)))
    seeds = list(dict.fromkeys(whole_number(seed, "seed", 0) for seed in given))
    if not seeds:
        raise ConfigError(where=what, allowed="at least one seed", got=list(given), remedy="Use for example 0")
    return seeds


def chosen_methods(
    methods: Sequence[str | Method] | str | Method,
    config: ExperimentConfig | Path | str | None,
    changes: Sequence[str],
    settings: str | None = None,
    *,
    of_task: bool = False,
) -> tuple[list[str], ExperimentConfig]:
    """Return the names of the chosen methods, each once, and a config that contains all of them.

    Parameters
    ----------
    methods
        Names, files "path/to/file.py:Name", "all", or methods with their hyperparameters.
    config
        A config, a file or the name of a recipe.
    changes
        "section.key=value" on top of the file.
    settings
        "published" takes the published values of each method's section.
    of_task
        Take the published values of the task, too.

    Raises
    ------
    ConfigError
        A method is unknown, or the arguments do not fit together.
    """
    if settings not in (None, PUBLISHED):
        remedy = f"Use --settings {PUBLISHED}, or leave it out"
        raise ConfigError(where="settings", allowed=f"{PUBLISHED!r} or left out", got=settings, remedy=remedy)
    methods = [methods] if isinstance(methods, str | Method) else methods
    wanted = [name for method in methods for name in (METHODS if method == ALL else [method])]
    if not wanted:
        remedy = f"Use one or more of: {', '.join(METHODS)}"
        raise ConfigError(where="methods", allowed="at least one method", got=list(methods), remedy=remedy)
    chosen = [method if isinstance(method, Method) else find_method(method) for method in wanted]
    for method in chosen:
        if isinstance(method, Method):
            check_instance(method)
    for name, count in Counter(method.name for method in dict.fromkeys(chosen)).items():
        if count > 1:
            raise ConfigError(
                f"{count} methods have the name {name!r}",
                where="methods",
                remedy="Run them separately, or give a subclass another name",
            )
    names = list(dict.fromkeys(method.name for method in chosen))
    given = {method.name: method for method in chosen if isinstance(method, Method)}
    if settings and given:
        raise ConfigError(
            where="settings",
            allowed=f"left out for methods that are given with their hyperparameters ({', '.join(given)})",
            got=settings,
            remedy="Give the name of the method instead",
        )
    published = [setting for name in names for setting in published_settings(name)] if settings else []
    if isinstance(config, ExperimentConfig):
        if changes or settings:
            raise ConfigError(
                "changes and settings cannot be combined with an ExperimentConfig",
                where="config",
                remedy="Use a config file, or make another ExperimentConfig",
            )
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


def one_method(
    method: str | Method,
    config: ExperimentConfig | Path | str | None,
    changes: Sequence[str],
    settings: str | None = None,
    *,
    of_task: bool = False,
) -> tuple[str, ExperimentConfig]:
    """Return the name of one method, and a config that contains it. `chosen_methods` has the same arguments.

    Raises
    ------
    ConfigError
        The method is unknown or stands for several, or the arguments do not fit together.
    """
    names, experiment = chosen_methods(method, config, changes, settings, of_task=of_task)
    if len(names) > 1:
        remedy = f"Use for example --method {HEADLINE[-1]}; `fedpgp compare` runs several methods"
        raise ConfigError(where="method", allowed="one method", got=method, remedy=remedy)
    return names[0], experiment


def describe(settings: str | None, experiment: ExperimentConfig, methods: Sequence[str], reporter: Reporter) -> None:
    """Report to the reporter which published settings an experiment uses."""
    if settings is not None:
        for text in descriptions(experiment, methods):
            reporter.notice(text)


def _check_engine(engine: str) -> None:
    if engine == "deployment":
        raise ConfigError(
            where="federation.engine",
            allowed="local or simulation in a run on one machine",
            got=engine,
            remedy="Use --set federation.engine=local, or set up the machines with `fedpgp federate init ours`",
        )
    if engine == "simulation" and not all(find_spec(package) for package in ("flwr", "ray")):
        raise ConfigError(
            "the simulation needs Flower and Ray, which are not installed",
            where="federation.engine",
            remedy='Install them with `pip install "fedpgp[simulation]"`, or use --set federation.engine=local',
        )
