"""What a recipe of the paper's experiments says: beside a config, its cells, its figures, and what others reported."""

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
    """Figures, in percent, that somebody published.

    source: who published them; settings: "section.key" -> the value that the source states, of every key that it
    states; not_expressible: the settings that it states and fedpgp has no key for, in words; point: the labels of the
    cell that the figures stand beside, by axis.
    """

    source: str
    settings: Mapping[str, Any]
    not_expressible: Sequence[str]
    method: str
    point: Mapping[str, str]
    figures: Mapping[str, float]

    def is_of(self, part: StudyPart, key: Sequence[str]) -> bool:
        """Whether they belong to a cell: all their labels are its labels."""
        labels = part.point(tuple(key))
        return all(labels.get(axis) == label for axis, label in self.point.items())

    def compare(self, config: ExperimentConfig) -> Agreement:
        """Compare the settings of a cell with those of the source."""
        return compare_settings(config, self.method, self.settings, self.not_expressible)


@dataclass(frozen=True)
class Side:
    """A method in one cell. point: the labels of the cell by axis; alpha: where on the path from the shared part alone
    (0) to the clients' own models (1)."""

    part: str
    method: str = "fedpgp"
    point: Mapping[str, str] = field(default_factory=dict)
    alpha: float = 1.0

    def key(self, parts: Sequence[StudyPart]) -> tuple[str, ...]:
        """Return the key of its cell; raises ConfigError where the parts have none, or several."""
        found = [
            key
            for part in parts
            if part.name == self.part and set(self.point) <= set(part.axes)
            for key in part.cell_keys()
            if all(part.point(key)[axis] == label for axis, label in self.point.items())
        ]
        if len(found) != 1:
            raise ConfigError(f"a question must name one cell, and {self} names {len(found)}")
        return found[0]


@dataclass(frozen=True)
class Question:
    """What a recipe asks of its cells: the figures of one method in one cell minus those of another."""

    text: str
    first: Side
    second: Side


@dataclass(frozen=True)
class Recipe:
    """An experiment. file: the config it changes, with the authors' values.

    parts: on the paper's data; embedded: what they are on pictograms with pictoclip, with its tuned settings, none
    where nothing fits, and embedded_note says how they differ or why there are none. figures: the columns of its table,
    of those that a part has. questions: differences with intervals that stand below the tables.
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
    """Of all recipes that ship with the package."""
    return sorted(path.stem for path in _directory().glob("*.toml"))


def read_recipe(name: str) -> Recipe:
    """The recipe of a name; raises ConfigError where there is none."""
    if name not in names():
        raise ConfigError(f"a recipe must be one that ships with the package, got {name!r}; {nearest(name, names())}")
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
    """Figures of a source, with settings of their own beside those of all figures of the source."""
    if source not in sources:
        raise ConfigError(f"{place} must have {source!r}, which reported figures name; {nearest(source, sources)}")
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
