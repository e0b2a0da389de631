"""What a grid is: parts, each with axes, the methods and the seeds; and which cells that makes."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from fedpgp.config import load_config
from fedpgp.errors import ConfigError, OutputError
from fedpgp.methods import METHODS
from fedpgp.methods.plugins import find_method, installed
from fedpgp.results.run import Comparison, Run
from fedpgp.runtime.version import __version__
from fedpgp.studies.axes import slug
from fedpgp.studies.cells import StudyCell, naming
from fedpgp.studies.search import Study

CONFIG = "config.toml"  # in the directory of a grid: what its cells change
Key = tuple[str, ...]  # the name of a part, and the label of a point of each of its axes


@dataclass(frozen=True)
class GridPart:
    """All combinations of the points of its axes. changes: of the grid's config, for all of them.

    mean: the axis over which tables have a mean, too.
    """

    name: str
    axes: Mapping[str, Study]
    changes: Sequence[str] = ()
    mean: str | None = None

    def cell_keys(self) -> Iterator[Key]:
        yield from ((self.name, *labels) for labels in product(*self.axes.values()))

    def describe(self, key: Key) -> str:
        """A cell in words."""
        labels = [f"{axis} {label}" for axis, label in zip(self.axes, key[1:], strict=True)]
        return ", ".join([self.name] * bool(self.name) + labels) or "the config"


@dataclass(frozen=True)
class Grid:
    """What is to be run. asked: what else its command keeps of what it was asked."""

    parts: Sequence[GridPart]
    methods: Sequence[str]
    seeds: Sequence[int]
    asked: Mapping[str, Any] = field(default_factory=dict)

    def cells(self, file: Path | str | None, changes: Sequence[str] = ()) -> dict[Key, StudyCell]:
        """The cell of every key, on a config with changes; keys with equal configs share one.

        Raises ConfigError with a line for each cell that has no valid config.
        """
        classes = [find_method(name) for name in self.methods]
        known: list[StudyCell] = []
        found: dict[Key, StudyCell] = {}
        for part in self.parts:
            for key in part.cell_keys():
                name = part.describe(key)
                pairs = zip(part.axes.values(), key[1:], strict=True)
                of_cell = [*part.changes, *(change for axis, label in pairs for change in axis[label])]
                with naming(name):
                    config = load_config(file, [*changes, *of_cell], classes)
                same = next((cell for cell in known if cell.config == config), None)
                if same is None:
                    same = StudyCell(_place(part, key), name, config, tuple(self.methods))
                    known.append(same)
                found[key] = same
        return found

    def record(self) -> dict[str, Any]:
        """What is written down of it."""
        parts = [
            {"name": part.name, "axes": part.axes, "changes": list(part.changes), "mean": part.mean}
            for part in self.parts
        ]
        return {
            "fedpgp": __version__,
            "parts": parts,
            "methods": list(self.methods),
            "seeds": list(self.seeds),
            "asked": dict(self.asked),
        }


@dataclass(frozen=True)
class Found:
    """What the cells of a grid gave. digest: of the config that they change."""

    grid: Grid
    comparisons: Mapping[Key, Comparison]
    digest: str

    def rows(self) -> list[dict[str, Any]]:
        """A row for every run of every cell, with the labels of its point; times are left out."""
        return [
            {
                **({"part": part.name} if part.name else {}),
                **dict(zip(part.axes, key[1:], strict=True)),
                **{name: value for name, value in run.row.items() if name != "seconds"},
                **{f"last_five_{name}": value for name, value in run.results["last_five"].items()},
            }
            for part in self.grid.parts
            for key in part.cell_keys()
            for run in self.comparisons[key].runs
        ]

    def runs(self) -> list[Run]:
        """Each run once, whatever keys share it."""
        return list({id(run): run for one in self.comparisons.values() for run in one.runs}.values())

    def as_json(self) -> dict[str, Any]:
        """The one object that `--json` prints."""
        return {**self.grid.asked, "methods": list(self.grid.methods), "rows": self.rows()}


def check_methods(methods: Sequence[str]) -> list[str]:
    """Names of methods that a grid can have, each once; raises ConfigError for others."""
    for name in methods:
        if name not in {*METHODS, *installed()}:
            find_method(name)  # an unknown name has a message of its own
            raise ConfigError(f"methods must be ours or of an installed package, got {name!r}: install it")
    if not methods:
        raise ConfigError(f"methods must name at least one, got none; known: {', '.join(METHODS)}")
    return list(dict.fromkeys(methods))


def read_grid(file: Path, what: str) -> Grid:
    """The grid that a command wrote down; raises OutputError where there is none. what: the command."""
    directory = file.parent
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["fedpgp"] != __version__:
            raise OutputError(
                f"{directory} holds a grid of fedpgp {record['fedpgp']}, here is {__version__}: go on with that"
                " version, or begin again in another directory"
            )
        parts = [GridPart(one["name"], dict(one["axes"]), one["changes"], one["mean"]) for one in record["parts"]]
        return Grid(parts, check_methods(record["methods"]), record["seeds"], record["asked"])
    except FileNotFoundError as error:
        raise OutputError(f"{directory} holds no grid; name a directory that fedpgp {what} wrote") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise OutputError(f"{file} is damaged: {error}; begin again in another directory") from error


def digest_of(directory: Path) -> str:
    """The SHA-256 of the config that the cells of a grid change."""
    return hashlib.sha256((directory / CONFIG).read_bytes()).hexdigest()


def _place(part: GridPart, key: Key) -> str:
    """The directory of a cell. Numbers tell apart labels that differ in what a path cannot have."""
    steps = [
        f"{axis}-{list(points).index(label)}-{slug(label)}"
        for (axis, points), label in zip(part.axes.items(), key[1:], strict=True)
    ]
    return "/".join([slug(part.name)] * bool(part.name) + steps) or "cell"
