"""Data sets with a name of their own, in the layout in which they are distributed."""

from collections.abc import Mapping
from pathlib import Path

from fedpgp.data.sources.listing import Layout

LAYOUTS: Mapping[str, Layout] = {}
NAMES: tuple[str, ...] = ()


def find(name: str, root: Path) -> Path:
    """Where a known data set lies below a directory; raises DataError with the places that were looked at."""
    raise NotImplementedError
