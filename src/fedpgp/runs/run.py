"""Puts the pieces together: config -> results."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from fedpgp.config import ExperimentConfig, load_config
from fedpgp.errors import ConfigError, OutputError, TrainingError
from fedpgp.federation.privacy import assumptions
from fedpgp.federation.rounds import federate
from fedpgp.federation.run_spec import rounds_of
from fedpgp.federation.state import FILE, State, remove
from fedpgp.methods import METHODS, Method
from fedpgp.methods.plugins import check_instance, find_method, installed, own_errors
from fedpgp.methods.published import PUBLISHED, published_settings
from fedpgp.methods.reserved import ALL
from fedpgp.reporting import Reporter, hears_notices
from fedpgp.results.provenance import begin, check_origin, started_config
from fedpgp.results.run import Comparison, Run, headline
from fedpgp.results.run_store import (
    PLAN,
    add_record,
    cells,
    check_output,
    is_compared,
    is_unfinished,
    load_comparison,
    load_run,
    planned,
    run_directory,
    write_records,
    write_run,
    writing,
)
from fedpgp.results.summary import answers, figures, outcomes, prompts_of
from fedpgp.runs.comparison_plan import Cell, ComparisonPlan
from fedpgp.runs.execution import Execution, ExecutionOptions
from fedpgp.runs.published import descriptions, with_unused
from fedpgp.runs.run_iterator import Records, Rounds, exhausted
from fedpgp.runs.runtime_estimate import seconds_of_run
from fedpgp.runs.setup import OpenRun, RunSetup, open_setup
from fedpgp.runtime.files import write_json

HEADLINE = ("zero-shot", "local", "promptfl", "fedpgp")  # what is compared unless methods are named

Cells = Mapping[Cell, Path | None]  # -> run directory, if results are written


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
    _check_seed(seed)
    directory = None if output is None else Path(output)
    if directory is not None:
        check_output(directory, force)

    execution = Execution(**options)

    def work() -> Records[Run]:
        _describe(settings, experiment, [name], execution.listener)
        with open_setup(experiment, [name], [seed], execution) as setup:
            if directory is not None:
                with run_directory(directory, force) as scratch:
                    begin(scratch, setup.open(name, seed).origin())
            (result,) = yield from _work(setup, {(name, seed): directory})
        return result

    return Rounds(work())


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
    experiment, chosen, every = _compared_with(methods, seeds, costly_seeds, config, changes, settings)
    directory = None if output is None else Path(output)
    if directory is not None:
        check_output(directory, force)
    execution = Execution(**options)
    _describe(settings, experiment, list(chosen), execution.listener)
    with open_setup(experiment, list(chosen), every, execution) as setup:
        if directory is not None:
            with run_directory(directory, force) as scratch:
                write_json(scratch / PLAN, {"seeds": chosen})
                for (name, seed), cell in planned(scratch, chosen).items():
                    cell.mkdir(parents=True)
                    begin(cell, setup.open(name, seed).origin())
            planned_cells: Cells = planned(directory, chosen)
        else:
            planned_cells = dict.fromkeys(planned(Path(), chosen))
        runs = exhausted(_work(setup, planned_cells))
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
    experiment, chosen, every = _compared_with(methods, seeds, costly_seeds, config, changes, settings)
    execution = Execution(**options)
    _describe(settings, experiment, list(chosen), execution.listener)
    with open_setup(experiment, list(chosen), every, execution) as setup:
        return _timed(setup, dict.fromkeys(planned(Path(), chosen), 0)).describe(setup.workers.count)


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
    methods: Sequence[str | Method] = (),
    **options: Unpack[ExecutionOptions],
) -> Comparison:
    """Goes on with what `run` or `compare` left unfinished in a directory, to the same bytes as if never stopped.

    methods: those of the runs that are neither ours nor of an installed package, as they were given before: a results
    directory never says which code to execute.
    Finished runs are kept as they are; where all are finished nothing is done. A run's own directory is a comparison of
    one. Raises OutputError where the directory holds no run, where its config, checkpoint, images or state are not
    those that it was begun with, and where another process works on it.
    """
    directory, execution = Path(directory), Execution(**options)
    found = cells(directory)
    todo = {cell: path for cell, path in found.items() if is_unfinished(path)}
    for path in found.values():
        if path not in todo.values():
            remove(path / FILE)  # a kill may have come between the last file and this
    if not todo:
        if is_compared(directory):
            execution.listener.notice(f"{directory} is finished: nothing to resume")
            return load_comparison(directory)
        return _compared([load_run(path) for path in found.values()], directory, execution)
    given = [method if isinstance(method, Method) else find_method(method)() for method in methods]
    for name, _ in todo:
        if name not in {*METHODS, *installed(), *(method.name for method in given)}:
            raise OutputError(
                f"{directory} was begun with the method {name!r}, which is neither ours nor of an installed package:"
                " name it as it was then, with --method path/to/file.py:Name"
            )
    config = started_config(list(todo.values()), given)
    names, seeds = (list(dict.fromkeys(keys)) for keys in zip(*todo, strict=True))
    config = replace(
        config,
        methods={**{name: find_method(name)() for name in names if name not in config.methods}, **config.methods},
    )
    with open_setup(config, names, seeds, execution) as setup:
        runs = exhausted(_work(setup, found))
    return _compared(runs, directory, execution)


def _compared(runs: Sequence[Run], directory: Path | None, execution: Execution) -> Comparison:
    """The comparison of some runs, written where it has a directory of its own."""
    comparison = Comparison(runs)
    if execution.writers is not None and directory is not None and (directory / PLAN).exists():
        with writing(directory, f"free space, then go on with --resume {directory}"):
            execution.writers.comparison(comparison, directory)
    return comparison


def chosen_seeds(given: int | Sequence[int], what: str) -> list[int]:
    """0 … n−1 for a number n, or those that are given, each once. what: the argument's name, for a message."""
    seeds = list(range(given)) if isinstance(given, int) else list(dict.fromkeys(given))
    if not seeds:
        raise ConfigError(f"{what} must be at least 1, got {given}")
    for seed in seeds:
        _check_seed(seed)
    return seeds


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ConfigError(f"seed must be 0 or more, got {seed}")


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
    wanted = [one for method in methods for one in (METHODS if method == ALL else [method])]
    if not wanted:
        raise ConfigError(f"methods must name at least one, got none; known: {', '.join(METHODS)}")
    found = [method if isinstance(method, Method) else find_method(method) for method in wanted]
    for method in found:
        if isinstance(method, Method):
            check_instance(method)
    for name, count in Counter(method.name for method in dict.fromkeys(found)).items():
        if count > 1:
            raise ConfigError(
                f"methods must have names of their own, got {count} called {name!r}: run them apart, or give a subclass"
                " another name"
            )
    names = list(dict.fromkeys(method.name for method in found))
    given = {method.name: method for method in found if isinstance(method, Method)}
    if settings and given:
        raise ConfigError(
            f'settings must be left out for methods that come with theirs, got "{settings}" for {", ".join(given)}:'
            " name the method instead"
        )
    published = [one for name in names for one in published_settings(name)] if settings else []
    if isinstance(config, ExperimentConfig):
        if changes or settings:
            raise ConfigError("changes and settings go with a config file; make another ExperimentConfig instead")
        experiment = config
    else:
        classes = [method if isinstance(method, type) else type(method) for method in found]
        taken = [one for one in published if of_task or one.of_method]
        experiment = load_config(config, [changes] if isinstance(changes, str) else changes, classes, published=taken)
    if settings:
        experiment = with_unused(experiment, names)
    sections = {method.name: method() for method in found if isinstance(method, type)}
    _check_engine(experiment.federation.engine)
    return names, replace(experiment, methods={**sections, **experiment.methods, **given})


