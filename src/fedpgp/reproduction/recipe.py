"""What a recipe of the paper's experiments says: beside a config, its cells, its figures, and what others reported."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from fedpgp.config import RECIPE, ExperimentConfig, parse_change
from fedpgp.errors import ConfigError, nearest
from fedpgp.grid.axes import read_axes
from fedpgp.grid.plan import Part


@dataclass(frozen=True)
class Reported:
    """Figures, in percent, that somebody published.

    setting: in words; conditions: "section.key=value" of a config, without which a difference from them says nothing,
    none where too little of the setting is known; point: the labels of the cell that they stand beside, by axis.
    """

    source: str
    setting: str
    conditions: Sequence[str]
    method: str
    point: Mapping[str, str]
    figures: Mapping[str, float]

    def is_of(self, part: Part, key: Sequence[str]) -> bool:
        """Whether they belong to a cell: all their labels are its labels."""
        labels = dict(zip(part.axes, key[1:], strict=True))
        return all(labels.get(axis) == label for axis, label in self.point.items())

    def is_same(self, config: ExperimentConfig) -> bool:
        """Whether a config has all conditions; of a path, as of a hub id, the last part counts."""
        if not self.conditions:
            return False
        for condition in self.conditions:
            section, key, value = parse_change(condition)
            found = getattr(getattr(config, section), key)
            if (Path(found).name if isinstance(found, str) else found) != value:
                return False
        return True


@dataclass(frozen=True)
class Recipe:
    """An experiment. file: the config it changes, with the authors' values.

    parts: on the paper's data; embedded: what they are on pictograms with pictoclip, with its tuned settings, none
    where nothing fits, and embedded_note says how they differ or why there are none. figures: the columns of its table.
    """

    name: str
    file: Path
    title: str
    about: str
    methods: Sequence[str]
    figures: Sequence[str]
    parts: Sequence[Part]
    embedded: Sequence[Part]
    embedded_methods: Sequence[str]
    embedded_note: str
    reported: Sequence[Reported]


def names() -> list[str]:
    """Of all recipes that ship with the package."""
    return sorted(path.stem for path in _directory().glob("*.toml"))


def read_recipe(name: str) -> Recipe:
    """The recipe of a name; raises ConfigError where there is none."""
    if name not in names():
        raise ConfigError(f"a recipe must be one that ships with the package, got {name!r}; {nearest(name, names())}")
    file = _directory() / f"{name}.toml"
    table: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))[RECIPE]
    return Recipe(
        name=name,
        file=file,
        title=table["title"],
        about=table["about"],
        methods=table["methods"],
        figures=table["figures"],
        parts=_parts(table["parts"], file),
        embedded=_parts(table["embedded"], file),
        embedded_methods=table.get("embedded_methods", table["methods"]),
        embedded_note=table["embedded_note"],
        reported=[Reported(**one) for one in table.get("reported", [])],
    )


def _parts(tables: Sequence[Mapping[str, Any]], file: Path) -> list[Part]:
    return [
        Part(
            one["name"],
            read_axes(one["axes"], f"{file.name}: {one['name']}"),
            one.get("changes", []),
            one.get("mean"),
        )
        for one in tables
    ]


def _directory() -> Path:
    return Path(str(resources.files("fedpgp") / "recipes" / "paper"))
