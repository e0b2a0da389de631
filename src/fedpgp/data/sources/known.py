"""Known datasets, as described in known.toml."""

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from fedpgp.errors import DataError

TEMPLATE = "a photo of a {}."


@dataclass(frozen=True, config={"extra": "forbid"})
class Known:
    """A known dataset; the head of known.toml describes the fields."""

    places: tuple[str, ...]
    layout: str
    page: str
    mirror: str = ""
    list: str = ""
    images: str = "."
    template: str = TEMPLATE
    classes: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()


KNOWN: Mapping[str, Known] = TypeAdapter(dict[str, Known]).validate_python(
    tomllib.loads((resources.files(__package__) / "known.toml").read_text(encoding="utf-8"))
)
NAMES = tuple(KNOWN)


def present(name: str, root: Path) -> Path | None:
    """Return the path of a known dataset below a directory, or None if it is at none of its places."""
    return next((root / place for place in KNOWN[name].places if (root / place).exists()), None)


def find(name: str, root: Path) -> Path:
    """Return the path of a known dataset below a directory.

    Raises
    ------
    DataError
        If it is at none of its places, which the error lists.
    """
    path = present(name, root)
    if path is None:
        known = KNOWN[name]
        places = ", ".join(str(root / place) for place in known.places)
        raise DataError(
            f"{name} is not in data.root; looked for {places}",
            where="data.source",
            remedy=f"Get it from {known.page} and put it at the first of these places, or set data.root",
        )
    return path
