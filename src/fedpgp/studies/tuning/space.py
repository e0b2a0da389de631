"""Search spaces: the fields of each method that are searched, and their ranges or choices."""

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

from fedpgp.config import parse_change
from fedpgp.errors import ConfigError, combined, nearest
from fedpgp.methods import METHODS, Method
from fedpgp.methods.plugins import installed
from fedpgp.runtime.validation import value_error
from fedpgp.studies.axes import read_toml

Value = str | float | int | bool | None
Space = Mapping[str, BaseDistribution]  # field -> range or choices

RANGE = re.compile(r"(?P<low>[^.].*?)\.\.(?P<high>.+?)(?P<log>:log)?$")

NUMBER = r"[+-]?[\d.]+(?:[eE][+-]?\d+)?"
SEEMS_A_RANGE = re.compile(rf"(?P<low>{NUMBER})\s*(?:-|–|—|:|to)\s*(?P<high>{NUMBER})")  # other ways to write a range


_Described = tuple[Any, str]  # range or choices of a field, and the place where they were written, for messages


def search_spaces(
    methods: Mapping[str, Method], file: Path | str | None = None, changes: Sequence[str] = ()
) -> Mapping[str, Space]:
    """Return the search space of each method.

    The file `tuning/spaces.toml` of the package has a space for every built-in method.

    Parameters
    ----------
    methods
        Methods by name.
    file
        TOML file whose sections replace the spaces of the same methods.
    changes
        Texts that replace the range or choices of one field: "method.field=low..high", "method.field=low..high:log" or
        "method.field=one,two,three".

    Raises
    ------
    ConfigError
        If a space is not valid. The message has a line for each problem.
    """
    described = _read(Path(str(resources.files("fedpgp") / "studies" / "tuning" / "spaces.toml")))
    faults: list[ConfigError] = []
    if file is not None:
        own, names = _read(Path(file)), [*methods, *METHODS, *installed()]
        faults += [
            ConfigError(f"there is no method {name!r}", where=f"{file}", got=name, remedy=nearest(name, names))
            for name in own
            if name not in names
        ]
        described |= own
    for change in changes:
        try:
            method, field, content = _parse(change)
            if method not in methods:
                raise ConfigError(
                    f"the method {method!r} is not tuned", where="--search", got=method, remedy=nearest(method, methods)
                )
            described[method] = {**described.get(method, {}), field: (content, "--search")}
        except ConfigError as error:
            faults.append(error)
    spaces: dict[str, dict[str, BaseDistribution]] = {name: {} for name in methods}
    for name, settings in methods.items():
        for field, (content, place) in described.get(name, {}).items():
            try:
                spaces[name][field] = _distribution(settings, field, content, place)
            except ConfigError as error:
                faults.append(error)
    if faults:
        raise combined(faults)
    return spaces


def described_space(method: Method, content: Mapping[str, Any], place: str) -> Space:
    """Return the space that `describe` has written; raise ConfigError, with `place`, if a field does not fit."""
    return {field: _distribution(method, field, of_field, place) for field, of_field in content.items()}


def describe(space: Space) -> dict[str, Any]:
    """Return a space in the types of JSON, as it is written in TOML."""
    return {
        field: list(d.choices)
        if isinstance(d, CategoricalDistribution)
        else {"low": d.low, "high": d.high, "log": d.log}  # type: ignore[attr-defined]
        for field, d in space.items()
    }


def _read(file: Path) -> dict[str, dict[str, _Described]]:
    tables = read_toml(file, "file of search spaces")
    for name, fields in tables.items():
        if not isinstance(fields, dict):
            raise ConfigError(
                f"{name} is not in the section of a method",
                where=f"{file}",
                got=name,
                remedy="Put it below the name of a method in brackets, such as [fedpgp]",
            )
    return {name: {field: (content, str(file)) for field, content in fields.items()} for name, fields in tables.items()}


def _parse(change: str) -> tuple[str, str, Any]:
    key, separator, text = change.partition("=")
    method, dot, field = key.strip().partition(".")
    if not (separator and dot and method and field and text.strip()):
        raise ConfigError(
            where="--search",
            allowed="of the form method.field=low..high, method.field=low..high:log or method.field=one,two",
            got=change,
            remedy="Use for example --search fedpgp.mu=0.1..1:log",
        )
    span = RANGE.match(text.strip())
    words = [span["low"], span["high"]] if span else text.split(",")
    values = [parse_change(f"{key}={word.strip()}")[2] for word in words]
    return method, field, {"low": values[0], "high": values[1], "log": bool(span["log"])} if span else values


def _distribution(method: Method, field: str, content: Any, place: str) -> BaseDistribution:
    where = f"{place}: {method.name}.{field}"
    known = [f.name for f in dataclasses.fields(method) if f.init]
    if field not in known:
        remedy = nearest(field, known) if known else "Remove it: the method has no settings"
        raise ConfigError(f"{method.name} has no setting {field!r}", where=where, got=field, remedy=remedy)
    if isinstance(content, list):
        if len(content) < 2:
            raise ConfigError(
                where=where, allowed="a range or at least two choices", got=content, remedy=_example(content)
            )
        _check(method, field, content, where)
        return CategoricalDistribution(content)
    if not isinstance(content, dict) or not {"low", "high"} <= content.keys() <= {"low", "high", "log"}:
        raise ConfigError(
            where=where,
            allowed="a list of choices or a range",
            got=content,
            remedy="Write a range as { low = 0.01, high = 1.0, log = true }",
        )
    low, high, log = content["low"], content["high"], content.get("log", False)
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in (low, high)):
        raise ConfigError(
            where=where,
            allowed="a range between two numbers",
            got=f"{low}..{high}",
            remedy="Use a number on each side, or list choices",
        )
    if low >= high:
        raise ConfigError(
            f"the range {low}..{high} is empty",
            where=where,
            got=f"{low}..{high}",
            remedy="Use a lower end that is smaller than the upper end",
        )
    if log and low <= 0:
        raise ConfigError(
            where=f"{where}, lower end,",
            allowed="positive in a logarithmic range",
            got=low,
            remedy="Use a positive lower end, or leave out log",
        )
    _check(method, field, (low, high), where)
    kind = IntDistribution if type(getattr(method, field)) is int else FloatDistribution
    return kind(low, high, log=log)


def _example(choices: Sequence[Any]) -> str:
    """Return a remedy for a list with fewer than two choices."""
    like = SEEMS_A_RANGE.fullmatch(str(choices[0])) if choices else None
    low, high = (like["low"], like["high"]) if like else ("low", "high")
    return f"Write choices as one,two and a range as {low}..{high}"


def _check(method: Method, field: str, values: Sequence[Any], where: str) -> None:
    for value in values:
        try:
            dataclasses.replace(method, **{field: value})
        except ValidationError as error:
            remedy = f"Search only values that {method.name} allows"
            raise value_error(error.errors()[0], where, remedy) from error
