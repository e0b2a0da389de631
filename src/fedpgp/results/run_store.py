"""The run directory: its files are written atomically and read again."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load

from fedpgp.config import load_config
from fedpgp.errors import ConfigError, InUseError, OutputError
from fedpgp.evaluation.bootstrap import Outcomes
from fedpgp.federation.state import FILE, State
from fedpgp.methods import Method
from fedpgp.methods.plugins import NAME, is_registered
from fedpgp.results.run import Comparison, Run, Unfinished
from fedpgp.runtime.files import TensorFile, exists, flush_directory, new_directory, tensor_bytes, write, write_json
from fedpgp.runtime.validation import flag

PLAN = "plan.json"  # the methods of a comparison, each with its seeds
ANSWERS, RECORDS = "answers.safetensors", "rounds.jsonl"
WRITTEN = ("results.json", "provenance.json", ANSWERS, "outcomes.safetensors", "prompts.safetensors", RECORDS)
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
    write(directory / "prompts.safetensors", tensor_bytes(run.prompts))
    if run.outcomes is not None:
        outcomes = {name: torch.from_numpy(getattr(run.outcomes, name)) for name in ("alphas", "base", "novel", "own")}
        write(directory / "outcomes.safetensors", tensor_bytes(outcomes))
    if run.answers:
        write(directory / ANSWERS, tensor_bytes(run.answers))
    write_json(directory / "provenance.json", run.provenance)
    write_json(directory / "results.json", run.results)
    flush_directory(directory)


def write_records(records: Sequence[Mapping[str, Any]], directory: Path) -> None:
    """Write the records of all rounds."""
    write(directory / RECORDS, b"".join(map(_line, records)))


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
        if not (directory / "config.toml").exists():
            raise FileNotFoundError("config.toml")
        config = load_config(directory / "config.toml", methods=methods, foreign=True)
        results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
        images, outcomes = results["task"]["images"], None
        if config.federation.engine != "deployment":
            tensors = load((directory / "outcomes.safetensors").read_bytes())
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            outcomes = Outcomes(**arrays, base_images=images["base"], novel_images=images.get("novel", 0))
        run = Run(
            config=config,
            results=results,
            rounds=[json.loads(line) for line in (directory / RECORDS).read_text(encoding="utf-8").splitlines()],
            prompts=TensorFile(directory / "prompts.safetensors"),
            outcomes=outcomes,
            provenance=json.loads((directory / "provenance.json").read_text(encoding="utf-8")),
            answers=TensorFile(directory / ANSWERS) if (directory / ANSWERS).exists() else {},
        )
        run.row, results["path"], results["private"], results["task"]["partition"]  # raises KeyError if one is missing
        return run
    except FileNotFoundError as error:
        problem, remedy = _instead_of_a_run(directory) or (
            f"the directory is not a run, because {error.filename or error} is missing",
            A_RUN,
        )
        raise OutputError(problem, where=f"{directory}", remedy=remedy) from error
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise OutputError(f"the run is damaged: {error}", where=f"{directory}", remedy="Run it again") from error


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
    runs, unfinished = [], []
    for (method, seed), cell in cells(Path(directory)).items():
        if not is_unfinished(cell):
            runs.append(load_run(cell))
            continue
        try:
            unfinished.append(_look(cell))
        except InUseError:
            rounds = load_config(cell / "config.toml", foreign=True).federation.rounds
            unfinished.append(Unfinished(method, seed, rounds, running=True))
    return Comparison(runs, unfinished)


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
    try:
        if plan.exists():
            return planned(directory, _read_plan(plan))
        if is_unfinished(directory):
            unfinished = _look(directory)
            return {(unfinished.method, unfinished.seed): directory}
        if (directory / "results.json").exists():
            run = load_run(directory)
            return {(run.method, run.seed): directory}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OutputError(
            f"the file is damaged: {error}", where=f"{plan}", remedy="Use the directory of one of its runs"
        ) from error
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
                if any((path / name).exists() for name in (PLAN, "results.json", FILE)):
                    results.append(path)
    return sorted(results, key=lambda path: -path.stat().st_mtime)


def _finished(directory: Path) -> list[Path]:
    """Return the finished runs of a comparison, or the directory itself if it is a finished run."""
    runs = [directory]
    if (directory / PLAN).exists():
        try:
            runs = list(planned(directory, _read_plan(directory / PLAN)).values())
        except (OSError, ValueError, TypeError, KeyError):
            return []
    return [run for run in runs if (run / "results.json").exists()]


def _some(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(map(str, paths[:SHOWN])) + more


def _read_plan(plan: Path) -> dict[str, list[int]]:
    """Return the seeds of each method; raise ValueError, TypeError or KeyError for a file that is not a valid plan."""
    content = json.loads(plan.read_text(encoding="utf-8"))
    seeds = {name: list(of_method) for name, of_method in dict(content["seeds"]).items()}
    if not seeds or not all(NAME.fullmatch(name) for name in seeds):  # names become parts of a path
        raise ValueError(f"the keys of seeds must be names of methods, got {list(seeds)}")
    for name, of_method in seeds.items():
        if not of_method or not all(type(seed) is int and seed >= 0 for seed in of_method):
            raise ValueError(f"the seeds of {name} must be whole numbers from 0, got {of_method}")
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
    return (directory / FILE).exists() and not (directory / "results.json").exists()


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
    with suppress(ConfigError):
        if load_config(directory / "config.toml", foreign=True).federation.engine == "deployment":
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
    with State.open(directory / FILE, patience=0) as state:
        origin, records = state.origin(), state.records()
        rounds = load_config(directory / "config.toml", foreign=True).federation.rounds
        return Unfinished(origin["method"], origin["seed"], rounds, records[-1] if records else None)


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
                return "fedpgp" in json.loads((directory / record).read_text(encoding="utf-8"))
        load_config(directory / "config.toml", foreign=True)
    except (OSError, ValueError, TypeError, KeyError, ConfigError):
        return False
    return (directory / FILE).exists() or (directory / "results.json").exists()


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
