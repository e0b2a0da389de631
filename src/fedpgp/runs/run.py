"""Run, compare and resume: from a config to results."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from typing_extensions import Unpack

from fedpgp.config import ExperimentConfig
from fedpgp.errors import OutputError
from fedpgp.federation.state import FILE, remove
from fedpgp.methods import Method
from fedpgp.methods.plugins import find_method, is_registered
from fedpgp.results.provenance import begin, finished_config, started_config
from fedpgp.results.run import Comparison, Run
from fedpgp.results.run_store import (
    PLAN,
    cells,
    check_output,
    is_compared,
    is_unfinished,
    load_comparison,
    load_run,
    planned,
    resume_remedy,
    run_directory,
    writing,
)
from fedpgp.runs.choices import HEADLINE, chosen_methods, chosen_seeds, describe, one_method
from fedpgp.runs.execution import Execution, ExecutionOptions
from fedpgp.runs.extend import extend
from fedpgp.runs.run_iterator import Records, Rounds, exhausted
from fedpgp.runs.setup import open_setup
from fedpgp.runs.work import Cells, timed, work
from fedpgp.runtime.files import write_json
from fedpgp.runtime.validation import whole_number


def run(
    method: str | Method,
    seed: int = 0,
    *,
    config: ExperimentConfig | Path | str | None = None,
    changes: Sequence[str] = (),
    settings: str | None = None,
    output: Path | str | None = None,
    force: bool = False,
    **options: Unpack[ExecutionOptions],
) -> Run:
    """Run one method with one seed. After Ctrl-C, a kill or an error, `resume(output)` continues the run.

    Parameters
    ----------
    method
        A name that `fedpgp methods` lists, "path/to/file.py:Name", or a Method with its hyperparameters.
    seed
        Random seed.
    config
        An ExperimentConfig, a TOML file or the name of a recipe; None takes the recipe of the embedded benchmark.
    changes
        "section.key=value", which replaces values of the file and published values.
    settings
        "published" uses the values that the method was published with, which replace values of the file and are
        reported with their sources. None uses the values of the file.
    output
        The run directory, written from the first round on; None writes nothing.
    force
        Replace the output directory if it exists.
    options
        The fields of `fedpgp.runs.execution.Execution`: the number of `workers`, on which results do not depend; the
        `cache` directory of image features; `skip_bad_images`; a `reporter`, for example your own subclass of `Silent`.

    Returns
    -------
    The finished run.

    Raises
    ------
    FedPGPError
        Before any work, if the method, the config, the data or the output do not fit.

    Examples
    --------
    >>> run("fedpgp", seed=0, changes=["fedpgp.mu=1.0"]).results["final"]["local"]  # doctest: +SKIP
    """
    return rounds(
        method,
        seed,
        config=config,
        changes=changes,
        settings=settings,
        output=output,
        force=force,
        **options,
    ).run


def rounds(
    method: str | Method,
    seed: int = 0,
    *,
    config: ExperimentConfig | Path | str | None = None,
    changes: Sequence[str] = (),
    settings: str | None = None,
    output: Path | str | None = None,
    force: bool = False,
    **options: Unpack[ExecutionOptions],
) -> Rounds:
    """Return an iterator over the records of a run's rounds; its attribute `run` is the finished run.

    Names and settings are checked at once, data and checkpoint before the first round. Leaving the loop pauses the run.
    Requesting another record, or `run`, continues it. After `close()`, or in another process, `resume(output)` does.

    Parameters
    ----------
    method, seed, config, changes, settings, output, force, options
        As in `run`.

    Raises
    ------
    FedPGPError
        The method, the config or the output do not fit.
    """
    name, experiment = one_method(method, config, changes, settings, of_task=True)
    seed = whole_number(seed, "seed", 0)
    directory = None if output is None else Path(output)
    if directory is not None:
        check_output(directory, force)

    execution = Execution(**options)

    def records() -> Records[Run]:
        describe(settings, experiment, [name], execution.listener)
        with open_setup(experiment, [name], [seed], execution) as setup:
            if directory is not None:
                with run_directory(directory, force) as scratch:
                    begin(scratch, setup.open(name, seed).origin())
            (result,) = yield from work(setup, {(name, seed): directory})
        return result

    return Rounds(records())


def compare(
    methods: Sequence[str | Method] | str | Method | None = None,
    seeds: int | Sequence[int] = 1,
    *,
    costly_seeds: int | Sequence[int] | None = None,
    config: ExperimentConfig | Path | str | None = None,
    changes: Sequence[str] = (),
    settings: str | None = None,
    output: Path | str | None = None,
    force: bool = False,
    **options: Unpack[ExecutionOptions],
) -> Comparison:
    """Run several methods on the same tasks: equal seeds have the same clients, shots and order of the images.

    The plan and an estimate of the time are reported first. After Ctrl-C, a kill or an error, `output` contains all
    finished rounds, and `resume(output)` continues.

    Parameters
    ----------
    methods
        Names, files or methods as in `run`. None takes zero-shot, local, promptfl and fedpgp; "all" takes every
        built-in method.
    seeds
        A list, or a number n for the seeds 0 … n−1.
    costly_seeds
        Seeds of methods that train through the image tower or encode class names for every image (`Method.costly`);
        None takes `seeds`.
    settings
        "published" uses the published values of each method's section. Rounds, batch size and other values of the task
        come from the config, because all methods have the same task. The unused published values are reported.
    config, changes, output, force, options
        As in `run`.

    Returns
    -------
    The comparison of all runs.

    Raises
    ------
    FedPGPError
        Before any work, if a method, the config, the data or the output do not fit.
    """
    experiment, chosen, all_seeds = _compared_with(methods, seeds, costly_seeds, config, changes, settings)
    directory = None if output is None else Path(output)
    if directory is not None:
        check_output(directory, force)
    execution = Execution(**options)
    describe(settings, experiment, list(chosen), execution.listener)
    with open_setup(experiment, list(chosen), all_seeds, execution) as setup:
        if directory is not None:
            with run_directory(directory, force) as scratch:
                write_json(scratch / PLAN, {"seeds": chosen})
                for (name, seed), cell in planned(scratch, chosen).items():
                    cell.mkdir(parents=True)
                    begin(cell, setup.open(name, seed).origin())
            planned_cells: Cells = planned(directory, chosen)
        else:
            planned_cells = dict.fromkeys(planned(Path(), chosen))
        runs = exhausted(work(setup, planned_cells))
    return _compared(runs, directory, execution)


def planned_comparison(
    methods: Sequence[str | Method] | str | Method | None = None,
    seeds: int | Sequence[int] = 1,
    *,
    costly_seeds: int | Sequence[int] | None = None,
    config: ExperimentConfig | Path | str | None = None,
    changes: Sequence[str] = (),
    settings: str | None = None,
    **options: Unpack[ExecutionOptions],
) -> str:
    """Check a comparison, and return in one line what `compare` would do and an estimate of the time.

    One round of each method is timed. This writes image features to the cache, and nothing else.

    Parameters
    ----------
    methods, seeds, costly_seeds, config, changes, settings, options
        As in `compare`.

    Raises
    ------
    FedPGPError
        A method, the config or the data do not fit.
    """
    experiment, chosen, all_seeds = _compared_with(methods, seeds, costly_seeds, config, changes, settings)
    execution = Execution(**options)
    describe(settings, experiment, list(chosen), execution.listener)
    with open_setup(experiment, list(chosen), all_seeds, execution) as setup:
        return timed(setup, dict.fromkeys(planned(Path(), chosen), 0)).describe(setup.workers.count)


def _compared_with(
    methods: Sequence[str | Method] | str | Method | None,
    seeds: int | Sequence[int],
    costly_seeds: int | Sequence[int] | None,
    config: ExperimentConfig | Path | str | None,
    changes: Sequence[str],
    settings: str | None,
) -> tuple[ExperimentConfig, dict[str, list[int]], list[int]]:
    """Return the config of a comparison, the seeds of each method, and all seeds."""
    names, experiment = chosen_methods(HEADLINE if methods is None else methods, config, changes, settings)
    of_all = chosen_seeds(seeds, "seeds")
    of_costly = of_all if costly_seeds is None else chosen_seeds(costly_seeds, "costly_seeds")
    chosen = {name: of_costly if experiment.methods[name].costly else of_all for name in names}
    return experiment, chosen, list(dict.fromkeys(seed for of_method in chosen.values() for seed in of_method))


def resume(
    directory: Path | str,
    *,
    methods: Sequence[str | Method] | str | Method = (),
    more_rounds: int = 0,
    **options: Unpack[ExecutionOptions],
) -> Comparison:
    """Continue what `run` or `compare` left unfinished. The files get the same bytes as without the interruption.

    Finished runs do not change unless they get more rounds, and nothing happens if all runs are finished.

    Parameters
    ----------
    directory
        Directory of the comparison, or of a single run.
    methods
        The methods that are neither built in nor from an installed package, as they were given before. They must be
        given again, because a results directory never decides which code is executed.
    more_rounds
        Number of rounds to add. All runs must be finished; the files get the same bytes as if the rounds had been
        there from the beginning.
    options
        As in `run`.

    Returns
    -------
    The comparison of all runs.

    Raises
    ------
    OutputError
        The directory contains no run, another process works on it, or the config, the checkpoint, the images or the
        state changed since the run was begun; or a run cannot have more rounds.
    """
    directory, execution = Path(directory), Execution(**options)
    directories = cells(directory)
    todo = {cell: path for cell, path in directories.items() if is_unfinished(path)}
    for path in directories.values():
        if path not in todo.values():
            remove(path / FILE)  # a process may have been killed between its last file and this step
    more_rounds = whole_number(more_rounds, "more_rounds", 0)
    if more_rounds and todo:
        raise OutputError(
            "a run is not finished, and only finished runs can have more rounds",
            where=f"{directory}",
            remedy=resume_remedy(directory),
        )
    if not todo and not more_rounds:
        if is_compared(directory):
            execution.listener.notice(f"{directory} is finished, so there is nothing to resume.")
            return load_comparison(directory)
        return _compared([load_run(path) for path in directories.values()], directory, execution)
    methods = [methods] if isinstance(methods, str | Method) else methods
    given = [method if isinstance(method, Method) else find_method(method)() for method in methods]
    chosen = directories if more_rounds else todo
    names, seeds = (list(dict.fromkeys(keys)) for keys in zip(*chosen, strict=True))
    for name in names:
        if not is_registered(name) and name not in {method.name for method in given}:
            raise OutputError(
                f"the method {name!r} of the run is neither built in nor from an installed package",
                where=f"{directory}",
                remedy="Give the file of the method again, with --method path/to/file.py:Name",
            )
    config = (finished_config if more_rounds else started_config)(list(chosen.values()), given)
    config = replace(
        config,
        methods={**{name: find_method(name)() for name in names if name not in config.methods}, **config.methods},
        federation=replace(config.federation, rounds=config.federation.rounds + more_rounds),
    )
    with open_setup(config, names, seeds, execution) as setup:
        if more_rounds:
            extend(setup, directory, directories)
        runs = exhausted(work(setup, directories))
    return _compared(runs, directory, execution)


def _compared(runs: Sequence[Run], directory: Path | None, execution: Execution) -> Comparison:
    """Return the comparison of some runs, and write its tables if it has a directory."""
    comparison = Comparison(runs)
    if execution.writers is not None and directory is not None and (directory / PLAN).exists():
        with writing(directory, f"Free some disk space, then resume it with --resume {directory}"):
            execution.writers.comparison(comparison, directory)
    return comparison
