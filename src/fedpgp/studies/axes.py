"""What a study varies: axes, each with labelled points and what they change of a config."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import tomli_w

from fedpgp.config import parse_change
from fedpgp.errors import ConfigError, nearest

Axis = Mapping[str, Sequence[str]]  # label of a point -> changes of the form "section.key=value"
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # of an axis in a file: a part of a path
FORMS = (
    '{key = "section.key", values = [A, …]}, {settings = {LABEL = ["section.key=value", …], …}}, or'
    " {study = NAME, settings = [LABEL, …]}"
)


def axis_of_values(key: str, values: Sequence[Any]) -> Axis:
    """Return a point for each value of one "section.key", labelled by it.

    Raises ConfigError where two are the same, or there is none.
    """
    if not len(values):
        raise ConfigError(f"axis {key} must have a value or more, got none")
    labels = [_label(value) for value in values]
    if len(set(labels)) < len(labels):  # two paths with one last part
        labels = [_toml(value) for value in values]
    if len(set(labels)) < len(labels):
        raise ConfigError(f"{key} must have each value once, got {', '.join(labels)}")
    return {label: [f"{key}={_toml(value)}"] for label, value in zip(labels, values, strict=True)}


def axis_of_text(text: str) -> tuple[str, Axis]:
    """Return key and axis of "section.key=a,b,c"; a list is written in brackets. Raises ConfigError for other forms."""
    key, separator, values = text.partition("=")
    parts = [part.strip() for part in re.split(r",(?![^\[]*\])", values)]
    if not separator or not all(parts) or key.count(".") != 1:
        raise ConfigError(f"--grid must have the form section.key=a,b,c, such as fedpgp.mu=0.1,1, got {text!r}")
    parsed = [parse_change(f"{key}={part}")[2] for part in parts]
    return key.strip(), axis_of_values(key.strip(), parsed)


def read_toml(file: Path, what: str) -> dict[str, Any]:
    """Return the content of a TOML file; raises ConfigError, naming `what` it is to hold, where it cannot be read."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{what} {file} cannot be read: {error.strerror}; name a file that exists") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: is not TOML: {error}") from error


def read_studies(file: Path | str | None = None, wanted: Sequence[str] | None = None) -> dict[str, Axis]:
    """Return the axes of a TOML file of `fedpgp ablate`, a section for each, or the wanted ones.

    file: None takes the shipped file, which has the paper's ablations of FedPGP and some more.
    Raises ConfigError, naming the file and the study.
    """
    path = Path(str(resources.files("fedpgp") / "studies" / "ablations.toml")) if file is None else Path(file)
    studies = read_toml(path, "studies")
    check_studies(studies, path)
    if wanted is None:
        return studies
    for name in wanted:
        if name not in studies:
            place = "the shipped file of studies" if file is None else path
            raise ConfigError(f"{place} has no study {name!r}; {nearest(name, studies)}")
    return {name: studies[name] for name in dict.fromkeys(wanted)}


def check_studies(studies: Mapping[str, Any], file: Path) -> None:
    """Raise ConfigError, naming the file, unless these are one or more axes by name."""
    if not studies:
        raise ConfigError(f"{file}: holds no study; write a section for one, such as [bottleneck]")
    for name, axis in studies.items():
        _check_name(name, f"{file}: a study's name")
        _check_axis(axis, f"{file}: {name}")


def read_axes(tables: Any, place: str) -> dict[str, Axis]:
    """Return the axes of a TOML table by name.

    An axis is a table with one of the forms {key = "section.key", values = […]};
    {settings = {LABEL = ["section.key=value", …], …}}; {study = NAME}, one of the shipped studies of `fedpgp ablate`,
    with settings = [LABEL, …] for some of its settings. place: for messages. Raises ConfigError, naming the axis.
    """
    if not isinstance(tables, Mapping) or not tables:
        raise ConfigError(f'{place} must have an axis or more, such as mu = {{key = "fedpgp.mu", values = [0.1, 1.0]}}')
    for name in tables:
        _check_name(name, f"{place}: an axis's name")
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
                        f"{place}.settings must be labels of the study, got {label!r}; {nearest(str(label), axis)}"
                    )
            return {label: axis[label] for label in labels}
    raise ConfigError(f"{place} must be a table of the form {FORMS}, got {table!r}")


def _check_name(name: str, place: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(f"{place} must be of small letters, digits and hyphens, got {name!r}")


def _check_axis(axis: Any, place: str) -> None:
    if not isinstance(axis, Mapping) or not axis:
        raise ConfigError(f"{place} must be a table with a list of changes for each label, got {axis!r}")
    for label, changes in axis.items():
        if not isinstance(changes, list) or not all(isinstance(change, str) for change in changes):
            raise ConfigError(f'{place}.{label!r} must be a list of changes such as ["fedpgp.mu=1.0"], got {changes!r}')


def slug(label: str) -> str:
    """Return what a path can have of a label."""
    return re.sub("[^a-z0-9.]+", "-", label.lower())


def is_numeric(axis: Axis) -> bool:
    """Return whether there are several points, and all their labels are numbers."""
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
