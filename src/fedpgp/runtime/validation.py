"""Checks of config sections and of function arguments."""

import re
from collections.abc import Iterable
from numbers import Integral
from typing import Any, TypeVar

from pydantic import ConfigDict

from fedpgp.errors import ConfigError, FedPGPError, short

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Kind = TypeVar("Kind", bound=FedPGPError)


def whole_number(value: object, name: str, least: int, remedy: str = "") -> int:
    """Return a whole number of Python or NumPy as an int.

    Parameters
    ----------
    value
        The argument. True and 1.0 are refused, too, because their meaning is not clear.
    name
        Name of the argument, for the error.
    least
        The smallest value that is allowed.
    remedy
        What to do if the value is refused, for the error.

    Raises
    ------
    ConfigError
        The value is not a whole number, or is less than `least`.
    """
    remedy = remedy or f"Use a whole number, for example {least}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(where=name, allowed="a whole number", got=value, remedy=remedy)
    if value < least:
        raise ConfigError(where=name, allowed=f"{least} or more", got=int(value), remedy=remedy)
    return int(value)


def texts(values: Iterable[str], name: str) -> tuple[str, ...]:
    """Return a list of texts as a tuple.

    Parameters
    ----------
    values
        The argument. A single text is refused, because its letters would be taken as a list.
    name
        Name of the argument, for the error.

    Raises
    ------
    ConfigError
        The argument is not a list of texts.
    """
    allowed = "a list of texts"
    if isinstance(values, str | bytes):
        raise ConfigError(where=name, allowed=allowed, got=values, remedy=f"Use a list with one text, [{values!r}]")
    if not isinstance(values, Iterable):
        raise ConfigError(where=name, allowed=allowed, got=values, remedy="Use a list of texts")
    listed = tuple(values)
    for place, value in enumerate(listed):
        if not isinstance(value, str):
            raise ConfigError(where=f"{name}[{place}]", allowed="a text", got=value, remedy="Use a list of texts")
    return listed


def flag(value: object, name: str) -> bool:
    """Return True or False.

    Parameters
    ----------
    value
        The argument. Other values are refused, such as the text "no", which is true in Python.
    name
        Name of the argument, for the error.

    Raises
    ------
    ConfigError
        The value is not a bool.
    """
    if not isinstance(value, bool):
        raise ConfigError(where=name, allowed="True or False", got=value, remedy=f"Use {name}=True or {name}=False")
    return value


ALLOWED = (  # pydantic's message -> the words after "must be"
    (r"Field required", "given"),
    (r"Input should be a valid boolean.*", "true or false"),
    (r"Input should be a valid integer.*", "an integer"),
    (r"Input should be a valid (?:tuple|list|set)", "a list"),
    (r"Input should be a valid string", "a text"),
    (r"Input should be a valid dictionary.*", "a dictionary"),
    (r"Input should be a valid (.*)", r"a \1"),
    (r"Input should be (.*)", r"\1"),
    (r"String should match pattern (.*)", r"a text that matches the pattern \1"),
    (r"String should have (.*)", r"a text with \1"),
    (r"Dictionary should have (.*?)(?: after validation.*)?", r"a dictionary with \1"),
    (r"(?:Tuple|List|Set) should have (.*?)(?: after validation.*)?", r"a list with \1"),
)


def allowed(detail: Any) -> str:
    """Return the words after "must be" for one of pydantic's findings, or "" if its message does not fit."""
    for pattern, words in ALLOWED:
        if found := re.fullmatch(pattern, detail["msg"]):
            return found.expand(words)
    return ""


def value_error(detail: Any, where: str, remedy: str, kind: type[Kind] = ConfigError) -> Kind:  # type: ignore[assignment]
    """Return the error for one of pydantic's findings about a value."""
    if expected := allowed(detail):
        got = ... if detail["type"] == "missing" else detail["input"]
        return kind(where=where, allowed=expected, got=got, remedy=remedy)
    message = detail["msg"]
    problem = message.removeprefix("Value error, ")
    if problem == message:  # pydantic's own
        problem = f"{message}, got {short(detail['input'])}"
    return kind(problem, where=where, got=detail["input"], remedy=remedy)
