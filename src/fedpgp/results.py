"""The run directory: what a run leaves behind, written whole or not at all, and read again."""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedpgp.bootstrap import Difference, Figures, Outcomes, differences, resampled
from fedpgp.config import ExperimentConfig, load_config
from fedpgp.errors import ConfigError, InUseError, OutputError, nearest
from fedpgp.federation.state import FILE, State
from fedpgp.files import TensorFile, flush_directory, new_directory, safetensors, write, write_json
from fedpgp.methods import METHODS, Method
from fedpgp.plugins import NAME, installed

PLAN = "plan.json"  # of a comparison: its methods, each with its seeds
COLUMNS = ("local", "base", "novel", "unseen", "hm", "cm", "area")  # of the tables, where the task has them
VALIDATION: Final = "validation"  # in the place of an α: the one that validation images choose for each run


@dataclass(frozen=True)
class Run:
    """One method with one seed: exactly what its directory holds.

    results: results.json; rounds: rounds.jsonl, one record per round; prompts: prompts.safetensors, the server's
    "shared/NAME", each client's "private/CLIENT/NAME" and, where it keeps a shared part of its own, "kept/CLIENT/NAME",
    read when asked for; outcomes: outcomes.safetensors; provenance: provenance.json. alpha: where on the path between
    the shared part alone and the clients' own models "final" is, see `at`.
    """

    config: ExperimentConfig
    results: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]
    prompts: Mapping[str, Tensor]
    outcomes: Outcomes
    provenance: Mapping[str, Any]
    alpha: float = 1.0

    @property
    def method(self) -> str:
        return str(self.results["method"])

    @property
    def seed(self) -> int:
        return int(self.results["seed"])

    def at(self, alpha: float | Literal["validation"]) -> "Run":
        """The same run with the models at α between the shared part alone (0) and the clients' own (1).

        alpha: one that was evaluated, or "validation" for the one that this run's validation images of base classes
        choose. A run without a path stays as it is. Raises OutputError for another α.
        """
        path = self.results["path"]
        chosen: float = self.results["alpha_on_validation"] if alpha == VALIDATION else alpha
        if len(path) == 1:
            return self
        found = next((point for point in path if math.isclose(point["alpha"], chosen, abs_tol=1e-9)), None)
        if found is None:
            known = ", ".join(f"{point['alpha']:g}" for point in path)
            raise OutputError(
                f"alpha must be {VALIDATION!r} or one of {known}, where {self.method} was evaluated, got {alpha}: run"
                " it with another federation.path_points for more of them"
            )
        final = {name: found.get(name, value) for name, value in self.results["final"].items()}
        return replace(self, results={**self.results, "final": final}, alpha=found["alpha"])

    @cached_property
    def resampled(self) -> Figures:
        """Every metric, as it is and in each resample of the test images."""
        return resampled(self.outcomes, self.alpha)

    @property
    def row(self) -> dict[str, Any]:
        """The run as a row of `--json`; accuracies in percent, of the last round."""
        return {
            "method": self.method,
            "seed": self.seed,
            "alpha": self.alpha,
            **{name: self.results["final"][name] for name in COLUMNS if name in self.results["final"]},
            "bytes_up_per_client_round": self.results["bytes_up_per_client_round"],
            "seconds": self.results["seconds"],
        }


@dataclass(frozen=True)
class Unfinished:
    """A run that was stopped and can be resumed, or that another process works on, whose progress cannot be read.

    rounds: how many it is to have; record: of its last round, or None before the first.
    """

    method: str
    seed: int
    rounds: int
    record: Mapping[str, Any] | None = None
    running: bool = False


