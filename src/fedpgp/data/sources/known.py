"""Datasets with a name of their own: what known.toml says of them."""

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
    """What is known of a dataset beside its files; the head of known.toml describes the fields."""

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
    """Where a known dataset lies below a directory; None if it lies at none of its places."""
    return next((root / place for place in KNOWN[name].places if (root / place).exists()), None)


def find(name: str, root: Path) -> Path:
    """Where a known dataset lies below a directory; raises DataError with the places that were looked at."""
    path = present(name, root)
    if path is None:
        known = KNOWN[name]
        places = ", ".join(str(root / place) for place in known.places)
        raise DataError(
            f"data.source {name} is not in data.root: looked at {places}; get it from {known.page} and put it at the"
            " first of these, or set data.root"
        )
    return path
