"""Directories of runs -> what a page can show, and what it cannot."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedpgp.errors import FedPGPError, OutputError
from fedpgp.federation.state import FILE
from fedpgp.results.run import Run
from fedpgp.results.run_store import PLAN, RECORDS, cells, is_unfinished, load_run


@dataclass(frozen=True)
class Gathered:
    """What a page can show, and what it cannot.

    parts: for each task its runs, by directory. going: the records of runs that are not finished, by their names.
    faults: what could not be read, each with why.
    """

    parts: Sequence[Mapping[Path, Run]]
    going: Mapping[str, Sequence[Mapping[str, Any]]]
    faults: Sequence[str]


def gather(given: Sequence[Path]) -> Gathered:
    """All runs of some directories: of runs, of comparisons, or directories that hold such ones.

    Raises OutputError where there is nothing to show at all.
    """
    paths: dict[Path, None] = {}  # each once, in their order
    faults: list[str] = []
    for directory in given:
        if not directory.is_dir():
            raise OutputError(f"{directory} is no directory; name one that fedpgp run or fedpgp compare wrote")
        inside = _cells(directory, faults)
        if not inside:
            faults.append(f"{directory} holds no run")
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
        key = run.method, run.seed
        first = next((known for known, other in runs.items() if (other.method, other.seed) == key), None)
        if first is None:
            runs[path] = run
        else:
            same = f"{run.method} with seed {run.seed} is already there, {first}"
            faults.append(f"{path} is left out: {same}{_otherwise(run, runs[first])}")
    if not tasks and not going:
        raise OutputError("\n".join([*faults, "nothing to report on: name directories of fedpgp run or compare"]))
    return Gathered(list(tasks.values()), going, faults)


def _otherwise(run: Run, first: Run) -> str:
    """In which settings a run differs from another of its method, in words."""
    there = _settings(first)
    differing = [
        f"{name} {value}, there {there.get(name)}" for name, value in _settings(run).items() if value != there.get(name)
    ]
    return f", with other settings ({'; '.join(differing)}): make a report of each" if differing else ""


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
    """Those that the run has written so far; a line that is being written is left for the next time."""
    records = []
    with suppress(OSError, ValueError):
        for line in (directory / RECORDS).read_text(encoding="utf-8").splitlines():
            records.append(json.loads(line))
    return records


def _signature(run: Run) -> str:
    """What must be the same so that figures can stand beside each other."""
    return json.dumps([run.results["task"], run.config.backbone.checkpoint], sort_keys=True)