def _describe(settings: str | None, experiment: ExperimentConfig, methods: Sequence[str], reporter: Reporter) -> None:
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


def _work(setup: RunSetup, cells: Cells) -> Records[list[Run]]:
    """Runs what is not finished and loads what is; the states are open, and so locked, from the beginning."""
    with ExitStack() as stack:
        states = {}
        for cell, path in cells.items():
            if path is None:
                states[cell] = stack.enter_context(State.create(origin=setup.open(*cell).origin()))
            elif is_unfinished(path):
                states[cell] = stack.enter_context(State.open(path / FILE))
                check_origin(path, states[cell], setup.open(*cell).origin(), setup.execution.listener.notice)
        plan = _plan(setup, {cell: state.rounds() for cell, state in states.items()})
        runs = []
        for cell, path in cells.items():
            if path is not None and cell not in states:
                runs.append(load_run(path))
                continue
            started = time.perf_counter()
            runs.append((yield from _run(setup.open(*cell), path, states[cell])))
            plan.done(cell, time.perf_counter() - started)
            if plan.runs > 1:
                setup.execution.listener.progress("all runs", plan.finished, plan.runs, plan.in_words)
        return runs


def _plan(setup: RunSetup, done: Mapping[Cell, int]) -> ComparisonPlan:
    """The runs to do, which are told; nothing is timed where there is one at most, or nobody hears of it.

    done: how many rounds of each are finished.
    """
    if len(done) <= 1 or not hears_notices(setup.execution.listener):
        return ComparisonPlan(dict.fromkeys(done, 0.0))
    plan = _timed(setup, done)
    setup.execution.listener.notice(plan.describe(setup.workers.count))
    return plan


