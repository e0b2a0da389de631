"""The search: batches of trials in any number of processes, always with the same result."""

import json
import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

from typing_extensions import Unpack

from fedpgp.config import ExperimentConfig
from fedpgp.errors import ConfigError, OutputError
from fedpgp.methods import Method
from fedpgp.methods.plugins import is_registered
from fedpgp.results.run_store import locked, run_directory, writing
from fedpgp.results.study_content import TrialContent
from fedpgp.runs.choices import chosen_methods, chosen_seeds
from fedpgp.runs.execution import Execution, ExecutionOptions
from fedpgp.runtime import limits
from fedpgp.runtime.files import write, write_json
from fedpgp.runtime.untrusted import parse, read_text
from fedpgp.runtime.validation import texts, whole_number
from fedpgp.studies.study import CONFIG, read_record, resume_command
from fedpgp.studies.tuning.evaluation import evaluate, evaluated
from fedpgp.studies.tuning.proposals import Proposals
from fedpgp.studies.tuning.space import described_space, search_spaces
from fedpgp.studies.tuning.tuning import FIGURES, Objective, Trial, Tuning

TUNING, TRIALS = "tuning.json", "trials.jsonl"


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
    """Search for hyperparameters with the same number of trials for each method, and write them as a config file.

    A trial trains a method on base classes and evaluates it on validation images of base classes; the test split is
    never read. Trial 0 has the settings of the given config, so the result is never worse on validation images.

    Parameters
    ----------
    methods
        Methods to tune; "all" takes every built-in method that has a search space.
    trials
        Number of trials of each method.
    seeds
        Number of seeds of every trial, or the seeds themselves; the value of a trial is the mean over the seeds.
    objective
        Metric of the last round that is maximized: cm, hm, local, base or novel.
    config
        Config, TOML file or name of a recipe; None takes the default recipe.
    changes
        Changes of the config, such as "task.shots=4".
    space
        TOML file of search spaces, see `fedpgp.studies.tuning.space.search_spaces`.
    search
        Ranges or choices of single fields, see `fedpgp.studies.tuning.space.search_spaces`.
    output
        Directory for tuning.json, trials.jsonl, trials.csv and tuned.toml. After Ctrl-C, a kill or an error,
        `resume_tuning(output)` continues the search.
    force
        Replace an existing output directory.
    **options
        Options of `fedpgp.run` about how runs are executed.

    Raises
    ------
    FedPGPError
        Before any work, if a method, the config, a space, the data or the output does not fit.
    """
    trials = whole_number(trials, "trials", 1)
    if objective not in FIGURES:
        raise ConfigError(
            where="objective",
            allowed=f"one of {', '.join(FIGURES)}",
            got=objective,
            remedy=f"Use {FIGURES[-1]} for the combined metric",
        )
    names, settings = chosen_methods(methods, config, changes)
    spaces = search_spaces({name: settings.methods[name] for name in names}, space, texts(search, "search"))
    empty = [name for name in names if not spaces[name]]
    if methods == "all":
        spaces = {name: spaces[name] for name in names if spaces[name]}
    elif empty:
        raise ConfigError(
            f"no search space for {', '.join(empty)}",
            where="methods",
            remedy=f"Add one with --search {empty[0]}.field=low..high, or leave the method out",
        )
    tuning = Tuning(settings, spaces, trials, chosen_seeds(seeds, "seeds"), objective)
    directory, execution = Path(output), Execution(**options)
    with tuning.prepared(execution) as setup, run_directory(directory, force) as scratch:
        write(scratch / CONFIG, settings.to_toml().encode())
        write_json(scratch / TUNING, tuning.record(setup))
        write(scratch / TRIALS, b"")
    return _search(tuning, directory, execution)


