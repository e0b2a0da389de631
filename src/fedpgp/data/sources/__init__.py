"""Where images come from -> `Source`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedpgp.data.sources import hugging_face, known, pictograms, plain
from fedpgp.data.sources.dataset import SPLITS, ImageDataset, Source
from fedpgp.data.sources.listing import Layout, Listing, to_source, to_target
from fedpgp.data.sources.unrecognised import why_none
from fedpgp.errors import DataError, nearest

if TYPE_CHECKING:
    from fedpgp.data.settings import DataConfig

__all__ = ["LAYOUTS", "SPLITS", "ImageDataset", "Source", "load_source", "load_target"]

LAYOUTS: Mapping[str, Layout] = {**known.LAYOUTS, **plain.LAYOUTS}  # asked in this order
AUTO = "auto"


def load_source(data: "DataConfig", splits: Sequence[str] = SPLITS) -> Source:
    """The data set that a config names; raises DataError for one that is unknown, incomplete or damaged.

    splits: those to read; the others may be missing, and of them only "test" may be left out.
    """
    if data.source == pictograms.NAME:
        return pictograms.read(splits)
    return to_source(read_listing(data), data, splits)


def load_target(data: "DataConfig") -> ImageDataset:
    """What is tested of a data set that nobody trains on: its test split, or all of it where it has no splits."""
    if data.source == pictograms.NAME:
        embedded = pictograms.read().test
        assert embedded is not None, "the test split was read"
        return embedded
    return to_target(read_listing(data))


def read_listing(data: "DataConfig") -> Listing:
    """All images of a source that is not embedded, before they are divided into splits; errors as in `load_source`."""
    if data.source.startswith(hugging_face.HUB):
        return hugging_face.read_hub(data.source, data)
    path, layout = located(data)
    return LAYOUTS[layout].read(path, data)


def located(data: "DataConfig") -> tuple[Path, str]:
    """Where a source lies on the disk, and the name of its layout; errors as in `load_source`."""
    if data.source in known.NAMES:
        wanted = known.layout(data.source) if data.layout == AUTO else data.layout
        path = known.find(data.source, Path(data.root))
        return path, layout_of(path, wanted)
    path = Path(data.source)
    if not path.exists():
        names = [pictograms.NAME, *known.NAMES]
        raise DataError(
            f"data.source must be a directory or file that exists, or a known name, got {data.source!r};"
            f" {nearest(data.source, names)}"
        )
    return path, layout_of(path, data.layout)


def layout_of(path: Path, wanted: str = AUTO) -> str:
    """The name of the layout that is wanted, or that recognises a path; raises DataError where none does."""
    if wanted != AUTO:
        if wanted not in LAYOUTS:
            raise DataError(f"data.layout must be a known one, got {wanted!r}; {nearest(wanted, [AUTO, *LAYOUTS])}")
        return wanted
    found = next((name for name, layout in LAYOUTS.items() if layout.recognises(path)), None)
    if found is None:
        raise DataError(why_none(path))
    return found
