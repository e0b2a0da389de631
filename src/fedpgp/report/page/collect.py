"""Collection of the runs of some directories for a report."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedpgp.errors import FedPGPError, OutputError
from fedpgp.federation.state import FILE
from fedpgp.results.read import read_records
from fedpgp.results.run import Run
from fedpgp.results.run_store import PLAN, cells, is_unfinished, load_run, unlike


@dataclass(frozen=True)
class Gathered:
    """Runs of some directories.

    Attributes
    ----------
    parts
        For each task, its finished runs by directory.
    going
        Records of unfinished runs by name.
    faults
        Messages about directories and runs that cannot be shown.
    """

    parts: Sequence[Mapping[Path, Run]]
    going: Mapping[str, Sequence[Mapping[str, Any]]]
    faults: Sequence[str]


def gather(given: Sequence[Path]) -> Gathered:
    """Return the runs of some directories.

    Parameters
    ----------
    given
        Directories of runs or comparisons, or directories that contain them.

    Raises
    ------
    OutputError
        If one of them is not a directory, or there is no run to show.
    """
    paths: dict[Path, None] = {}  # an ordered set
    faults: list[str] = []
    for directory in given:
        if not directory.is_dir():
            raise OutputError(
                where=f"{directory}",
                allowed="an existing directory",
                remedy="Name a directory that fedpgp run or fedpgp compare has written",
            )
        inside = _cells(directory, faults)
        if not inside:
            faults.append(f"{directory} has no run.")
        paths |= dict.fromkeys(inside)
    tasks: dict[str, dict[Path, Run]] = {}
    going = {}
    for path in paths:
        if is_unfinished(path):
            name = _name(path)
            going[str(path) if name in going else name] = _records(path)
            continue
        try:
            run = load_run(path)
        except FedPGPError as error:
            faults.append(str(error))
            continue
        runs = tasks.setdefault(_signature(run), {})
        if reason := unlike(run, list(runs.values())):
            faults.append(f"{path} is left out: {reason}.")
            continue
        key = run.method, run.seed
        first = next((known for known, other in runs.items() if (other.method, other.seed) == key), None)
        if first is None:
            runs[path] = run
        else:
            same = f"{first} is the same method and seed, {run.method} with seed {run.seed}"
            faults.append(f"{path} is left out: {same}{_otherwise(run, runs[first])}.")
    if not tasks and not going:
        raise OutputError(
            "\n".join([*faults, "there is no run to report"]),
            remedy="Name directories that fedpgp run or fedpgp compare has written",
        )
    return Gathered(list(tasks.values()), going, faults)


def _otherwise(run: Run, first: Run) -> str:
    """Return the differences between the settings of two runs of the same method and seed, in words."""
    there = _settings(first)
    differing = [
        f"{name} {value} instead of {there.get(name)}"
        for name, value in _settings(run).items()
        if value != there.get(name)
    ]
    return f", with other settings ({'; '.join(differing)}). Make separate reports" if differing else ""


def _settings(run: Run) -> dict[str, Any]:
    method = run.config.methods.get(run.method)
    sections = {"federation": asdict(run.config.federation), run.method: asdict(method) if method else {}}
    return {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}


def _cells(directory: Path, faults: list[str]) -> list[Path]:
    if is_unfinished(directory) or (directory / "results.json").exists():
        return [directory]
    try:
        if (directory / PLAN).exists():
            return list(cells(directory).values())
    except FedPGPError as error:
        faults.append(str(error))
    return sorted({path.parent for name in ("results.json", FILE) for path in directory.rglob(name)})


def _name(directory: Path) -> str:
    parent = directory.parent.name
    return f"{parent}, {directory.name.replace('-', ' ')}" if directory.name.startswith("seed-") else directory.name


def _records(directory: Path) -> list[dict[str, Any]]:
    """Return the records that the run has written, without an incomplete last line."""
    records = []
    with suppress(OutputError, FileNotFoundError):
        for record in read_records(directory):
            records.append(record)
    return records


def _signature(run: Run) -> str:
    """Return a text that is equal for runs whose figures can be compared."""
    return json.dumps([run.results["task"], run.config.backbone.checkpoint], sort_keys=True)
