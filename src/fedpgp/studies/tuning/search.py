"""The search itself: trials in batches, in any number of processes, to the same result."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from typing_extensions import Unpack

from fedpgp.config import ExperimentConfig
from fedpgp.errors import ConfigError, OutputError
from fedpgp.methods import METHODS, Method
from fedpgp.methods.plugins import installed
from fedpgp.results.run_store import TUNING, locked, run_directory, writing
from fedpgp.runs.choices import chosen_methods, chosen_seeds
from fedpgp.runs.execution import Execution, ExecutionOptions
from fedpgp.runtime.files import write, write_json
from fedpgp.studies.tuning.evaluation import Job, pool_of
from fedpgp.studies.tuning.plan import (
    CONFIG,
    TRIALS,
    SearchPlan,
    check_same,
    known_trials,
    prepared,
    read_plan,
    recorded,
)
from fedpgp.studies.tuning.proposals import Proposals
from fedpgp.studies.tuning.space import described_space, search_spaces
from fedpgp.studies.tuning.trials import Objective, Trial, Tuning, checked_objective, csv_of, in_words


def tune(
    methods: Sequence[str | Method] | str | Method = "all",
    *,
    trials: int = 16,
    seeds: int | Sequence[int] = 2,
    objective: Objective = "cm",
    config: ExperimentConfig | Path | str | None = None,
    changes: Sequence[str] = (),
    space: Path | str | None = None,
    search: Sequence[str] = (),
    output: Path | str,
    force: bool = False,
    **options: Unpack[ExecutionOptions],
) -> Tuning:
    """Searches for the settings of each method with as many trials as of every other, and writes them as a config file.

    A trial trains a method within the base classes and is judged on validation images of base classes: the test split
    is not even read. The first is the config as it stands, so that the search never ends below it on validation.

    Args:
        methods: "all" takes every built-in one that has something to search.
        seeds: of every trial; its value is their mean.
        objective: cm, hm, local, base or novel, of the last round.
        space, search: what is searched, see `fedpgp.studies.tuning.space.search_spaces`.
        output: a directory for tuning.json, trials.jsonl, trials.csv and tuned.toml. After Ctrl-C, a kill or an error,
            `resume_tuning(output)` goes on.
        The rest as in `fedpgp.run`.

    Raises:
        FedPGPError: before any work where method, config, space, data or output do not fit.
    """
    if trials < 1:
        raise ConfigError(f"trials must be 1 or more, got {trials}")
    checked_objective(objective)
    names, settings = chosen_methods(methods, config, changes)
    spaces = search_spaces({name: settings.methods[name] for name in names}, space, search)
    empty = [name for name in names if not spaces[name]]
    if methods == "all":
        spaces = {name: spaces[name] for name in names if spaces[name]}
    elif empty:
        raise ConfigError(
            f"nothing is searched of {', '.join(empty)}: name a field with --search {empty[0]}.field=low..high, or"
            " leave it out"
        )
    plan = SearchPlan(settings, spaces, trials, chosen_seeds(seeds, "seeds"), objective)
    directory = Path(output)
    with prepared(plan, Execution(**options)) as setup, run_directory(directory, force) as scratch:
        write(scratch / CONFIG, settings.to_toml().encode())
        write_json(scratch / TUNING, recorded(plan, setup))
        write(scratch / TRIALS, b"")
    return _search(plan, directory, [], Execution(**options))


def resume_tuning(
    directory: Path | str,
    *,
    trials: int | None = None,
    methods: Sequence[str | Method] = (),
    **options: Unpack[ExecutionOptions],
) -> Tuning:
    """Goes on with a search that was stopped, to the same result as if it never was, or adds trials to a finished one.

    trials: of each method; None takes what was planned. methods: those that are neither ours nor of an installed
    package, as they were given before. Raises OutputError where the directory holds no search, or one of another
    version of fedpgp or on another task.
    """
    directory = Path(directory)
    record = read_plan(directory)
    ours = [name for name in record["spaces"] if name in {*METHODS, *installed()}]
    _, settings = chosen_methods([*ours, *methods], directory / CONFIG, ())
    unknown = record["spaces"].keys() - settings.methods.keys()
    if unknown:
        raise OutputError(
            f"{directory} was begun with {', '.join(sorted(unknown))}, neither ours nor of an installed package: name"
            " it as it was then, with --methods path/to/file.py:Name"
        )
    wanted = record["trials"] if trials is None else trials
    plan = SearchPlan(
        settings,
        {
            name: described_space(settings.methods[name], fields, str(directory / TUNING))
            for name, fields in record["spaces"].items()
        },
        wanted,
        record["seeds"],
        record["objective"],
    )
    if wanted < record["trials"]:
        raise ConfigError(f"trials must be at least {record['trials']}, as many as were planned, got {wanted}")
    with prepared(plan, Execution(**options)) as setup:
        now = recorded(plan, setup)
        check_same(directory, record, now)
        write_json(directory / TUNING, now)
    return _search(plan, directory, known_trials(directory), Execution(**options))


def _search(
    plan: SearchPlan,
    directory: Path,
    known: Sequence[Trial],
    execution: Execution,
) -> Tuning:
    """Proposes and evaluates what is not known, and writes what came of it."""
    alone = Execution(cache=execution.cache, skip_bad_images=execution.skip_bad_images)
    total, advice = plan.trials * len(plan.methods), f"free space, then go on with: fedpgp tune --resume {directory}"
    searches = {
        name: Proposals(plan, name, [trial for trial in known if trial.method == name]) for name in plan.methods
    }

    def hand_out(search: Proposals) -> None:
        for number, settings in search.open():
            pool.submit(Job(plan.validation, search.name, number, settings, plan.seeds, plan.objective, alone))
            search.out += 1

    with (
        locked(directory),
        pool_of(execution.workers) as pool,
        (directory / TRIALS).open("a", encoding="utf-8") as file,
    ):
        for search in searches.values():
            hand_out(search)
        count = sum(len(search.done) for search in searches.values())
        while any(search.out for search in searches.values()):
            trial = pool.next()
            with writing(directory, advice):
                file.write(json.dumps(asdict(trial), allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            count += 1
            execution.listener.progress("trials", count, total, in_words(trial, plan.objective))
            search = searches[trial.method]
            search.done[trial.number] = trial
            search.out -= 1
            if not search.out:
                hand_out(search)
    trials = [search.done[number] for search in searches.values() for number in range(plan.trials)]
    found = Tuning(trials, plan.config, plan.objective)
    with writing(directory, advice):
        write(directory / "trials.csv", csv_of(trials).encode())
        write(directory / "tuned.toml", found.config.to_toml().encode())
    return found