def resume_tuning(
    directory: Path | str,
    *,
    trials: int | None = None,
    methods: Sequence[str | Method] = (),
    **options: Unpack[ExecutionOptions],
) -> Tuning:
    """Continue an interrupted search, with the same result as an uninterrupted one, or add trials to a finished one.

    Parameters
    ----------
    directory
        Directory of the search.
    trials
        Number of trials of each method; None takes the planned number.
    methods
        Methods of the search that are neither built in nor part of an installed package.
    **options
        Options of `fedpgp.run` about how runs are executed.

    Raises
    ------
    OutputError
        If the directory has no search, or a search with another version of fedpgp or another task.
    """
    directory, execution = Path(directory), Execution(**options)
    record = read_record(directory, "tuning", to_resume=True)
    planned, seeds, objective, described = (record[key] for key in ("trials", "seeds", "objective", "spaces"))
    ours = [name for name in described if is_registered(name)]
    own = [methods] if isinstance(methods, str | Method) else methods
    _, settings = chosen_methods([*ours, *own], directory / CONFIG, ())
    if unknown := described.keys() - settings.methods.keys():
        raise OutputError(
            f"the search was started with {', '.join(sorted(unknown))}, which is neither built in nor installed",
            where=f"{directory}",
            remedy="Name its file, as at the start of the search, with --methods path/to/file.py:Name",
        )
    count = planned if trials is None else whole_number(trials, "trials", 1)
    if count < planned:
        raise ConfigError(
            where="trials",
            allowed=f"at least {planned}, the planned number",
            got=count,
            remedy=f"Use --trials {planned} or more, or leave --trials out",
        )
    spaces = {
        name: described_space(settings.methods[name], fields, str(directory / TUNING))
        for name, fields in described.items()
    }
    tuning = Tuning(settings, spaces, count, seeds, objective)
    with tuning.prepared(execution) as setup:
        now = tuning.record(setup)
        for what, before in record.items():
            if what != "trials" and now.get(what) != before:
                raise OutputError(
                    f"{what} was {before!s:.60} at the start of the search, and is {now.get(what)!s:.60} now",
                    where=f"{directory}",
                    got=now.get(what),
                    remedy=f"Restore {what}, or start a new search in another directory",
                )
        write_json(directory / TUNING, now)
    return _search(replace(tuning, trials=_known_trials(directory)), directory, execution)


def _known_trials(directory: Path) -> list[Trial]:
    """Return the finished trials. An incomplete last line, left by a kill, is removed from the file."""
    path, remedy = directory / TRIALS, "The file is damaged: start a new search in another directory"
    content = read_text(path, limits.RECORDS, remedy)
    whole = content[: content.rfind("\n") + 1]
    if whole != content:
        write(path, whole.encode())
    lines = [parse(line, TrialContent, f"{path}:{at}", remedy) for at, line in enumerate(whole.splitlines(), 1)]
    return [Trial(**{field.name: line[field.name] for field in fields(Trial) if field.name in line}) for line in lines]


def _search(tuning: Tuning, directory: Path, execution: Execution) -> Tuning:
    """Propose and evaluate the missing trials, and write the files."""
    options: ExecutionOptions = {"cache": execution.cache, "skip_bad_images": execution.skip_bad_images}
    remedy = f"Free space, then continue with `{resume_command(directory, 'tuning')}`"
    queue = deque[Callable[[], Trial]]()

    def hand_out(proposals: Proposals) -> None:
        for number, settings in proposals.open():
            queue.append(partial(evaluate, tuning, proposals.name, number, settings, options))

    searches = {name: Proposals(tuning, name) for name in tuning.methods}
    with (
        locked(directory),
        closing(evaluated(queue, execution.workers)) as trials,
        (directory / TRIALS).open("a", encoding="utf-8") as file,
    ):
        for search in searches.values():
            hand_out(search)
        for trial in trials:
            with writing(directory, remedy):
                file.write(json.dumps(asdict(trial), allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            search = searches[trial.method]
            search.done[trial.number] = trial
            search.out -= 1
            count = sum(len(search.done) for search in searches.values())
            total = tuning.count * len(tuning.methods)
            execution.listener.progress("trials", count, total, trial.describe(tuning.objective))
            if not search.out:
                hand_out(search)
    done = [search.done[number] for search in searches.values() for number in range(tuning.count)]
    tuning = replace(tuning, trials=done)
    with writing(directory, remedy):
        write(directory / "trials.csv", tuning.as_csv().encode())
        write(directory / "tuned.toml", tuning.config.to_toml().encode())
    return tuning
