"""The run directory: what a run leaves behind, written whole or not at all, and read again."""

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

PLAN = "plan.json"  # of a comparison: its methods, each with its seeds
ANSWERS, RECORDS = "answers.safetensors", "rounds.jsonl"
WRITTEN = ("results.json", "provenance.json", ANSWERS, "outcomes.safetensors", "prompts.safetensors", RECORDS)
FINISHED = {  # what was asked of a command -> the command, and what it writes last
    "tuning.json": ("tune", "tuned.toml"),
    "ablation.json": ("ablate", "ablation.csv"),
    "sweep.json": ("sweep", "sweep.csv"),
    "reproduction.json": ("reproduce", "reproduction.csv"),
}
SHOWN = 4  # of several directories, in a message


def write_run(run: Run, directory: Path) -> None:
    """Writes a run into a directory that has its config.toml; results.json is the last: with it the run is finished."""
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
    """Writes the records of all rounds."""
    write(directory / RECORDS, b"".join(map(_line, records)))


def add_record(record: Mapping[str, Any], directory: Path) -> None:
    """Adds that of a round, for those who watch: the state, which is safe, is locked while it is worked on."""
    with (directory / RECORDS).open("ab") as file:
        file.write(_line(record))


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def load_run(directory: str | Path, methods: Sequence[type[Method]] = ()) -> Run:
    """The run that a directory holds; raises OutputError, naming the file, where it does not hold a finished one.

    methods: those beside ours whose sections are to be read in its config.
    """
    directory = Path(directory)
    if not exists(directory):
        raise OutputError(f"{directory} does not exist; name a directory of fedpgp run")
    if is_unfinished(directory):
        raise OutputError(f"{directory} holds a run that is not finished; go on with: {resume_command(directory)}")
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
        run.row, results["path"], results["private"], results["task"]["partition"]  # or KeyError
        return run
    except FileNotFoundError as error:
        instead = _instead_of_a_run(directory)
        raise OutputError(
            instead or f"{directory} is not a run: {error.filename or error} is missing; name a directory of fedpgp run"
        ) from error
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise OutputError(f"{directory} holds a damaged run: {error}; run it again") from error


def load_comparison(directory: str | Path) -> Comparison:
    """The runs that a directory of `fedpgp compare` holds; a run's own directory is a comparison of one."""
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
    """Method and seed of every run, finished or not, that a directory of `fedpgp compare` or `run` holds -> its own."""
    plan, remedy = directory / PLAN, "name a directory that fedpgp run or fedpgp compare wrote"
    if not exists(directory):
        raise OutputError(f"{directory} does not exist; {remedy}")
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
        raise OutputError(f"{plan} is damaged: {error}; name the directory of one of its runs") from error
    if inside := _inside(directory):
        raise OutputError(f"{directory} is no run or comparison; what is in it, the newest first: {_some(inside)}")
    raise OutputError(f"{directory} holds no run; {remedy}")


def _instead_of_a_run(directory: Path) -> str | None:
    """What to say of a directory that is no run; None where it was one, or has nothing to do with us."""
    if (directory / PLAN).exists():
        if runs := _finished(directory):
            return f"{directory} is a comparison; its runs: {_some(runs)}"
        command = resume_command(directory)
        return f"{directory} is a comparison without a finished run" + (f"; go on with: {command}" if command else "")
    if inside := [run for result in _inside(directory) for run in _finished(result)]:
        return f"{directory} is not a run; those in it, the newest first: {_some(inside)}"
    return None


def _inside(directory: Path) -> list[Path]:
    """The runs and comparisons in a directory and in the directories there, the newest first."""
    results: list[Path] = []
    for level in ("*", "*/*"):
        for path in sorted(directory.glob(level)):
            if any(part.startswith(".") for part in path.relative_to(directory).parts):
                continue  # is being written
            if any(above in results for above in path.parents):
                continue
            with suppress(OSError):  # what may not be looked into
                if any((path / name).exists() for name in (PLAN, "results.json", FILE)):
                    results.append(path)
    return sorted(results, key=lambda path: -path.stat().st_mtime)


