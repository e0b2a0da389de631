"""What is searched: the fields of each method, and their ranges."""

import dataclasses
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

from fedpgp.config import reason
from fedpgp.errors import ConfigError, nearest
from fedpgp.methods import METHODS, Method
from fedpgp.methods.plugins import installed

Value = str | float | int | bool | None
Space = Mapping[str, BaseDistribution]  # field -> where its values come from

RANGE = re.compile(r"(?P<low>[^.].*?)\.\.(?P<high>.+?)(?P<log>:log)?$")

NUMBER = r"[+-]?[\d.]+(?:[eE][+-]?\d+)?"
SEEMS_A_RANGE = re.compile(rf"(?P<low>{NUMBER})\s*(?:-|–|—|:|to)\s*(?P<high>{NUMBER})")  # as people write one


@dataclass(frozen=True)
class _Range:
    """A field's range or choices, and where it stands, for a message."""

    content: Any
    place: str


def search_spaces(
    methods: Mapping[str, Method], file: Path | str | None = None, changes: Sequence[str] = ()
) -> Mapping[str, Space]:
    """The space of each method that has something to search.

    The shipped `tuning/spaces.toml` has one for every method of ours. file: the sections of another TOML file take the
    place of those of the same methods; changes: "method.field=low..high", "method.field=low..high:log" or
    "method.field=one,two,three", each in the place of one field. Raises ConfigError with a line per fault.
    """
    shipped = Path(str(resources.files("fedpgp") / "studies" / "tuning" / "spaces.toml"))
    described = _read(shipped)
    faults = []
    if file is not None:
        own, known = _read(Path(file)), [*methods, *METHODS, *installed()]
        faults += [f"{file}: {name} is no method; {nearest(name, known)}" for name in own if name not in known]
        described |= own
    for change in changes:
        try:
            method, field, content = _parse(change)
            described[method] = {**described.get(method, {}), field: _Range(content, "--search")}
        except ConfigError as error:
            faults.append(str(error))
    spaces: dict[str, dict[str, BaseDistribution]] = {}
    asked = {change.partition(".")[0].strip() for change in changes}
    for name in sorted(asked - methods.keys()):
        if name in described:  # else it had no form at all
            faults.append(f"--search: {name} is none of the methods that are tuned; {nearest(name, methods)}")
    for name, settings in methods.items():
        spaces[name] = {}
        for field, found in described.get(name, {}).items():
            try:
                spaces[name][field] = _distribution(settings, field, found)
            except ConfigError as error:
                faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))
    return spaces


def described_space(method: Method, content: Mapping[str, Any], place: str) -> Space:
    """The reverse of `describe`; raises ConfigError, naming the place, where a field does not fit."""
    return {field: _distribution(method, field, _Range(of_field, place)) for field, of_field in content.items()}


def describe(space: Space) -> dict[str, Any]:
    """A space in JSON's types, as it stands in TOML."""
    return {
        field: list(d.choices)
        if isinstance(d, CategoricalDistribution)
        else {"low": d.low, "high": d.high, "log": d.log}  # type: ignore[attr-defined]
        for field, d in space.items()
    }


def _read(path: Path) -> dict[str, dict[str, _Range]]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"search space {path} cannot be read: {error.strerror}; name a file that exists") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from error
    for name, fields in tables.items():
        if not isinstance(fields, dict):
            raise ConfigError(f"{path}: {name} must stand in the section of a method, such as [fedpgp]")
    return {
        name: {field: _Range(content, str(path)) for field, content in fields.items()}
        for name, fields in tables.items()
    }


def _parse(change: str) -> tuple[str, str, Any]:
    key, separator, text = change.partition("=")
    method, dot, field = key.strip().partition(".")
    if not (separator and dot and method and field and text.strip()):
        raise ConfigError(
            f"--search must have the form method.field=low..high, with :log behind it or not, or method.field=one,two,"
            f" got {change!r}"
        )
    if found := RANGE.match(text.strip()):
        low, high = (_value(found[end]) for end in ("low", "high"))
        return method, field, {"low": low, "high": high, "log": found["log"] is not None}
    return method, field, [_value(word) for word in text.split(",")]


def _value(text: str) -> Any:
    try:
        (parsed,) = tomllib.loads(f"value = {text.strip()}").values()
        return parsed
    except ValueError:
        return text.strip()  # a word needs no quotes


def _distribution(method: Method, field: str, found: _Range) -> BaseDistribution:
    where = f"{found.place}: {method.name}.{field}"
    known = [f.name for f in dataclasses.fields(method) if f.init]
    if field not in known:
        remedy = nearest(field, known) if known else "it has no settings"
        raise ConfigError(f"{where} is not a setting of {method.name}; {remedy}")
    if isinstance(found.content, list):
        if len(found.content) < 2:
            raise ConfigError(f"{where} must {_more_than(found.content)}, got {found.content}")
        for choice in found.content:
            _check(method, field, choice, where)
        return CategoricalDistribution(found.content)
    if not isinstance(found.content, dict) or not {"low", "high"} <= found.content.keys() <= {"low", "high", "log"}:
        raise ConfigError(f"{where} must be a list of choices or {{ low, high, log }}, got {found.content!r}")
    low, high, log = found.content["low"], found.content["high"], found.content.get("log", False)
    for end in (low, high):
        if isinstance(end, bool) or not isinstance(end, int | float):
            raise ConfigError(f"{where} must go from a number to a number, got {low!r} to {high!r}")
    if low >= high:
        raise ConfigError(f"{where} must have low below high, got {low} to {high}: the range is empty")
    if log and low <= 0:
        raise ConfigError(f"{where} must begin above 0 to be searched by its logarithm, got {low}")
    whole = type(getattr(method, field)) is int
    for end in (low, high):
        _check(method, field, end, where)
    if whole:
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def _more_than(choices: Sequence[Any]) -> str:
    """What is to be written in the place of one choice, or of none."""
    like = SEEMS_A_RANGE.fullmatch(str(choices[0])) if choices else None
    low, high = (like["low"], like["high"]) if like else ("low", "high")
    return f"have at least two choices, one,two, or a range, {low}..{high}"


def _check(method: Method, field: str, value: Any, where: str) -> None:
    try:
        dataclasses.replace(method, **{field: value})
    except ValidationError as error:
        raise ConfigError(f"{where} {reason(error.errors()[0])}") from error
