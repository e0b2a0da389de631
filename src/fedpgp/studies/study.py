"""Studies: methods on many configs. Each config is a cell, which is a comparison in its own directory.

`Study` runs, resumes and loads every kind of study. The modules `sweep`, `ablation` and `reproduction` define the cells
of their kind.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Self

from fedpgp.config import default_recipe, load_config
from fedpgp.errors import ConfigError, OutputError, located
from fedpgp.methods import Method
from fedpgp.methods.plugins import find_method, fingerprint, is_registered
from fedpgp.results.read import read_json
from fedpgp.results.run import Comparison, Run
from fedpgp.results.run_store import FINISHED, check_output, load_comparison, locked, run_directory, writing
from fedpgp.results.study_content import RECORDS
from fedpgp.runs.choices import chosen_methods
from fedpgp.runs.comparison_plan import counted, seeds_text
from fedpgp.runs.execution import Execution, ExecutionOptions
from fedpgp.runtime import limits
from fedpgp.runtime.files import write, write_json
from fedpgp.runtime.untrusted import check_file
from fedpgp.runtime.version import __version__
from fedpgp.studies.axes import Axis, slug
from fedpgp.studies.cells import StudyCell, check_cells, run_cells

CONFIG = "config.toml"  # file in the directory of a study: the config that the cells change
Key = tuple[str, ...]  # the name of a part, and one label for each axis of the part


@dataclass(frozen=True)
class StudyPart:
    """Part of a study. It has a cell for every combination of points of its axes.

    Attributes
    ----------
    name
        Name of the part; empty if the study has only one.
    axes
        Axes by name.
    changes
        Changes of the study's config that all cells of the part share.
    mean
        Axis over which tables have a mean in addition.
    methods
        Names of the methods of the cells; empty takes the methods of the study.
    """

    name: str
    axes: Mapping[str, Axis]
    changes: Sequence[str] = ()
    mean: str | None = None
    methods: Sequence[str] = ()

    def cell_keys(self) -> Iterator[Key]:
        """Yield the key of every cell."""
        yield from ((self.name, *labels) for labels in product(*self.axes.values()))

    def point(self, key: Key) -> dict[str, str]:
        """Return the labels of a cell by axis."""
        return dict(zip(self.axes, key[1:], strict=True))

    def changes_of(self, key: Key) -> list[str]:
        """Return the changes that a cell makes to the study's config."""
        changes = list(self.changes)
        for axis, label in self.point(key).items():
            changes += self.axes[axis][label]
        return changes

    def describe(self, key: Key) -> str:
        """Return a description of a cell in words."""
        labels = [f"{axis} {label}" for axis, label in self.point(key).items()]
        return ", ".join([self.name] * bool(self.name) + labels) or "the config"

    def place(self, key: Key) -> str:
        """Return the directory of a cell. Numbers distinguish labels that become the same text in a path."""
        steps = [slug(self.name)] * bool(self.name)
        for axis, label in self.point(key).items():
            steps.append(f"{axis}-{list(self.axes[axis]).index(label)}-{slug(label)}")
        return "/".join(steps) or "cell"


