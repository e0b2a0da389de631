"""Find and read files of a checkpoint that is not trusted: which files it may have, and JSON without surprises."""

import json
import math
import stat
from pathlib import Path
from typing import Any

from fedpgp.backbone import limits
from fedpgp.errors import CheckpointError, first_line

AGAIN = "Download it again, or choose another checkpoint"


def inside(file: Path) -> Path:
    """Return a file of a checkpoint's directory after checking that it belongs to it.

    Links may lead only within the directory, or, in the cache of the Hugging Face hub, to the cache's own files.

    Parameters
    ----------
    file
        The file.

    Raises
    ------
    CheckpointError
        If the file is not a regular file, or is elsewhere.
    """
    directory, target = file.parent.resolve(), file.resolve()
    cached = (place.parent / "blobs" for place in directory.parents if place.name == "snapshots")
    homes = [directory, *cached]
    if not any(home in target.parents for home in homes):
        raise CheckpointError(
            f"it is a link to {target}, outside of the checkpoint",
            where=str(file),
            remedy="Copy the file into the directory of the checkpoint if you trust it",
        )
    if not stat.S_ISREG(target.stat().st_mode):
        raise CheckpointError(where=str(file), allowed="a regular file", remedy=AGAIN)
    return file


def content_of(file: Path, most: int) -> bytes:
    """Return the bytes of a file of a checkpoint.

    Raises
    ------
    CheckpointError
        If the file does not belong to the checkpoint or has more than `most` bytes.
    """
    with inside(file).open("rb") as opened:
        content = opened.read(most + 1)
    if len(content) > most:
        raise CheckpointError(where=f"the size of {file}", allowed=f"at most {most:,} bytes", got="more", remedy=AGAIN)
    return content


def read_json(file: Path, most: int = limits.CONFIG) -> dict[str, Any]:
    """Return the object in a file of JSON.

    Raises
    ------
    CheckpointError
        If it is too large, is not an object of JSON, repeats a key, or contains a number that is not finite.
    """
    try:
        return parse(content_of(file, most))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"cannot be read ({first_line(error)})", where=str(file), remedy=AGAIN) from error


def parse(content: bytes) -> dict[str, Any]:
    """Return an object of JSON.

    Raises
    ------
    ValueError
        If it is not an object of JSON, repeats a key, contains a number that is not finite, or is nested too deeply.
    """
    try:
        value = json.loads(content.decode(), object_pairs_hook=_object, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it must be an object, not a {type(value).__name__}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):  # libraries do not agree about which value counts
        raise ValueError("an object has the same key twice")
    return content


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it contains the number {text[: limits.SHOWN]}, which is not finite")
    return number
