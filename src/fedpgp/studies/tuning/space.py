"""What is searched: the fields of each method, and their ranges."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import ValidationError

from fedpgp.config import parse_change, reason
from fedpgp.errors import ConfigError, nearest
from fedpgp.methods import METHODS, Method
from fedpgp.methods.plugins import installed
from fedpgp.studies.axes import read_toml

Value = str | float | int | bool | None
Space = Mapping[str, BaseDistribution]  # field -> where its values come from

RANGE = re.compile(r"(?P<low>[^.].*?)\.\.(?P<high>.+?)(?P<log>:log)?$")

NUMBER = r"[+-]?[\d.]+(?:[eE][+-]?\d+)?"
SEEMS_A_RANGE = re.compile(rf"(?P<low>{NUMBER})\s*(?:-|–|—|:|to)\s*(?P<high>{NUMBER})")  # as people write one


_Described = tuple[Any, str]  # a field's range or choices, and where it stands, for a message


def search_spaces(
    methods: Mapping[str, Method], file: Path | str | None = None, changes: Sequence[str] = ()
) -> Mapping[str, Space]:
    """The space of each method that has something to search.

    The shipped `tuning/spaces.toml` has one for every method of ours. file: the sections of another TOML file take the
    place of those of the same methods; changes: "method.field=low..high", "method.field=low..high:log" or
    "method.field=one,two,three", each in the place of one field. Raises ConfigError with a line per fault.
    """
    described = _read(Path(str(resources.files("fedpgp") / "studies" / "tuning" / "spaces.toml")))
    faults = []
    if file is not None:
        own, names = _read(Path(file)), [*methods, *METHODS, *installed()]
        faults += [f"{file}: {name} is no method; {nearest(name, names)}" for name in own if name not in names]
        described |= own
    for change in changes:
        try:
            method, field, content = _parse(change)
            if method not in methods:
                raise ConfigError(
                    f"--search: {method} is none of the methods that are tuned; {nearest(method, methods)}"
                )
            described[method] = {**described.get(method, {}), field: (content, "--search")}
        except ConfigError as error:
            faults.append(str(error))
    spaces: dict[str, dict[str, BaseDistribution]] = {name: {} for name in methods}
    for name, settings in methods.items():
        for field, (content, place) in described.get(name, {}).items():
            try:
                spaces[name][field] = _distribution(settings, field, content, place)
            except ConfigError as error:
                faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))
    return spaces


def described_space(method: Method, content: Mapping[str, Any], place: str) -> Space:
    """The reverse of `describe`; raises ConfigError, naming the place, where a field does not fit."""
    return {field: _distribution(method, field, of_field, place) for field, of_field in content.items()}


def describe(space: Space) -> dict[str, Any]:
    """A space in JSON's types, as it stands in TOML."""
    return {
        field: list(d.choices)
        if isinstance(d, CategoricalDistribution)
        else {"low": d.low, "high": d.high, "log": d.log}  # type: ignore[attr-defined]
        for field, d in space.items()
    }


def _read(file: Path) -> dict[str, dict[str, _Described]]:
    tables = read_toml(file, "search space")
    for name, fields in tables.items():
        if not isinstance(fields, dict):
            raise ConfigError(f"{file}: {name} must stand in the section of a method, such as [fedpgp]")
    return {name: {field: (content, str(file)) for field, content in fields.items()} for name, fields in tables.items()}


def _parse(change: str) -> tuple[str, str, Any]:
    key, separator, text = change.partition("=")
    method, dot, field = key.strip().partition(".")
    if not (separator and dot and method and field and text.strip()):
        raise ConfigError(
            f"--search must have the form method.field=low..high, with :log behind it or not, or method.field=one,two,"
            f" got {change!r}"
        )
    span = RANGE.match(text.strip())
    words = [span["low"], span["high"]] if span else text.split(",")
    values = [parse_change(f"{key}={word.strip()}")[2] for word in words]
    return method, field, {"low": values[0], "high": values[1], "log": bool(span["log"])} if span else values


def _distribution(method: Method, field: str, content: Any, place: str) -> BaseDistribution:
    where = f"{place}: {method.name}.{field}"
    known = [f.name for f in dataclasses.fields(method) if f.init]
    if field not in known:
        remedy = nearest(field, known) if known else "it has no settings"
        raise ConfigError(f"{where} is not a setting of {method.name}; {remedy}")
    if isinstance(content, list):
        if len(content) < 2:
            raise ConfigError(f"{where} must {_more_than(content)}, got {content}")
        _check(method, field, content, where)
        return CategoricalDistribution(content)
    if not isinstance(content, dict) or not {"low", "high"} <= content.keys() <= {"low", "high", "log"}:
        raise ConfigError(f"{where} must be a list of choices or {{ low, high, log }}, got {content!r}")
    low, high, log = content["low"], content["high"], content.get("log", False)
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in (low, high)):
        raise ConfigError(f"{where} must go from a number to a number, got {low!r} to {high!r}")
    if low >= high:
        raise ConfigError(f"{where} must have low below high, got {low} to {high}: the range is empty")
    if log and low <= 0:
        raise ConfigError(f"{where} must begin above 0 to be searched by its logarithm, got {low}")
    _check(method, field, (low, high), where)
    kind = IntDistribution if type(getattr(method, field)) is int else FloatDistribution
    return kind(low, high, log=log)


def _more_than(choices: Sequence[Any]) -> str:
    """What is to be written in the place of one choice, or of none."""
    like = SEEMS_A_RANGE.fullmatch(str(choices[0])) if choices else None
    low, high = (like["low"], like["high"]) if like else ("low", "high")
    return f"have at least two choices, one,two, or a range, {low}..{high}"


def _check(method: Method, field: str, values: Sequence[Any], where: str) -> None:
    for value in values:
        try:
            dataclasses.replace(method, **{field: value})
        except ValidationError as error:
            raise ConfigError(f"{where} {reason(error.errors()[0])}") from error
