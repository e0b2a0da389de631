"""The run directory: what a run leaves behind, written whole or not at all, and read again."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedpgp.bootstrap import METRICS, Difference, Outcomes, differences
from fedpgp.config import ExperimentConfig, load_config
from fedpgp.errors import OutputError, nearest
from fedpgp.methods import METHODS

COLUMNS = (*METRICS, "unseen")  # of the tables, where the task has them


@dataclass(frozen=True)
class Run:
    """One method with one seed: exactly what its directory holds.

    results: results.json; rounds: rounds.jsonl, one record per round; prompts: prompts.safetensors, "shared/NAME" and
    "private/CLIENT/NAME"; outcomes: outcomes.safetensors; provenance: provenance.json.
    """

    config: ExperimentConfig
    results: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]
    prompts: Mapping[str, Tensor]
    outcomes: Outcomes
    provenance: Mapping[str, Any]

    @property
    def method(self) -> str:
        return str(self.results["method"])

    @property
    def seed(self) -> int:
        return int(self.results["seed"])

    @property
    def finished(self) -> bool:
        return bool(self.results["finished"])

    @property
    def row(self) -> dict[str, Any]:
        """The run as a row of `--json`; accuracies in percent, of the last round."""
        return {
            "method": self.method,
            "seed": self.seed,
            **{name: self.results["final"][name] for name in METRICS},
            "bytes_up_per_client_round": self.results["bytes_up_per_client_round"],
            "seconds": self.results["seconds"],
        }

    def save(self, directory: Path, force: bool = False) -> None:
        """Writes the run directory, whole or not at all; raises OutputError if it exists and `force` is not set."""
        with new_directory(directory, force) as scratch:
            write_run(self, scratch)


@dataclass(frozen=True)
class Comparison:
    """Several methods on one task, each with the same seeds."""

    runs: Sequence[Run]

    @cached_property
    def methods(self) -> list[str]:
        """Those with a finished run, in the order of the runs."""
        return list(dict.fromkeys(run.method for run in self.runs if run.finished))

    @cached_property
    def seeds(self) -> list[int]:
        """Those with which every one of `methods` has finished."""
        seeds = [{run.seed for run in self.runs if run.finished and run.method == method} for method in self.methods]
        return sorted(set.intersection(*seeds)) if seeds else []

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [run.row for run in self.runs if run.finished]

    @property
    def task(self) -> dict[str, Any]:
        return dict(self.runs[0].results["task"])

    def of(self, method: str) -> list[Run]:
        """The runs of a method with `seeds`, so that methods are compared on the same tasks.

        Raises OutputError for a method that has no finished run.
        """
        if method not in self.methods:
            raise OutputError(
                f"method must be one of the comparison's, got {method!r}; {nearest(method, self.methods)}"
            )
        found = {run.seed: run for run in self.runs if run.method == method and run.finished}
        return [found[seed] for seed in self.seeds]

    def mean(self, method: str, part: str = "final") -> dict[str, tuple[float, float | None]]:
        """Mean and standard deviation (None for one seed) over the seeds of every figure. part: "final" or "shared"."""
        figures = [run.results[part] for run in self.of(method)]
        return {name: spread([figure[name] for figure in figures]) for name in figures[0]}

    def against(self, first: str, second: str) -> dict[str, Difference]:
        """First minus second: paired bootstrap over the test images."""
        ones, others = ([run.outcomes for run in self.of(method)] for method in (first, second))
        return differences(ones, others)

    def as_json(self) -> dict[str, Any]:
        """The one object that `--json` prints."""
        return {"task": self.task, "rows": self.rows}


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None where there is one value."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def write_run(run: Run, directory: Path) -> None:
    """Writes the files of a run into an existing, empty directory."""
    lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in run.rounds)
    outcomes = {name: torch.from_numpy(getattr(run.outcomes, name)) for name in ("base", "novel", "own")}
    for name, content in {
        "config.toml": run.config.to_toml().encode(),
        "results.json": _pretty(run.results),
        "rounds.jsonl": lines.encode(),
        "prompts.safetensors": save({name: tensor.cpu().contiguous() for name, tensor in run.prompts.items()}),
        "outcomes.safetensors": save(outcomes),
        "provenance.json": _pretty(run.provenance),
    }.items():
        (directory / name).write_bytes(content)


def load_run(directory: str | Path) -> Run:
    """The run that a directory holds; raises OutputError, naming the file, where it does not hold one."""
    directory = Path(directory)
    try:
        outcomes = load((directory / "outcomes.safetensors").read_bytes())
        found = Run(
            config=load_config(directory / "config.toml"),
            results=json.loads((directory / "results.json").read_text(encoding="utf-8")),
            rounds=[json.loads(line) for line in (directory / "rounds.jsonl").read_text(encoding="utf-8").splitlines()],
            prompts=load((directory / "prompts.safetensors").read_bytes()),
            outcomes=Outcomes(**{name: tensor.numpy().astype(np.bool_) for name, tensor in outcomes.items()}),
            provenance=json.loads((directory / "provenance.json").read_text(encoding="utf-8")),
        )
        found.row  # noqa: B018 - raises KeyError where results.json lacks a figure
        return found
    except FileNotFoundError as error:
        raise OutputError(
            f"{directory} is not a run: {error.filename} is missing; name a directory of fedpgp run"
        ) from error
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise OutputError(f"{directory} holds a damaged run: {error}; run it again") from error


def load_comparison(directory: str | Path) -> Comparison:
    """The runs that a directory of `fedpgp compare` holds; a run's own directory is a comparison of one."""
    directory = Path(directory)
    if (directory / "results.json").exists():
        return Comparison([load_run(directory)])
    found = sorted(directory.glob("*/seed-*/results.json"))
    if not found:
        raise OutputError(f"{directory} holds no run; name a directory that fedpgp run or fedpgp compare wrote")
    runs = [load_run(path.parent) for path in found]
    order = [*METHODS, *(run.method for run in runs)]
    return Comparison(sorted(runs, key=lambda run: (run.seed, order.index(run.method))))


def check_output(directory: Path, force: bool) -> None:
    """Raises OutputError if results could not be written there later; called before any work."""
    if directory.exists() and not force:
        raise OutputError(f"output directory {directory} exists; name another one with -o, or replace it with --force")
    ours = any((directory / name).exists() for name in ("results.json", "comparison.json"))
    if directory.exists() and not ours and not (directory.is_dir() and not any(directory.iterdir())):
        raise OutputError(f"output {directory} holds something that fedpgp did not write; name another with -o")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent):
            pass
    except OSError as error:
        raise OutputError(
            f"output directory {directory} cannot be written: {error.strerror}; name another with -o"
        ) from error


@contextmanager
def new_directory(directory: Path, force: bool) -> Iterator[Path]:
    """A directory to fill, which takes its name only when all of it is written; what was there before is replaced."""
    check_output(directory, force)
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        filled = scratch / "new"
        filled.mkdir()
        yield filled
        old = scratch / "old"
        if directory.exists():
            os.replace(directory, old)
        try:
            os.replace(filled, directory)
        except BaseException:
            if old.exists():
                os.replace(old, directory)
            raise
    except OSError as error:
        raise OutputError(
            f"results cannot be written to {directory}: {error.strerror or error}; free space, or name another with -o"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _pretty(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
