"""How a section of the config is checked, and how arguments of functions are."""

from collections.abc import Iterable
from numbers import Integral

from pydantic import ConfigDict

from fedpgp.errors import ConfigError

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def whole_number(value: object, name: str, least: int, remedy: str = "") -> int:
    """Return a whole number of at least `least`, of Python or NumPy; raise ConfigError for anything else.

    True and 1.0 are refused, too: what was meant by them is not known.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name} must be a whole number, got {value!r}{remedy}")
    if value < least:
        raise ConfigError(f"{name} must be {least} or more, got {value}{remedy}")
    return int(value)


def texts(values: Iterable[str], name: str) -> tuple[str, ...]:
    """Return several texts; raise ConfigError for a single one, whose letters would be taken, or something else."""
    if isinstance(values, str | bytes):
        raise ConfigError(f"{name} must be a list of texts, got the text {values!r}: [{values!r}] is a list of one")
    if not isinstance(values, Iterable):
        raise ConfigError(f"{name} must be a list of texts, got {values!r}")
    listed = tuple(values)
    for value in listed:
        if not isinstance(value, str):
            raise ConfigError(f"{name} must be a list of texts, got {value!r} among them")
    return listed


def flag(value: object, name: str) -> bool:
    """Return True or False; raise ConfigError for anything else, such as the text "no", which is true in Python."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, got {value!r}")
    return value