def _finished(directory: Path) -> list[Path]:
    """The finished runs of a comparison, or the run that a directory is."""
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
    """The seeds of each method; raises ValueError, TypeError or KeyError for what is no plan of ours."""
    content = json.loads(plan.read_text(encoding="utf-8"))
    seeds = {name: list(of_method) for name, of_method in dict(content["seeds"]).items()}
    if not seeds or not all(NAME.fullmatch(name) for name in seeds):  # parts of a path
        raise ValueError(f"seeds must be those of methods, got {list(seeds)}")
    for name, of_method in seeds.items():
        if not of_method or not all(type(seed) is int and seed >= 0 for seed in of_method):
            raise ValueError(f"seeds of {name} must be numbers from 0 on, got {of_method}")
    return seeds


def planned(directory: Path, seeds: Mapping[str, Sequence[int]]) -> dict[tuple[str, int], Path]:
    """Method and seed -> run directory, of a comparison, in its order: all methods with one seed, then the next."""
    order = dict.fromkeys(seed for of_method in seeds.values() for seed in of_method)
    return {
        (name, seed): directory / name / f"seed-{seed}"
        for seed in order
        for name, of_method in seeds.items()
        if seed in of_method
    }


def is_unfinished(directory: Path) -> bool:
    """Whether a run was begun here and not finished."""
    return (directory / FILE).exists() and not (directory / "results.json").exists()


def is_compared(directory: Path) -> bool:
    """Whether nothing is left to write here: a comparison has its table, a run's own directory needs none."""
    return (directory / "comparison.json").exists() or not (directory / PLAN).exists()


def resume_command(directory: Path) -> str | None:
    """What goes on with what was stopped in a directory; None where there is none."""
    for record, (name, last) in FINISHED.items():
        if (directory / record).exists():
            return None if (directory / last).exists() else f"fedpgp {name} --resume {directory}"
    if is_compared(directory) and not is_unfinished(directory):
        return None
    with suppress(ConfigError):
        if load_config(directory / "config.toml", foreign=True).federation.engine == "deployment":
            return "flwr run, as it was begun, where its server is"
    command = f"fedpgp run --resume {directory}" if is_compared(directory) else f"fedpgp compare --resume {directory}"
    with suppress(OutputError):
        if not all(is_registered(name) for name, _ in cells(directory)):
            option = "--method" if is_compared(directory) else "--methods"
            return f"{command} {option} path/to/file.py:Name"
    return command


def _look(directory: Path) -> Unfinished:
    with State.open(directory / FILE, patience=0) as state:
        origin, records = state.origin(), state.records()
        rounds = load_config(directory / "config.toml", foreign=True).federation.rounds
        return Unfinished(origin["method"], origin["seed"], rounds, records[-1] if records else None)


def check_output(directory: Path, force: bool, ours: Callable[[Path], bool] | None = None) -> None:
    """Raises OutputError if results could not be written there later; called before any work.

    ours: whether what is there may be replaced; None takes what runs and comparisons leave.
    """
    flag(force, "force")
    if directory.exists() and not force:
        command = resume_command(directory)
        remedy = f", or go on with: {command}" if command else ""
        raise OutputError(
            f"output directory {directory} exists; name another one with -o, or replace it with --force{remedy}"
        )
    if directory.exists() and not (ours or _is_ours)(directory):
        raise OutputError(f"output {directory} holds something that fedpgp did not write; name another with -o")
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
            f"output directory {directory} cannot be written: {error.strerror}; name another with -o"
        ) from error


def _is_ours(directory: Path) -> bool:
    """Whether it is empty, or holds what was asked of a command, or a run's config beside its state or results.

    State and results themselves may be damaged, or of another version.
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
    """Raises InUseError where another process works on a run, which would go on writing into what replaces it."""
    try:
        State.open(directory / FILE).close()
    except InUseError:
        raise
    except OutputError:
        pass  # damaged, or of another version: nobody works on it


@contextmanager
def run_directory(directory: Path, force: bool) -> Iterator[Path]:
    """A new directory for results, to fill; it takes its name when that is done, and replaces what was there before."""
    check_output(directory, force)
    with writing(directory, "free space, or name another with -o"), new_directory(directory) as scratch:
        yield scratch


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One process at a time works on a search or on a grid; raises InUseError for another."""
    lock = FileLock(directory / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InUseError(f"{directory} is in use: another process works on it; wait for it") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing(directory: Path, remedy: str) -> Iterator[None]:
    """Turns what the system says about writing into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"results cannot be written to {directory}: {error.strerror or error}; {remedy}") from error