@dataclass(frozen=True)
class Study:
    """Methods on the cells of some parts, with every seed.

    Attributes
    ----------
    parts
        Parts, which have the cells.
    methods
        Names of the methods.
    seeds
        Seeds of every cell.
    asked
        Further arguments of the command, which the record keeps.
    config
        TOML file or name of a recipe that the cells change.
    changes
        Changes of the config that all cells share.
    comparisons
        Comparison of each cell of a finished study.
    digest
        SHA-256 of the config file of a finished study.
    own
        The methods that are neither built in nor from an installed package, by name.
    """

    kind: ClassVar[str]  # the record of the study is the file KIND.json

    parts: Sequence[StudyPart]
    methods: Sequence[str]
    seeds: Sequence[int]
    asked: Mapping[str, Any] = field(default_factory=dict)
    config: Path | str | None = None
    changes: Sequence[str] = ()
    comparisons: Mapping[Key, Comparison] = field(default_factory=dict)
    digest: str = ""
    own: Mapping[str, Method] = field(default_factory=dict)

    @cached_property
    def cells(self) -> dict[Key, StudyCell]:
        """Mapping of key -> cell. Keys with equal configs share a cell. Raises ConfigError if a config is not valid."""
        recipe = default_recipe(self.changes) if self.config is None else self.config  # the same for all cells
        cells: dict[Key, StudyCell] = {}
        for part in self.parts:
            for key in part.cell_keys():
                name = part.describe(key)
                try:
                    config = load_config(recipe, [*self.changes, *part.changes_of(key)], self.classes)
                except ConfigError as error:
                    raise located(error, name) from error
                methods = self.methods_of(part)
                equal = (c for c in cells.values() if c.config == config and set(methods) <= set(c.methods))
                cells[key] = next(equal, StudyCell(part.place(key), name, config, methods))
        return cells

    @property
    def classes(self) -> list[type[Method]]:
        """Classes of the methods."""
        return [type(self.own[name]) if name in self.own else find_method(name) for name in self.methods]

    @property
    def code(self) -> dict[str, str | None]:
        """SHA-256 of the code of each method in `own`."""
        return {name: fingerprint(method) for name, method in self.own.items()}

    def methods_of(self, part: StudyPart) -> tuple[str, ...]:
        """Return the names of the methods of a part."""
        return tuple(part.methods or self.methods)

    @cached_property
    def distinct_cells(self) -> list[StudyCell]:
        """Cells without repetitions, in order."""
        return list({cell.place: cell for cell in self.cells.values()}.values())

    def plan(self) -> str:
        """Return one line that says what is run."""
        cells, seeds = self.distinct_cells, len(self.seeds)
        most = max(len(cell.methods) for cell in cells)
        up_to = "" if all(len(cell.methods) == most for cell in cells) else "up to "
        named = f"{up_to}{counted(most, 'method')} ({', '.join(self.methods)})"
        runs = sum(len(cell.methods) for cell in cells) * seeds
        return f"{counted(len(cells), 'cell')} × {named} × {seeds} ({seeds_text(self.seeds)}): {runs} runs"

    def check(self) -> None:
        """Raise ConfigError, with a line for each problem, if a cell cannot be run."""
        check_cells(self.distinct_cells, self.seeds)

    def run(self, output: Path | str | None, force: bool, options: ExecutionOptions) -> Self:
        """Check every cell, make the output directory, and run all cells.

        Parameters
        ----------
        output
            Directory for the results; None returns the study unchanged.
        force
            Replace an existing directory.
        options
            Options of the execution.
        """
        if output is None:
            return self
        directory = Path(output)
        check_output(directory, force)
        self.check()
        settings = load_config(self.config, self.changes, self.classes)
        with run_directory(directory, force) as scratch:
            write(scratch / CONFIG, settings.to_toml().encode())
            code = {"code": self.code} if self.own else {}
            write_json(scratch / f"{self.kind}.json", {"fedpgp": __version__, **self.record(), **code})
        return self.resume(directory, list(self.own.values()), options)

    @classmethod
    def resume(cls, directory: Path, methods: Sequence[str | Method], options: ExecutionOptions) -> Self:
        """Run the unfinished cells, then write tables and figures; the file that `FINISHED` names is written last.

        `methods`: the methods of the study that are neither built in nor from an installed package.
        """
        study, execution = cls._read(directory, methods, to_resume=True), Execution(**options)
        execution.listener.notice(study.plan())
        with locked(directory):
            run_cells(study.distinct_cells, study.seeds, directory, execution)
            study = study._finished(directory)
            if execution.writers is not None:
                with writing(directory, f"Free space, then continue with `{resume_command(directory, cls.kind)}`"):
                    getattr(execution.writers, cls.kind)(study, directory)
        return study

    @classmethod
    def load(cls, directory: Path, methods: Sequence[str | Method] = ()) -> Self:
        """Return a finished study; raise OutputError if it is not finished. `methods`: as in `resume`."""
        return cls._read(directory, methods)._finished(directory)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for every run of every cell, with the labels of the cell and without times."""
        return [
            {
                **({"part": part.name} if part.name else {}),
                **part.point(key),
                **{name: value for name, value in run.row.items() if name != "seconds"},
                **{f"last_five_{name}": value for name, value in run.results["last_five"].items()},
            }
            for part in self.parts
            for key in part.cell_keys()
            for run in self.comparisons[key].runs
        ]

    def runs(self) -> list[Run]:
        """Return each run once, even if several keys share the run."""
        return list({id(run): run for comparison in self.comparisons.values() for run in comparison.runs}.values())

    def as_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return {**self.asked, "methods": list(self.methods), "rows": self.rows()}

    def record(self) -> dict[str, Any]:
        """Return what KIND.json keeps of the study, apart from the version of fedpgp."""
        parts = [
            {
                "name": part.name,
                "axes": part.axes,
                "changes": list(part.changes),
                "mean": part.mean,
                "methods": list(part.methods),
            }
            for part in self.parts
        ]
        return {"parts": parts, "methods": list(self.methods), "seeds": list(self.seeds), "asked": dict(self.asked)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], directory: Path, own: Mapping[str, Method]) -> Self:
        """Return the study that a record and the config in a directory describe; the record is checked."""
        parts = [
            StudyPart(
                part["name"],
                dict(part["axes"]),
                part["changes"],
                part["mean"],
                recorded_methods(part.get("methods", ()), own, directory),
            )
            for part in record["parts"]
        ]
        methods = recorded_methods(record["methods"], own, directory)
        return cls(parts, methods, record["seeds"], record["asked"], directory / CONFIG, own=own)

    @classmethod
    def _read(cls, directory: Path, methods: Sequence[str | Method], to_resume: bool = False) -> Self:
        own = named(methods)[1] if methods else {}
        record = read_record(directory, cls.kind, to_resume)
        study = cls.from_record(record, directory, own)
        if to_resume and record.get("code", {}) != study.code:
            raise OutputError(
                f"the code of {', '.join(own)} is not the code at the start of the {cls.kind}",
                where=f"{directory}",
                remedy="Restore the code, or start again in another directory",
            )
        return study

    def _finished(self, directory: Path) -> Self:
        for cell in self.distinct_cells:
            if not cell.is_finished(directory):
                raise OutputError(
                    f"the {self.kind} is not finished: {cell.place} is missing",
                    where=f"{directory}",
                    remedy=f"Continue it with `{resume_command(directory, self.kind)}`",
                )
        comparisons = {cell.place: load_comparison(directory / cell.place) for cell in self.distinct_cells}
        return replace(
            self,
            comparisons={
                key: comparisons[self.cells[key].place].only(self.methods_of(part))
                for part in self.parts
                for key in part.cell_keys()
            },
            digest=hashlib.sha256((directory / CONFIG).read_bytes()).hexdigest(),
        )


def named(methods: Sequence[str | Method]) -> tuple[list[str], dict[str, Method]]:
    """Return the names of the methods without repetitions, and the methods that the name is not enough to find."""
    names, config = chosen_methods(methods, None, ())
    return names, {name: config.methods[name] for name in names if not is_registered(name)}


def recorded_methods(names: Sequence[str], own: Mapping[str, Method], directory: Path) -> list[str]:
    """Return the names in the record of a study; raise OutputError if a method must be given again."""
    for name in names:
        if name not in own and not is_registered(name):
            raise OutputError(
                f"the method {name!r} is neither built in nor from an installed package",
                where=f"{directory}",
                remedy="Give the file of the method again: path/to/file.py:Name",
            )
    return list(names)


def resume_command(directory: Path, kind: str) -> str:
    """Return the command that continues a study."""
    command, _ = FINISHED[f"{kind}.json"]
    return f"fedpgp {command} --resume {directory}"


def read_record(directory: Path, kind: str, to_resume: bool) -> dict[str, Any]:
    """Return the record of a study after checking it.

    Parameters
    ----------
    directory
        Directory of the study.
    kind
        Kind of the study; the record is the file KIND.json.
    to_resume
        Refuse the record of another version of fedpgp.

    Raises
    ------
    OutputError
        If there is no record, the record is damaged, or the version differs.
    """
    file = directory / f"{kind}.json"
    command, _ = FINISHED[file.name]
    try:
        record: dict[str, Any] = read_json(file, RECORDS[kind], "Start again in another directory")
        check_file(directory / CONFIG, limits.JSON, "Start again in another directory")
    except FileNotFoundError as error:
        raise OutputError(
            f"the directory has no {kind}",
            where=f"{directory}",
            remedy=f"Name a directory that fedpgp {command} has written",
        ) from error
    if to_resume and record["fedpgp"] != __version__:
        raise OutputError(
            f"the {kind} was started with fedpgp {record['fedpgp']}, but fedpgp {__version__} is installed",
            where=f"{directory}",
            got=record["fedpgp"],
            remedy="Continue it with the other version, or start again in another directory",
        )
    return record
