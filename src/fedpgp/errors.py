"""Every error that a user can cause or cure. The command line turns each into one line and exit code 2."""

import difflib
import os
from collections.abc import Iterable


class FedPGPError(Exception):
    """Base of all errors that fedpgp raises on purpose. The message names the place, the value and the remedy."""


class ConfigError(FedPGPError):
    """A configuration that cannot be run."""


class DataError(FedPGPError):
    """Data, or a task on it, that cannot be built."""


class NamesError(DataError):
    """Class names that are not those of a federation."""


class CheckpointError(FedPGPError):
    """A CLIP checkpoint that cannot be read or does not fit the task."""


class OutputError(FedPGPError):
    """Results that cannot be written or read."""


class InUseError(OutputError):
    """A run that another process works on."""


class TrainingError(FedPGPError):
    """Local training that cannot go on."""


class TooFewError(TrainingError):
    """Updates that are too few for what is to be made of them; another round may have more."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The remedy for an unknown `word`: the nearest of the `known` ones, and all of them."""
    names = list(known)
    begun = sorted((name for name in names if word and name.startswith(word.lower())), key=len)
    close = begun or difflib.get_close_matches(word.lower(), names, n=1)
    meant = f"did you mean {close[0]!r}? " if close else ""
    return f"{meant}known: {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def shown(path: "os.PathLike[str] | str") -> str:
    """A path as text that can be printed and written: bytes that are no UTF-8 are escaped, as in caf\\xe9.png."""
    text = os.fspath(path)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a character, which no file system gives
        return text.encode("utf-8", "backslashreplace").decode()
