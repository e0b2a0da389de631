"""Execution of several runs, one after the other, with a plan that is printed first."""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fedpgp.errors import TrainingError
from fedpgp.federation.privacy import assumptions
from fedpgp.federation.protection import protection_notes
from fedpgp.federation.rounds import federate
from fedpgp.federation.run_spec import rounds_of
from fedpgp.federation.state import State
from fedpgp.methods import Method
from fedpgp.methods.plugins import own_errors
from fedpgp.reporting import hears_notices
from fedpgp.results.provenance import check_origin
from fedpgp.results.read import open_state
from fedpgp.results.run import Run, headline
from fedpgp.results.run_store import (
    add_record,
    is_unfinished,
    load_run,
    write_records,
    write_run,
    writing,
)
from fedpgp.results.summary import answers, figures, outcomes, prompts_of
from fedpgp.runs.comparison_plan import Cell, ComparisonPlan
from fedpgp.runs.run_iterator import Records
from fedpgp.runs.runtime_estimate import seconds_of_run
from fedpgp.runs.setup import OpenRun, RunSetup

Cells = Mapping[Cell, Path | None]  # method and seed -> run directory; None if no results are written


def work(setup: RunSetup, cells: Cells) -> Records[list[Run]]:
    """Compute the unfinished runs and load the finished ones. All states are open, and so locked, from the beginning.

    Parameters
    ----------
    setup
        Data that all runs share.
    cells
        The runs and their directories.

    Returns
    -------
    A generator that yields the record of each new round and returns all runs.
    """
    with ExitStack() as stack:
        states = {}
        for cell, path in cells.items():
            if path is None:
                states[cell] = stack.enter_context(State.create(origin=setup.open(*cell).origin()))
            elif is_unfinished(path):
                states[cell] = stack.enter_context(open_state(path))
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
    """Return and report the plan. Rounds are timed only for several runs and a reporter that uses notices.

    done: number of finished rounds of each run.
    """
    if len(done) <= 1 or not hears_notices(setup.execution.listener):
        return ComparisonPlan(dict.fromkeys(done, 0.0))
    plan = timed(setup, done)
    setup.execution.listener.notice(plan.describe(setup.workers.count))
    return plan


def timed(setup: RunSetup, done: Mapping[Cell, int]) -> ComparisonPlan:
    """Return a plan with an estimate of each run, from one timed round of each method.

    Parameters
    ----------
    setup
        Data that all runs share.
    done
        Number of finished rounds of each run.
    """
    setup.workers.start()  # the start of the processes must not be timed
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
        return 0.0  # the run itself will raise the error


def _with_own_errors(method: Method, records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the records; errors of the method's code become ConfigError, but errors of a reporter do not."""
    with own_errors(method, training=True):
        yield from records


def _run(opened: OpenRun, directory: Path | None, state: State) -> Records[Run]:
    """Compute the remaining rounds of one run, and write its files if it has a directory."""
    name, seed, config, task, spec = opened.name, opened.seed, opened.config, opened.task, opened.spec
    method, settings, execution = opened.method, config.federation, opened.setup.execution
    reporter = execution.listener
    label = f"{name}, seed {seed}"
    total = rounds_of(method, settings)
    reporter.begin(name, seed, config)
    private = assumptions(config.privacy, config.federation, method, spec.clients, spec.most_rounds)
    for sentence in [*private, *protection_notes(settings, config.privacy, spec.aggregator, spec.clients)]:
        reporter.notice(sentence)
    reporter.progress(label, state.rounds(), total)
    if settings.engine == "local":
        finished = federate(opened.runner, opened.workers, state)
    else:
        finished = execution.engines[settings.engine](opened, directory, state)
    remedy = f"Free some disk space, then resume it with --resume {directory}"
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