@dataclass(frozen=True)
class Comparison:
    """Several methods on one task. runs: those that are finished."""

    runs: Sequence[Run]
    unfinished: Sequence[Unfinished] = ()

    @cached_property
    def methods(self) -> list[str]:
        """Those with a finished run, in the order of the runs."""
        return list(dict.fromkeys(run.method for run in self.runs))

    @cached_property
    def seeds(self) -> list[int]:
        """Those with which any method has finished."""
        return sorted({run.seed for run in self.runs})

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [run.row for run in self.runs]

    @property
    def task(self) -> dict[str, Any] | None:
        """What all runs were trained and tested on; None before one is finished."""
        return dict(self.runs[0].results["task"]) if self.runs else None

    def of(self, method: str) -> list[Run]:
        """The finished runs of a method, by seed; raises OutputError for one that has none."""
        if method not in self.methods:
            raise OutputError(
                f"method must be one of the comparison's, got {method!r}; {nearest(method, self.methods)}"
            )
        return sorted((run for run in self.runs if run.method == method), key=lambda run: run.seed)

    def mean(self, method: str, part: str = "final") -> dict[str, tuple[float, float | None]]:
        """Mean and standard deviation (None for one seed) over its seeds of every figure. part: "final" or "shared"."""
        figures = [run.results[part] for run in self.of(method)]
        return {name: spread([figure[name] for figure in figures]) for name in figures[0]}

    def against(self, first: str, second: str) -> dict[str, Difference]:
        """First minus second on the seeds that both have: paired bootstrap over the test images.

        Raises OutputError where they have none in common.
        """
        ones, others = ({run.seed: run.resampled for run in self.of(method)} for method in (first, second))
        common = [seed for seed in ones if seed in others]
        if not common:
            raise OutputError(f"{first} and {second} share no finished seed: nothing to compare; run both with one")
        return differences([ones[seed] for seed in common], [others[seed] for seed in common])

    def rank(self, method: str) -> float:
        """The mean rank of a method, 1 the best, in Local, Base and Novel of each of its seeds, among all that have it.

        Equal figures share the mean of their ranks.
        """
        ranks = []
        for run in self.of(method):
            others = [other for other in self.runs if other.seed == run.seed]
            for name in ("local", "base", "novel"):
                figure = run.results["final"][name]
                better = sum(other.results["final"][name] > figure for other in others)
                equal = sum(other.results["final"][name] == figure for other in others)
                ranks.append(better + (equal + 1) / 2)
        return fmean(ranks)

    def at(self, alpha: float | Literal["validation"]) -> "Comparison":
        """The same with every run's models at an α of its path, see `Run.at`."""
        return replace(self, runs=[run.at(alpha) for run in self.runs])

    def as_json(self) -> dict[str, Any]:
        """The one object that `--json` prints."""
        return {"task": self.task, "rows": self.rows}


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None where there is one value."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def write_run(run: Run, directory: Path) -> None:
    """Writes a run into a directory that has its config.toml; results.json is the last: with it the run is finished."""
    write(directory / "rounds.jsonl", (json.dumps(record, allow_nan=False).encode() + b"\n" for record in run.rounds))
    write(directory / "prompts.safetensors", safetensors(run.prompts))
    outcomes = {name: torch.from_numpy(getattr(run.outcomes, name)) for name in ("alphas", "base", "novel", "own")}
    write(directory / "outcomes.safetensors", save(outcomes))
    write_json(directory / "provenance.json", run.provenance)
    write_json(directory / "results.json", run.results)
    flush_directory(directory)


