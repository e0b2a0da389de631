"""Recipes of the paper's experiments. In addition to a config, a recipe has cells, metrics and reported figures."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from fedpgp.config import ExperimentConfig
from fedpgp.errors import ConfigError, nearest
from fedpgp.methods.reserved import RECIPE
from fedpgp.studies.axes import read_axes
from fedpgp.studies.reported_settings import Agreement, compare_settings, stated_settings
from fedpgp.studies.study import StudyPart


@dataclass(frozen=True)
class Reported:
    """Published figures of one method, in percent.

    Attributes
    ----------
    source
        Title of the publication.
    settings
        Mapping of "section.key" -> value, for every key that the source states.
    not_expressible
        Settings that the source states and that have no key in fedpgp, in words.
    method
        Name of the method.
    point
        Mapping of axis -> label of the cells that the figures are compared with.
    figures
        Mapping of metric -> figure.
    """

    source: str
    settings: Mapping[str, Any]
    not_expressible: Sequence[str]
    method: str
    point: Mapping[str, str]
    figures: Mapping[str, float]

    def is_of(self, part: StudyPart, key: Sequence[str]) -> bool:
        """Return whether the figures belong to a cell: the cell has all labels of `point`."""
        labels = part.point(tuple(key))
        return all(labels.get(axis) == label for axis, label in self.point.items())

    def compare(self, config: ExperimentConfig) -> Agreement:
        """Compare the settings of a cell with the settings that the source states."""
        return compare_settings(config, self.method, self.settings, self.not_expressible)


@dataclass(frozen=True)
class Side:
    """A method in one cell.

    Attributes
    ----------
    part
        Name of the part that has the cell.
    method
        Name of the method.
    point
        Mapping of axis -> label of the cell.
    alpha
        Interpolation between the shared model (0) and the personal models (1).
    """

    part: str
    method: str = "fedpgp"
    point: Mapping[str, str] = field(default_factory=dict)
    alpha: float = 1.0

    def key(self, parts: Sequence[StudyPart]) -> tuple[str, ...]:
        """Return the key of the cell.

        Raises
        ------
        ConfigError
            If no cell or several cells have the labels.
        """
        found = [
            key
            for part in parts
            if part.name == self.part and set(self.point) <= set(part.axes)
            for key in part.cell_keys()
            if all(part.point(key)[axis] == label for axis, label in self.point.items())
        ]
        if len(found) != 1:
            raise ConfigError(
                f"{self} names {len(found)} cells instead of one",
                where="questions",
                got=len(found),
                remedy="Give the part and the labels that identify one cell",
            )
        return found[0]


@dataclass(frozen=True)
class Question:
    """A question of a recipe. The answer is the figures of `first` minus the figures of `second`."""

    text: str
    first: Side
    second: Side


@dataclass(frozen=True)
class Recipe:
    """An experiment of the paper.

    Attributes
    ----------
    name
        Name of the recipe.
    file
        Config of the experiment, with the values of the authors.
    title
        Title of the experiment.
    about
        Description of the experiment.
    methods
        Names of the methods.
    figures
        Metrics that are columns of the table, if a part has them.
    parts
        Parts on the data of the paper.
    embedded
        Parts on pictograms with pictoclip and its tuned settings; empty if the experiment does not fit them.
    embedded_methods
        Names of the methods of the embedded parts.
    embedded_note
        How the embedded parts differ from the paper, or why there are none.
    reported
        Published figures.
    questions
        Differences, with intervals, that follow the tables.
    """

    name: str
    file: Path
    title: str
    about: str
    methods: Sequence[str]
    figures: Sequence[str]
    parts: Sequence[StudyPart]
    embedded: Sequence[StudyPart]
    embedded_methods: Sequence[str]
    embedded_note: str
    reported: Sequence[Reported]
    questions: Sequence[Question]


def names() -> list[str]:
    """Return the names of all recipes of the package."""
    return sorted(path.stem for path in _directory().glob("*.toml"))


def read_recipe(name: str) -> Recipe:
    """Return the recipe with a name.

    Raises
    ------
    ConfigError
        If there is no such recipe.
    """
    if name not in names():
        raise ConfigError(where="the name of a recipe", allowed="known", got=name, remedy=nearest(name, names()))
    file = _directory() / f"{name}.toml"
    table: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))[RECIPE]
    sources, reported, questions = table.pop("sources", {}), table.pop("reported", []), table.pop("questions", [])
    of_recipe = {
        "embedded_methods": table["methods"],
        **table,
        "parts": _parts(table["parts"], file),
        "embedded": _parts(table.get("embedded", []), file),
        "questions": [
            Question(question["text"], Side(**question["first"]), Side(**question["second"])) for question in questions
        ],
        "reported": [_reported(f"{file.name}: {RECIPE}.sources", sources, **figures) for figures in reported],
    }
    return Recipe(name=name, file=file, **of_recipe)


def _reported(
    place: str,
    sources: Mapping[str, Mapping[str, Any]],
    *,
    source: str,
    settings: Mapping[str, Mapping[str, Any]],
    **figures: Any,
) -> Reported:
    """Return figures of a source, with the settings of the source and the settings of these figures."""
    if source not in sources:
        raise ConfigError(
            f"reported figures name the source {source!r}, which is missing",
            where=place,
            got=source,
            remedy=nearest(source, sources),
        )
    shared = sources[source]
    return Reported(
        source=shared["title"],
        settings={
            **stated_settings(shared["settings"], f"{place}.{source}.settings"),
            **stated_settings(settings, f"{place}.{source}: settings of a figure"),
        },
        not_expressible=shared["not_expressible"],
        **figures,
    )


def _parts(tables: Sequence[Mapping[str, Any]], file: Path) -> list[StudyPart]:
    axes = [read_axes(part["axes"], f"{file.name}: {part['name']}") if "axes" in part else {} for part in tables]
    return [StudyPart(**{**part, "axes": of_part}) for part, of_part in zip(tables, axes, strict=True)]


def _directory() -> Path:
    return Path(str(resources.files("fedpgp") / "recipes" / "paper"))
