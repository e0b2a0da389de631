"""Puts the pieces together: config -> results."""

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
    resume_command,
    run_directory,
    writing,
)
from fedpgp.runs.choices import HEADLINE, chosen_methods, chosen_seeds, describe
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
    """Runs one method with one seed. After Ctrl-C, a kill or an error, `resume(output)` goes on.

    Args:
        method: a name that `fedpgp methods` lists, "path/to/file.py:Name", or a Method with its hyperparameters.
        config: an ExperimentConfig or a TOML file; None takes the recipe of the embedded benchmark.
        changes: "section.key=value" on top of the file, and of published settings.
        settings: "published" takes the values that the method was published with, on top of the file's; those that it
            takes are told to the reporter, with their source. None takes the file's.
        output: the run directory, written from the first round on; None writes nothing. force: replace it.
        options: the fields of `fedpgp.runs.execution.Execution`: workers, processes, of which any number gives the same
            result; cache, the directory of image features; skip_bad_images; reporter, which hears of progress and of
            every round, such as a `Silent` of your own with another `round`.

    Raises:
        FedPGPError: before any work where the method, the config, the data or the output do not fit.

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
    """The same as an iterator: yields the record of every round when it is finished, and `.run` is the run.

    Names and settings are checked here, data and checkpoint before the first round. Who leaves the loop stops the run:
    asking for another record, or for `.run`, goes on, and after `.close()` or in another process `resume(output)`.
    """
    (name,), experiment = chosen_methods(method, config, changes, settings, of_task=True)
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
    """Runs several methods on the same tasks: the same clients, shots and order of the images for equal seeds.

    methods: None takes zero-shot, local, promptfl and fedpgp, "all" every built-in one. seeds: a number n means
    0 … n−1. costly_seeds: of the methods whose steps go through the image tower, or read class names for every image
    (`Method.costly`); None takes the same. settings: "published" takes the published values of each method's section;
    rounds, batch size and other values of the task stay those of the config, because all methods have the same task.
    The reporter hears which published values are not used. The rest as in `run`. What was finished before Ctrl-C, a
    kill or an error is in `output`, and `resume(output)` goes on from there. The reporter hears the plan, and about how
    long it takes.
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
    """What `compare` would do, and about how long it would take, in a line, after its checks.

    A round of each method is timed, for which images are encoded: their features are kept, and nothing else is written.
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
    """The config of a comparison, the seeds of each method, and all of them."""
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
    """Goes on with what `run` or `compare` left unfinished in a directory, to the same bytes as if never stopped.

    methods: those of the runs that are neither ours nor of an installed package, as they were given before: a results
    directory never says which code to execute. more_rounds: additional rounds for runs that are all finished, to the
    same bytes as if they had been asked for in the beginning.
    Finished runs are kept as they are; where all are finished nothing is done. A run's own directory is a comparison of
    one. Raises OutputError where the directory holds no run, where its config, checkpoint, images or state are not
    those that it was begun with, and where another process works on it.
    """
    directory, execution = Path(directory), Execution(**options)
    directories = cells(directory)
    todo = {cell: path for cell, path in directories.items() if is_unfinished(path)}
    for path in directories.values():
        if path not in todo.values():
            remove(path / FILE)  # a kill may have come between the last file and this
    if whole_number(more_rounds, "more_rounds", 0) and todo:
        raise OutputError(
            "a run is not finished, and only finished runs can have more rounds",
            where=f"{directory}",
            remedy=f"Finish it first with `{resume_command(directory)}`",
        )
    if not todo and not more_rounds:
        if is_compared(directory):
            execution.listener.notice(f"{directory} is finished: nothing to resume")
            return load_comparison(directory)
        return _compared([load_run(path) for path in directories.values()], directory, execution)
    methods = [methods] if isinstance(methods, str | Method) else methods
    given = [method if isinstance(method, Method) else find_method(method)() for method in methods]
    names, seeds = (list(dict.fromkeys(keys)) for keys in zip(*directories if more_rounds else todo, strict=True))
    for name in names:
        if not is_registered(name) and name not in {method.name for method in given}:
            raise OutputError(
                f"{directory} was begun with the method {name!r}, which is neither ours nor of an installed package:"
                " name it as it was then, with --method path/to/file.py:Name"
            )
    paths = list((directories if more_rounds else todo).values())
    config = (finished_config if more_rounds else started_config)(paths, given)
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
    """The comparison of some runs, written where it has a directory of its own."""
    comparison = Comparison(runs)
    if execution.writers is not None and directory is not None and (directory / PLAN).exists():
        with writing(directory, f"free space, then go on with --resume {directory}"):
            execution.writers.comparison(comparison, directory)
    return comparison
