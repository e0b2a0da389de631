"""Axes of a study. Each axis has labelled points, and each point changes a config."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w

from fedpgp.config import parse_change
from fedpgp.errors import ConfigError, first_line, nearest

Axis = Mapping[str, Sequence[str]]  # label of a point -> changes of the form "section.key=value"
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # name of an axis in a file, which becomes part of a path
FORMS = (
    '{key = "section.key", values = [A, …]}, {settings = {LABEL = ["section.key=value", …], …}}, or'
    " {study = NAME, settings = [LABEL, …]}"
)


def axis_of_values(key: str, values: Sequence[Any]) -> Axis:
    """Return an axis with one point for each value of a config key; each point is labelled by its value.

    Parameters
    ----------
    key
        Config key of the form "section.key".
    values
        Values of the key, all different.

    Raises
    ------
    ConfigError
        If there are no values, or two values are equal.
    """
    if not len(values):
        raise ConfigError(
            where=f"axis {key}",
            allowed="a list of one or more values",
            got=list(values),
            remedy="List its values, or leave the axis out",
        )
    labels = [_label(value) for value in values]
    if len(set(labels)) < len(labels):  # two paths with the same last part
        labels = [_toml(value) for value in values]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ConfigError(
            f"the value {twice} is listed twice", where=f"axis {key}", got=twice, remedy="List each value once"
        )
    return {label: [f"{key}={_toml(value)}"] for label, value in zip(labels, values, strict=True)}


def axis_of_text(text: str) -> tuple[str, Axis]:
    """Return the key and the axis of a text such as "fedpgp.mu=0.1,1"; a value that is a list is in brackets.

    Raises
    ------
    ConfigError
        If the text has another form.
    """
    key, separator, values = text.partition("=")
    parts = [part.strip() for part in re.split(r",(?![^\[]*\])", values)]
    if not separator or not all(parts) or key.count(".") != 1:
        raise ConfigError(
            where="--grid",
            allowed="of the form section.key=a,b,c",
            got=text,
            remedy="Use for example --grid fedpgp.mu=0.1,1",
        )
    parsed = [parse_change(f"{key}={part}")[2] for part in parts]
    return key.strip(), axis_of_values(key.strip(), parsed)


def read_toml(file: Path, what: str) -> dict[str, Any]:
    """Return the content of a TOML file.

    Parameters
    ----------
    file
        Path of the file.
    what
        What the file should contain, for messages.

    Raises
    ------
    ConfigError
        If the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(
            f"the {what} cannot be read: {error.strerror}", where=f"{file}", remedy="Name a file that exists"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"the file is not valid TOML: {first_line(error)}",
            where=f"{file}",
            remedy="Correct the file in a text editor",
        ) from error


def read_studies(file: Path | str | None = None, wanted: Sequence[str] | None = None) -> dict[str, Axis]:
    """Return the studies of a TOML file for `fedpgp ablate`. Each section of the file is one study with one axis.

    Parameters
    ----------
    file
        Path of the file. None takes the file of the package, which has the ablations of the FedPGP paper and more.
    wanted
        Names of the studies to return; None returns all.

    Raises
    ------
    ConfigError
        If the file cannot be read, a study has another form, or the file lacks a wanted study.
    """
    path = Path(str(resources.files("fedpgp") / "studies" / "ablations.toml")) if file is None else Path(file)
    studies = read_toml(path, "file of studies")
    check_studies(studies, path)
    if wanted is None:
        return studies
    for name in wanted:
        if name not in studies:
            place = "the studies of fedpgp" if file is None else f"{path}"
            raise ConfigError(f"there is no study {name!r}", where=place, got=name, remedy=nearest(name, studies))
    return {name: studies[name] for name in dict.fromkeys(wanted)}


def check_studies(studies: Mapping[str, Any], file: Path) -> None:
    """Raise ConfigError, with the file, unless `studies` holds one or more axes by name."""
    if not studies:
        raise ConfigError("the file has no study", where=f"{file}", remedy="Add a section for each study, such as [mu]")
    for name, axis in studies.items():
        _check_name(name, f"{file}: the name of a study")
        _check_axis(axis, f"{file}: {name}")


def read_axes(tables: Any, place: str) -> dict[str, Axis]:
    """Return the axes of a TOML table by name.

    Each axis is a table of one of these forms: {key = "section.key", values = […]};
    {settings = {LABEL = ["section.key=value", …], …}}; or {study = NAME}, which names a study of `fedpgp ablate` that
    ships with fedpgp. The last form may choose some settings of the study with settings = [LABEL, …].

    Parameters
    ----------
    tables
        The TOML table.
    place
        Place of the table, for messages.

    Raises
    ------
    ConfigError
        If an axis has another form.
    """
    if not isinstance(tables, Mapping) or not tables:
        raise ConfigError(
            where=place,
            allowed="a table with one or more axes",
            got=tables,
            remedy='Add an axis, such as mu = {key = "fedpgp.mu", values = [0.1, 1.0]}',
        )
    for name in tables:
        _check_name(name, f"{place}: the name of an axis")
    return {name: _read_axis(table, f"{place}.{name}") for name, table in tables.items()}


def _read_axis(table: Any, place: str) -> Axis:
    match table:
        case {"key": str(key), "values": [_, *_] as values, **others} if key.count(".") == 1 and not others:
            return axis_of_values(key, values)
        case {"settings": settings, **others} if not others:
            _check_axis(settings, f"{place}.settings")
            return dict(settings)
        case {"study": str(name), **others} if not others:
            return read_studies(None, [name])[name]
        case {"study": str(name), "settings": [_, *_] as labels, **others} if not others:
            axis = read_studies(None, [name])[name]
            for label in labels:
                if label not in axis:
                    raise ConfigError(
                        where=f"{place}.settings",
                        allowed=f"a list of settings of the study {name}",
                        got=label,
                        remedy=nearest(str(label), axis),
                    )
            return {label: axis[label] for label in labels}
    raise ConfigError(where=place, allowed="a table that describes an axis", got=table, remedy=f"Use a table {FORMS}")


def _check_name(name: str, place: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(
            where=place,
            allowed="of lowercase letters, digits and single hyphens",
            got=name,
            remedy="Rename it, for example to context-length",
        )


def _check_axis(axis: Any, place: str) -> None:
    if not isinstance(axis, Mapping) or not axis:
        raise ConfigError(
            where=place,
            allowed="a table with a list of changes for each label",
            got=axis,
            remedy='Add a line for each label, such as "1" = ["fedpgp.mu=1.0"]',
        )
    for label, changes in axis.items():
        if not isinstance(changes, list) or not all(isinstance(change, str) for change in changes):
            raise ConfigError(
                where=f"{place}.{label!r}",
                allowed="a list of changes",
                got=changes,
                remedy='Use for example ["fedpgp.mu=1.0"]',
            )


def slug(label: str) -> str:
    """Return a label with a hyphen for each run of characters that a path should not have."""
    return re.sub("[^a-z0-9.]+", "-", label.lower())


def is_numeric(axis: Axis) -> bool:
    """Return whether the axis has several points and all labels are numbers."""
    try:
        return len({float(label) for label in axis}) > 1
    except ValueError:
        return False


def _label(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_label, value)) or "none"
    # In a table, the last part of a path is enough to identify a dataset.
    return Path(value).name if isinstance(value, str) and "/" in value else _toml(value).strip("'\"")


def _toml(value: Any) -> str:
    return " ".join(tomli_w.dumps({"value": value}).partition("=")[2].split())
