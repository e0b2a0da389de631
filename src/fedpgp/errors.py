"""Errors that a user can cause or fix. The command line turns each one into one line and exit code 2."""

import difflib
import os
import re
from collections.abc import Iterable, Sequence

LONGEST = 200  # characters of a value in a message
PASTED = re.compile(r"(^|\s)(--\S+|\S*[=/]\S*)$")  # an option, a setting or a path at the end of a remedy


class FedPGPError(Exception):
    """Base class of all errors that fedpgp raises on purpose.

    The sentence is built here and nowhere else: "WHERE must be ALLOWED, got GOT. REMEDY." or, if `problem` is given,
    "WHERE: PROBLEM. REMEDY."

    Parameters
    ----------
    problem
        What is wrong: a clause without a final period. Leave it out if `allowed` and `got` say it.
    where
        The place: a file, `FILE:LINE`, `FILE, row 3`, a config field, an argument or an option.
    allowed
        What would be right: the words after "must be".
    got
        The value that was found; `...` if there is none.
    remedy
        What to do: an imperative without a final period. A whole command is in backticks and can be pasted. The
        sentence gets no period after an option, a setting or a path, so that these can be pasted, too.
    """

    finding: str
    """The sentence without the remedy."""

    def __init__(self, problem: str = "", *, where: str = "", allowed: str = "", got: object = ..., remedy: str = ""):
        self.problem, self.where, self.allowed, self.got, self.remedy = problem, where, allowed, got, remedy
        if problem:
            self.finding = f"{where}: {problem}" if where else problem
        else:
            self.finding = f"{where} must be {allowed}" + ("" if got is ... else f", got {short(got)}")
        end = "" if not remedy or PASTED.search(remedy) else "."
        super().__init__(f"{self.finding}. {remedy}{end}" if remedy else self.finding)


class ConfigError(FedPGPError):
    """A configuration that cannot be used."""


class DataError(FedPGPError):
    """Data that cannot be read, or a task that cannot be built from it."""


class NamesError(DataError):
    """Class names that differ from the class names of the federation."""


class CheckpointError(FedPGPError):
    """A CLIP checkpoint that cannot be read or does not fit the task."""


class OutputError(FedPGPError):
    """Results that cannot be written or read."""


class InUseError(OutputError):
    """A run that another process works on."""


class TrainingError(FedPGPError):
    """Local training that cannot continue."""


class TooFewError(TrainingError):
    """A round with too few updates for the aggregator; another round may have more."""


def located(error: FedPGPError, place: str) -> ConfigError:
    """Return a ConfigError with the fields of another error and `place` in front of its `where`."""
    where = f"{place}: {error.where}" if error.where else place
    return ConfigError(error.problem, where=where, allowed=error.allowed, got=error.got, remedy=error.remedy)


def combined(errors: Sequence[ConfigError]) -> ConfigError:
    """Return one ConfigError with a line for each error; a single error is returned unchanged."""
    *others, last = errors
    if not others:
        return last
    return ConfigError("\n".join([*map(str, others), last.finding]), remedy=last.remedy)


def short(value: object) -> str:
    """Return the first characters of the representation of a value."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # it is nested too deeply, or contains a number with too many digits
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the remedy for an unknown word: the most similar known word, and all known words."""
    names = list(known)
    begun = sorted((name for name in names if word and name.startswith(word.lower())), key=len)
    close = begun or difflib.get_close_matches(word.lower(), names, n=1)
    meant = f"Did you mean {close[0]!r}? " if close else ""
    return f"{meant}Known: {', '.join(names)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's type if it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def shown(path: "os.PathLike[str] | str") -> str:
    """Return a path as text. Bytes that are not valid UTF-8 are escaped, as in caf\\xe9.png."""
    text = os.fspath(path)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair, which file systems do not produce
        return text.encode("utf-8", "backslashreplace").decode()
