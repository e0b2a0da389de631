"""The search itself: trials in batches, in any number of processes, to the same result."""

import json
import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from typing_extensions import Unpack

from fedpgp.config import ExperimentConfig
from fedpgp.errors import ConfigError, OutputError
from fedpgp.methods import Method
from fedpgp.methods.plugins import is_registered
from fedpgp.results.run_store import locked, run_directory, writing
from fedpgp.runs.choices import chosen_methods, chosen_seeds
from fedpgp.runs.execution import Execution, ExecutionOptions
from fedpgp.runtime.files import write, write_json
from fedpgp.runtime.validation import texts, whole_number
from fedpgp.studies.study import CONFIG, reading_record, resume_command
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
    """Search for the settings of each method with as many trials as of every other, and write them as a config file.

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
    trials = whole_number(trials, "trials", 1)
    if objective not in FIGURES:
        raise ConfigError(f"objective must be one of {', '.join(FIGURES)}, got {objective!r}")
    names, settings = chosen_methods(methods, config, changes)
    spaces = search_spaces({name: settings.methods[name] for name in names}, space, texts(search, "search"))
    empty = [name for name in names if not spaces[name]]
    if methods == "all":
        spaces = {name: spaces[name] for name in names if spaces[name]}
    elif empty:
        raise ConfigError(
            f"nothing is searched of {', '.join(empty)}: name a field with --search {empty[0]}.field=low..high, or"
            " leave it out"
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
    """Go on with a search that was stopped, to the same result as if it never was, or add trials to a finished one.

    trials: of each method; None takes what was planned. methods: those that are neither ours nor of an installed
    package, as they were given before. Raises OutputError where the directory holds no search, or one of another
    version of fedpgp or on another task.
    """
    directory, execution = Path(directory), Execution(**options)
    with reading_record(directory, "tuning", to_resume=True) as record:
        planned, seeds, objective = record["trials"], record["seeds"], record["objective"]
        described = dict(record["spaces"])
        ours = [name for name in described if is_registered(name)]
    own = [methods] if isinstance(methods, str | Method) else methods
    _, settings = chosen_methods([*ours, *own], directory / CONFIG, ())
    if unknown := described.keys() - settings.methods.keys():
        raise OutputError(
            f"{directory} was begun with {', '.join(sorted(unknown))}, neither ours nor of an installed package: name"
            " it as it was then, with --methods path/to/file.py:Name"
        )
    count = planned if trials is None else whole_number(trials, "trials", 1)
    if count < planned:
        raise ConfigError(f"trials must be at least {planned}, as many as were planned, got {count}")
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
                    f"{directory} holds a search with {what} {before!s:.60}, here it is {now.get(what)!s:.60}: go on"
                    " with what it was begun with, or search again into another directory"
                )
        write_json(directory / TUNING, now)
    return _search(replace(tuning, trials=_known_trials(directory)), directory, execution)


def _known_trials(directory: Path) -> list[Trial]:
    """The trials that are done. What a kill left of a last line is cut off, so that the next begins one of its own."""
    path = directory / TRIALS
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write(path, whole)
    try:
        return [Trial(**json.loads(line)) for line in whole.splitlines()]
    except (ValueError, TypeError) as error:
        raise OutputError(f"{path} is damaged: {error}; search again into another directory") from error


def _search(tuning: Tuning, directory: Path, execution: Execution) -> Tuning:
    """Propose and evaluate the trials that are not known, and write the files."""
    options: ExecutionOptions = {"cache": execution.cache, "skip_bad_images": execution.skip_bad_images}
    remedy = f"free space, then go on with: {resume_command(directory, 'tuning')}"
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
