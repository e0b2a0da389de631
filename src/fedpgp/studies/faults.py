"""Errors of several cells or fields, collected so that one message reports all of them."""

from collections.abc import Sequence

from fedpgp.errors import ConfigError, FedPGPError


def located(error: FedPGPError, place: str) -> ConfigError:
    """Return a ConfigError with the fields of another error and `place` in front of its `where`."""
    where = f"{place}: {error.where}" if error.where else place
    return ConfigError(error.problem, where=where, allowed=error.allowed, got=error.got, remedy=error.remedy)


def combined(errors: Sequence[ConfigError]) -> ConfigError:
    """Return one ConfigError with a line for each error; a single error is returned unchanged."""
    if len(errors) == 1:
        return errors[0]
    remedy = errors[-1].remedy
    lines = "\n".join(map(str, errors))
    return ConfigError(lines.removesuffix(f". {remedy}.") if remedy else lines, remedy=remedy)
