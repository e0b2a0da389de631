"""Read files of a run directory, which others may have written: within limits, and checked by a model."""

import json
import stat
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError

from fedpgp.errors import OutputError, first_line
from fedpgp.runtime import limits
from fedpgp.runtime.validation import value_error

SHOWN = 80  # characters of a name in a message
DAMAGED = "The file is damaged: restore it, or run it again"


def check_file(file: Path, most: int, remedy: str = DAMAGED) -> None:
    """Check a file before it is opened, because opening a pipe can wait forever.

    Raises
    ------
    FileNotFoundError
        The file does not exist.
    OutputError
        It is not a regular file, cannot be read, or has more than `most` bytes.
    """
    try:
        about = file.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(error.errno, error.strerror, str(file)) from error
    except OSError as error:
        raise OutputError(f"it cannot be read: {error.strerror}", where=f"{file}", remedy=remedy) from error
    if not stat.S_ISREG(about.st_mode):
        raise OutputError(where=f"{file}", allowed="a regular file", remedy=remedy)
    if about.st_size > most:
        raise OutputError(
            where=f"the size of {file}", allowed=f"at most {most:,} bytes", got=about.st_size, remedy=remedy
        )


def read_text(file: Path, most: int = limits.JSON, remedy: str = DAMAGED) -> str:
    """Return the text of a file.

    Raises
    ------
    FileNotFoundError
        The file does not exist.
    OutputError
        It is not a regular file, cannot be read, has more than `most` bytes, or is not UTF-8.
    """
    try:
        check_file(file, most, remedy)
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot be read ({first_line(error)})", where=f"{file}", remedy=remedy) from error


def parse(text: str, model: type[BaseModel], where: str, remedy: str = DAMAGED) -> Any:
    """Return JSON as it is, without any conversion, after checking it.

    Parameters
    ----------
    text
        The JSON.
    model
        Checks the content.
    where
        The file, for an error.
    remedy
        What to do, for an error.

    Raises
    ------
    OutputError
        The text is not JSON, contains a number that is not finite, is nested too deeply, or does not fit the model.
    """
    try:
        content = json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise OutputError("it is nested too deeply", where=where, remedy=remedy) from error
    except ValueError as error:
        raise OutputError(f"it is not valid JSON ({first_line(error)})", where=where, remedy=remedy) from error
    check(content, model, where, remedy)
    return content


def check(content: object, model: type[BaseModel], where: str, remedy: str = DAMAGED) -> None:
    """Check the content of a file; see `parse` for the arguments and errors."""
    try:
        model.model_validate(content)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_context=False)[0]
        place = f"{where}: {field(detail['loc'])}" if detail["loc"] else where
        raise value_error(detail, place, remedy, OutputError) from error


def field(place: tuple[int | str, ...]) -> str:
    """Return the name of a field, such as task.base_names[3]."""
    names = (step if isinstance(step, int) or step.isprintable() else ascii(step) for step in place)
    steps = [f"[{name}]" if isinstance(name, int) else f".{name[:SHOWN]}" for name in names]
    return "".join(steps).removeprefix(".")


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a finite number")
