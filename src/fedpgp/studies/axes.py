"""What a grid varies: axes, each with labelled points and what they change of a config."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from fedpgp.config import parse_change
from fedpgp.errors import ConfigError, nearest
from fedpgp.studies.search import NAME, Study, read_studies

KEYS = ("key", "values", "study", "settings")


def axis_of_values(key: str, values: Sequence[Any]) -> Study:
    """A point for each value of one "section.key", its label; raises ConfigError where two are the same."""
    labels = [_label(value) for value in values]
    if len(set(labels)) < len(labels):  # two paths with one last part
        labels = [_toml(value) for value in values]
    if len(set(labels)) < len(labels):
        raise ConfigError(f"{key} must have each value once, got {', '.join(labels)}")
    return {label: [f"{key}={_toml(value)}"] for label, value in zip(labels, values, strict=True)}


def axis_of_text(text: str) -> tuple[str, Study]:
    """Key and axis of "section.key=a,b,c"; a list is written in brackets. Raises ConfigError for another form."""
    key, separator, values = text.partition("=")
    parts = [part.strip() for part in re.split(r",(?![^\[]*\])", values)]
    if not separator or not all(parts) or key.count(".") != 1:
        raise ConfigError(f"--grid must have the form section.key=a,b,c, such as fedpgp.mu=0.1,1, got {text!r}")
    read = [parse_change(f"{key}={part}")[2] for part in parts]
    return key.strip(), axis_of_values(key.strip(), read)


def read_axes(tables: Any, place: str) -> dict[str, Study]:
    """The axes of a TOML file by name, a table for each, with one of three forms.

    {key = "section.key", values = […]}; {settings = {LABEL = ["section.key=value", …], …}}; {study = NAME}, one of
    those of `fedpgp ablate`, with settings = [LABEL, …] for some of its settings. place: for messages.
    Raises ConfigError, naming the axis.
    """
    if not isinstance(tables, Mapping) or not tables:
        raise ConfigError(f'{place} must have an axis or more, such as mu = {{key = "fedpgp.mu", values = [0.1, 1.0]}}')
    return {name: _read_axis(table, f"{place}.{name}", name) for name, table in tables.items()}


def _read_axis(table: Any, place: str, name: str) -> Study:
    if not NAME.fullmatch(name):
        raise ConfigError(f"{place}: an axis's name must be of small letters, digits and hyphens, got {name!r}")
    if not isinstance(table, Mapping):
        raise ConfigError(f"{place} must be a table with {' or '.join(KEYS)}, got {table!r}")
    for key in table:
        if key not in KEYS:
            raise ConfigError(f"{place}.{key} is not a key of an axis; {nearest(key, KEYS)}")
    given = set(table)
    if given == {"key", "values"}:
        if not isinstance(table["key"], str) or table["key"].count(".") != 1:
            raise ConfigError(f"{place}.key must have the form section.key, got {table['key']!r}")
        if not isinstance(table["values"], list) or not table["values"]:
            raise ConfigError(f"{place}.values must be a list with a value or more, got {table['values']!r}")
        return axis_of_values(table["key"], table["values"])
    if given == {"settings"}:
        return _settings(table["settings"], place)
    if given in ({"study"}, {"study", "settings"}):
        (study,) = read_studies(None, [table["study"]]).values()
        return _some(study, table.get("settings", list(study)), f"{place}.settings")
    raise ConfigError(f"{place} must have key and values, or settings, or study, got {', '.join(table) or 'nothing'}")


def _settings(settings: Any, place: str) -> Study:
    if not isinstance(settings, Mapping) or not settings:
        raise ConfigError(f"{place}.settings must be a table with a label for each list of changes, got {settings!r}")
    for label, changes in settings.items():
        if not isinstance(changes, list) or not all(isinstance(change, str) for change in changes):
            raise ConfigError(
                f'{place}.settings.{label!r} must be a list of changes such as ["fedpgp.mu=1.0"], got {changes!r}'
            )
    return settings


def _some(axis: Study, labels: Sequence[str], place: str) -> Study:
    """The points of an axis with these labels, in their order."""
    if not labels:
        raise ConfigError(f"{place} must name a label or more; known: {', '.join(axis)}")
    for label in labels:
        if label not in axis:
            raise ConfigError(f"{place} must be labels of the axis, got {label!r}; {nearest(str(label), axis)}")
    return {label: axis[label] for label in labels}


def only(axes: Mapping[str, Study], wanted: Mapping[str, Sequence[str]]) -> dict[str, Study]:
    """The axes with some of their points alone, where those are named."""
    return {
        name: _some(axis, wanted[name], f"--only {name}") if name in wanted else axis for name, axis in axes.items()
    }


def slug(label: str) -> str:
    """What a path can have of a label."""
    return re.sub("[^a-z0-9.]+", "-", label.lower())


def is_numeric(axis: Study) -> bool:
    """Whether there are several points, and all their labels are numbers."""
    try:
        return len({float(label) for label in axis}) > 1
    except ValueError:
        return False


def _label(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_label, value)) or "none"
    # A path's last part tells data sets apart well enough in a table.
    return Path(value).name if isinstance(value, str) and "/" in value else _toml(value).strip("'\"")


def _toml(value: Any) -> str:
    return " ".join(tomli_w.dumps({"value": value}).partition("=")[2].split())