def _timed(setup: RunSetup, done: Mapping[Cell, int]) -> ComparisonPlan:
    setup.workers.start()  # once, which is no part of what a round takes
    rates: dict[str, float] = {}
    names = list(dict.fromkeys(name for name, _ in done))
    for i, name in enumerate(names):
        setup.execution.listener.progress("timing a round of each method", i, len(names), name)
        seed = next(seed for of, seed in done if of == name)
        rates[name] = _seconds(setup.open(name, seed))
    setup.execution.listener.progress("timing a round of each method", len(names), len(names))
    left = {
        (name, seed): rates[name] * (1 - finished / rounds_of(setup.config.methods[name], setup.config.federation))
        for (name, seed), finished in done.items()
    }
    return ComparisonPlan(left)


def _seconds(opened: OpenRun) -> float:
    try:
        with own_errors(opened.method, training=True):
            return seconds_of_run(opened.runner, opened.workers)
    except TrainingError:
        return 0.0  # the run itself will say so, in its place


def _with_own_errors(method: Method, records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The same records; what hears of them, a reporter, is no code of the method, though it may be in the same file."""
    with own_errors(method, training=True):
        yield from records


def _run(opened: OpenRun, directory: Path | None, state: State) -> Records[Run]:
    """Runs what is left of one run, and writes its files where it has a directory."""
    name, seed, config, task, spec = opened.name, opened.seed, opened.config, opened.task, opened.spec
    method, settings, execution = opened.method, config.federation, opened.setup.execution
    reporter = execution.listener
    label = f"{name}, seed {seed}"
    total = rounds_of(method, settings)
    reporter.begin(name, seed, config)
    for sentence in assumptions(config.privacy, config.federation, method, spec.clients, spec.most_rounds):
        reporter.notice(sentence)
    reporter.progress(label, state.rounds(), total)
    if settings.engine == "local":
        finished = federate(opened.runner, opened.workers, state)
    else:
        finished = execution.engines[settings.engine](opened, directory, state)
    remedy = f"free space, then go on with --resume {directory}"
    if directory is not None:
        with writing(directory, remedy):
            write_records(state.records(), directory)
    for record in _with_own_errors(method, finished):
        number = record["round"]
        if directory is not None:
            with writing(directory, remedy):
                add_record(record, directory)
        reporter.progress(label, number or 1, total if number else 1, headline(record))
        reporter.round(name, seed, record)
        yield record
    records, last, server = state.records(), state.evaluation(), state.server()
    assert server is not None, "a finished round has a server"
    result = Run(
        config=config,
        results=figures(task, name, seed, records, last, spec.first(0).private),
        rounds=records,
        prompts=prompts_of(spec, server, spec.states(state.client)),
        outcomes=outcomes(task, last),
        provenance=state.origin()["provenance"],
        answers=answers(task, last),
    )
    if directory is not None:
        with writing(directory, remedy):
            write_run(result, directory)
        state.remove()
        result = load_run(directory, [type(method)])
    reporter.finish(result)
    return result