def load_run(directory: str | Path, methods: Sequence[type[Method]] = ()) -> Run:
    """The run that a directory holds; raises OutputError, naming the file, where it does not hold a finished one.

    methods: those beside ours whose sections are to be read in its config.
    """
    directory = Path(directory)
    if is_unfinished(directory):
        raise OutputError(f"{directory} holds a run that is not finished; go on with: {resume_command(directory)}")
    try:
        outcomes = load((directory / "outcomes.safetensors").read_bytes())
        results = json.loads((directory / "results.json").read_text(encoding="utf-8"))
        images = results["task"]["images"]
        found = Run(
            config=load_config(directory / "config.toml", methods=methods, foreign=True),
            results=results,
            rounds=[json.loads(line) for line in (directory / "rounds.jsonl").read_text(encoding="utf-8").splitlines()],
            prompts=TensorFile(directory / "prompts.safetensors"),
            outcomes=Outcomes(
                **{name: tensor.numpy() for name, tensor in outcomes.items()},
                base_images=images["base"],
                novel_images=images["novel"],
            ),
            provenance=json.loads((directory / "provenance.json").read_text(encoding="utf-8")),
        )
        found.row, results["path"], results["alpha_on_validation"]  # KeyError where one is missing
        return found
    except FileNotFoundError as error:
        raise OutputError(
            f"{directory} is not a run: {error.filename or error} is missing; name a directory of fedpgp run"
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
    plan = directory / PLAN
    try:
        if plan.exists():
            return planned(directory, _read_plan(plan))
        if is_unfinished(directory):
            found = _look(directory)
            return {(found.method, found.seed): directory}
        if (directory / "results.json").exists():
            run = load_run(directory)
            return {(run.method, run.seed): directory}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OutputError(f"{plan} is damaged: {error}; name the directory of one of its runs") from error
    raise OutputError(f"{directory} holds no run; name a directory that fedpgp run or fedpgp compare wrote")


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
    """What goes on with the run or comparison that was stopped in a directory; None where there is none."""
    if is_compared(directory) and not is_unfinished(directory):
        return None
    command = f"fedpgp run --resume {directory}" if is_compared(directory) else f"fedpgp compare --resume {directory}"
    with suppress(OutputError):
        if not {name for name, _ in cells(directory)} <= {*METHODS, *installed()}:
            option = "--method" if is_compared(directory) else "--methods"
            return f"{command} {option} path/to/file.py:Name"
    return command


def headline(record: Mapping[str, Any]) -> str:
    """What to tell of a round in a line: its accuracies, where it was evaluated, or else its loss."""
    if "local" in record:
        return ", ".join(f"{name.capitalize()} {record[name]:.1f}" for name in ("local", "base", "novel"))
    return f"loss {sum(value for name, value in record.items() if name.startswith('loss_')):.3f}"


def _look(directory: Path) -> Unfinished:
    with State.open(directory / FILE, patience=0) as state:
        origin, records = state.origin(), state.records()
        rounds = load_config(directory / "config.toml", foreign=True).federation.rounds
        return Unfinished(origin["method"], origin["seed"], rounds, records[-1] if records else None)


def check_output(directory: Path, force: bool) -> None:
    """Raises OutputError if results could not be written there later; called before any work."""
    if directory.exists() and not force:
        command = resume_command(directory)
        remedy = f", or go on with: {command}" if command else ""
        raise OutputError(
            f"output directory {directory} exists; name another one with -o, or replace it with --force{remedy}"
        )
    if directory.exists() and not _is_ours(directory):
        raise OutputError(f"output {directory} holds something that fedpgp did not write; name another with -o")
    for cell in [directory, *directory.glob("*/seed-*")]:
        if is_unfinished(cell):
            _check_idle(cell)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent):
            pass
    except OSError as error:
        raise OutputError(
            f"output directory {directory} cannot be written: {error.strerror}; name another with -o"
        ) from error


def _is_ours(directory: Path) -> bool:
    """Whether a directory is empty, or holds a comparison's plan, or a run's config beside its state or results.

    State and results themselves may be damaged, or of another version.
    """
    if not directory.is_dir():
        return False
    if not any(directory.iterdir()):
        return True
    try:
        if (directory / PLAN).exists():
            return all(cell.is_dir() for cell in planned(directory, _read_plan(directory / PLAN)).values())
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
def writing(directory: Path, remedy: str) -> Iterator[None]:
    """Turns what the system says about writing into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"results cannot be written to {directory}: {error.strerror or error}; {remedy}") from error
