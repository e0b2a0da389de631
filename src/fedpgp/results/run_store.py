"""The run directory: its files are written atomically and read again."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from fedpgp.errors import FedPGPError, InUseError, OutputError
from fedpgp.federation.state import FILE, State
from fedpgp.methods import Method
from fedpgp.methods.plugins import is_registered
from fedpgp.results.content import Plan
from fedpgp.results.read import (
    ANSWERS,
    OUTCOMES,
    PROMPTS,
    PROVENANCE,
    RECORDS,
    RESULTS,
    open_state,
    read_config,
    read_json,
    read_run,
)
from fedpgp.results.run import Comparison, Run, Unfinished
from fedpgp.results.study_content import StudyRecord
from fedpgp.runtime.files import exists, flush_directory, new_directory, tensor_bytes, write, write_json
from fedpgp.runtime.validation import flag

PLAN = "plan.json"  # the methods of a comparison, each with its seeds
WRITTEN = (RESULTS, PROVENANCE, ANSWERS, OUTCOMES, PROMPTS, RECORDS)
FINISHED = {  # file with the arguments of a study -> its command, and the file that is written last
    "tuning.json": ("tune", "tuned.toml"),
    "ablation.json": ("ablate", "ablation.csv"),
    "sweep.json": ("sweep", "sweep.csv"),
    "reproduction.json": ("reproduce", "reproduction.csv"),
}
FLOWER = "flwr run"  # the command of a run across machines
A_RUN = "Use a directory that `fedpgp run` wrote"
SHOWN = 4  # directories that a message lists


def write_run(run: Run, directory: Path) -> None:
    """Write a run into a directory that has its config.toml. With results.json, the last file, the run is finished."""
    write_records(run.rounds, directory)
    write(directory / PROMPTS, tensor_bytes(run.prompts))
    if run.outcomes is not None:
        outcomes = {name: torch.from_numpy(getattr(run.outcomes, name)) for name in ("alphas", "base", "novel", "own")}
        write(directory / OUTCOMES, tensor_bytes(outcomes))
    if run.answers:
        write(directory / ANSWERS, tensor_bytes(run.answers))
    write_json(directory / PROVENANCE, run.provenance)
    write_json(directory / RESULTS, run.results)
    flush_directory(directory)


def write_records(records: Sequence[Mapping[str, Any]], directory: Path) -> None:
    """Write the records of all rounds. A file that has them already keeps the time of the last round."""
    file, content = directory / RECORDS, b"".join(map(_line, records))
    if not file.exists() or file.read_bytes() != content:
        write(file, content)


def add_record(record: Mapping[str, Any], directory: Path) -> None:
    """Append the record of a round for other processes, which cannot read the locked state of a running run."""
    with (directory / RECORDS).open("ab") as file:
        file.write(_line(record))


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def load_run(directory: str | Path, methods: Sequence[type[Method]] = ()) -> Run:
    """Read a finished run.

    Parameters
    ----------
    directory
        The run directory.
    methods
        Methods that are not built in, whose sections of the config are read, too.

    Returns
    -------
    The run.

    Raises
    ------
    OutputError
        The directory does not contain a finished run, or a file is damaged.
    """
    directory = Path(directory)
    if not exists(directory):
        raise OutputError("the directory does not exist", where=f"{directory}", remedy=A_RUN)
    if is_unfinished(directory):
        raise OutputError("the run is not finished", where=f"{directory}", remedy=resume_remedy(directory))
    try:
        return read_run(directory, methods)
    except FileNotFoundError as error:
        problem, remedy = _instead_of_a_run(directory) or (
            f"the directory is not a run, because {error.filename or error} is missing",
            A_RUN,
        )
        raise OutputError(problem, where=f"{directory}", remedy=remedy) from error


def load_comparison(directory: str | Path) -> Comparison:
    """Read the runs of a comparison.

    Parameters
    ----------
    directory
        A directory of `fedpgp compare`; a run directory is a comparison of one run.

    Raises
    ------
    OutputError
        The directory does not contain a run, or a run is damaged.
    """
    runs: list[Run] = []
    unfinished: list[Unfinished] = []
    for (method, seed), cell in cells(Path(directory)).items():
        if not is_unfinished(cell):
            run = load_run(cell)
            _check_place(cell, (run.method, run.seed), (method, seed))
            if reason := unlike(run, runs):
                raise OutputError(
                    f"the run cannot be in this comparison: {reason}",
                    where=f"{cell}",
                    remedy="Use the directories of the runs separately",
                )
            runs.append(run)
            continue
        try:
            stopped = _look(cell)
            _check_place(cell, (stopped.method, stopped.seed), (method, seed))
        except InUseError:
            stopped = Unfinished(method, seed, _rounds(cell), running=True)
        unfinished.append(stopped)
    return Comparison(runs, unfinished)


def _check_place(directory: Path, found: tuple[str, int], planned: tuple[str, int]) -> None:
    if found != planned:
        raise OutputError(
            f"the run is of {found[0]} with seed {found[1]}, but it is in the directory of {planned[0]} with seed"
            f" {planned[1]}",
            where=f"{directory}",
            remedy="Move it back, or use its directory separately",
        )


def unlike(run: Run, others: Sequence[Run]) -> str:
    """Return why a run cannot be in a table with other runs, or ""."""
    for other in others:
        if run.results["final"].keys() != other.results["final"].keys():
            return f"it has other metrics than {other.method} with seed {other.seed}"
        if run.results["task"]["images"] != other.results["task"]["images"]:
            return f"it has other numbers of test images than {other.method} with seed {other.seed}"
        if run.method == other.method and (run.results["shared"] is None) != (other.results["shared"] is None):
            return f"the shared model was evaluated only with one of the seeds {run.seed} and {other.seed}"
    return ""


def cells(directory: Path) -> dict[tuple[str, int], Path]:
    """Return the runs of a directory, finished or not: method and seed -> run directory.

    Parameters
    ----------
    directory
        A directory of `fedpgp compare` or `fedpgp run`.

    Raises
    ------
    OutputError
        The directory does not contain a run, or its plan is damaged.
    """
    plan, remedy = directory / PLAN, "Use a directory that `fedpgp run` or `fedpgp compare` wrote"
    if not exists(directory):
        raise OutputError("the directory does not exist", where=f"{directory}", remedy=remedy)
    if plan.exists():
        return planned(directory, _read_plan(plan))
    if is_unfinished(directory):
        unfinished = _look(directory)
        return {(unfinished.method, unfinished.seed): directory}
    if (directory / RESULTS).exists():
        run = load_run(directory)
        return {(run.method, run.seed): directory}
    if inside := _inside(directory):
        raise OutputError(
            "the directory is not a run or a comparison, but contains some",
            where=f"{directory}",
            remedy=f"Use one of these, the newest first: {_some(inside)}",
        )
    raise OutputError("the directory contains no run", where=f"{directory}", remedy=remedy)


def _instead_of_a_run(directory: Path) -> tuple[str, str] | None:
    """Return problem and remedy for a directory that is not a run but contains runs, or None."""
    if (directory / PLAN).exists():
        if runs := _finished(directory):
            return "the directory is a comparison, not a run", f"Use one of its runs: {_some(runs)}"
        return "the directory is a comparison without a finished run", resume_remedy(directory) or A_RUN
    if inside := [run for result in _inside(directory) for run in _finished(result)]:
        problem = "the directory is not a run, but contains some"
        return problem, f"Use one of these, the newest first: {_some(inside)}"
    return None


def _inside(directory: Path) -> list[Path]:
    """Return the runs and comparisons in a directory and in its subdirectories, the newest first."""
    results: list[Path] = []
    for level in ("*", "*/*"):
        for path in sorted(directory.glob(level)):
            if any(part.startswith(".") for part in path.relative_to(directory).parts):
                continue  # it is being written
            if any(above in results for above in path.parents):
                continue
            with suppress(OSError):  # no permission to read it
                if any((path / name).exists() for name in (PLAN, RESULTS, FILE)):
                    results.append(path)
    return sorted(results, key=lambda path: -path.stat().st_mtime)


def _finished(directory: Path) -> list[Path]:
    """Return the finished runs of a comparison, or the directory itself if it is a finished run."""
    runs = [directory]
    if (directory / PLAN).exists():
        try:
            runs = list(planned(directory, _read_plan(directory / PLAN)).values())
        except OutputError:
            return []
    return [run for run in runs if (run / RESULTS).exists()]


def _some(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(map(str, paths[:SHOWN])) + more


def _read_plan(plan: Path) -> dict[str, list[int]]:
    """Return the seeds of each method in the plan of a comparison; raise OutputError if it is not a valid plan."""
    seeds: dict[str, list[int]] = read_json(plan, Plan, "Use the directory of one of its runs")["seeds"]
    return seeds


def planned(directory: Path, seeds: Mapping[str, Sequence[int]]) -> dict[tuple[str, int], Path]:
    """Return the runs of a comparison: method and seed -> run directory. All methods with one seed come together."""
    order = dict.fromkeys(seed for of_method in seeds.values() for seed in of_method)
    return {
        (name, seed): directory / name / f"seed-{seed}"
        for seed in order
        for name, of_method in seeds.items()
        if seed in of_method
    }


def is_unfinished(directory: Path) -> bool:
    """Return whether a run was begun in a directory and not finished."""
    return (directory / FILE).exists() and not (directory / RESULTS).exists()


def is_compared(directory: Path) -> bool:
    """Return whether the table of a comparison is written; the directory of a single run needs no table."""
    return (directory / "comparison.json").exists() or not (directory / PLAN).exists()


def resume_command(directory: Path) -> str | None:
    """Return the command that resumes what was stopped in a directory; None if nothing can be resumed."""
    for record, (name, last) in FINISHED.items():
        if (directory / record).exists():
            return None if (directory / last).exists() else f"fedpgp {name} --resume {directory}"
    if is_compared(directory) and not is_unfinished(directory):
        return None
    with suppress(FedPGPError, FileNotFoundError):
        if read_config(directory).federation.engine == "deployment":
            return FLOWER
    command = f"fedpgp run --resume {directory}" if is_compared(directory) else f"fedpgp compare --resume {directory}"
    with suppress(OutputError):
        if not all(is_registered(name) for name, _ in cells(directory)):
            option = "--method" if is_compared(directory) else "--methods"
            return f"{command} {option} path/to/file.py:Name"
    return command


def resume_remedy(directory: Path) -> str:
    """Return a sentence that says how to resume what was stopped in a directory; "" if nothing can be resumed."""
    command = resume_command(directory)
    if command == FLOWER:
        return f"Resume it on its server, with the same `{FLOWER}` command as before"
    return f"Resume it with `{command}`" if command else ""


def _look(directory: Path) -> Unfinished:
    rounds = _rounds(directory)
    with open_state(directory, patience=0) as state:
        origin, records = state.origin(), state.records()
        return Unfinished(origin["method"], origin["seed"], rounds, records[-1] if records else None)


def _rounds(directory: Path) -> int:
    """Return the number of rounds that an unfinished run will have."""
    try:
        return read_config(directory).federation.rounds
    except FileNotFoundError as error:
        raise OutputError("the run has no config.toml", where=f"{directory}", remedy="Start the run again") from error


def check_output(directory: Path, force: bool, ours: Callable[[Path], bool] | None = None) -> None:
    """Check before any work that results can be written to a directory.

    Parameters
    ----------
    directory
        The output directory.
    force
        Replace the directory if it exists.
    ours
        Returns whether the existing directory may be replaced; None accepts directories of runs and comparisons.

    Raises
    ------
    OutputError
        The directory exists and may not be replaced, or it cannot be written.
    """
    flag(force, "force")
    if directory.exists() and not force:
        resume = resume_remedy(directory)
        raise OutputError(
            "the output directory exists",
            where=f"{directory}",
            remedy=f"Use another directory with -o, or replace it with --force{f'. {resume}' if resume else ''}",
        )
    if directory.exists() and not (ours or _is_ours)(directory):
        raise OutputError(
            "the output directory contains files that fedpgp did not write",
            where=f"{directory}",
            remedy="Use another directory with -o",
        )
    for cell in [directory, *directory.glob("**/seed-*")]:
        if is_unfinished(cell):
            _check_idle(cell)
    if any((directory / record).exists() for record in FINISHED):
        with locked(directory):
            pass
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent):
            pass
    except OSError as error:
        raise OutputError(
            f"the output directory cannot be written: {error.strerror}",
            where=f"{directory}",
            remedy="Use another directory with -o",
        ) from error


def _is_ours(directory: Path) -> bool:
    """Return whether a directory is empty, or contains a study, or a run's config with its state or results.

    The state and the results may be damaged, or of another version.
    """
    if not directory.is_dir():
        return False
    if not any(directory.iterdir()):
        return True
    try:
        if (directory / PLAN).exists():
            return all(cell.is_dir() for cell in planned(directory, _read_plan(directory / PLAN)).values())
        for record in FINISHED:
            if (directory / record).exists():
                read_json(directory / record, StudyRecord)
                return True
        read_config(directory)
    except (FedPGPError, OSError):
        return False
    return (directory / FILE).exists() or (directory / RESULTS).exists()


def _check_idle(directory: Path) -> None:
    """Raise InUseError if another process works on a run, because it would write into the new directory."""
    try:
        State.open(directory / FILE).close()
    except InUseError:
        raise
    except OutputError:
        pass  # it is damaged or of another version, so no process works on it


@contextmanager
def run_directory(directory: Path, force: bool) -> Iterator[Path]:
    """Yield a new directory for results, which gets its name when it is complete and replaces an older directory."""
    check_output(directory, force)
    with (
        writing(directory, "Free some disk space, or use another directory with -o"),
        new_directory(directory) as scratch,
    ):
        yield scratch


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lock a study for this process.

    Raises
    ------
    InUseError
        Another process has locked it.
    """
    lock = FileLock(directory / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InUseError("another process works on the study", where=f"{directory}", remedy="Wait for it") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing(directory: Path, remedy: str) -> Iterator[None]:
    """Turn an OSError of the system into an OutputError with a remedy."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"the results cannot be written: {error.strerror or error}", where=f"{directory}", remedy=remedy
        ) from error
