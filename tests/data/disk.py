"""Small directories of images on a disk."""

from pathlib import Path

from PIL import Image

from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import ImageDataset, read_listing
from fedpgp.data.sources.listing import Listing


def save(file: Path, shade: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (shade, 10, 200)).save(file)
    return file


def listing(source: Path | str, **changes: str) -> Listing:
    return read_listing(DataConfig(source=str(source), **changes))


def file_of(dataset: ImageDataset, index: int) -> Path:
    """Return the file of an image of a split."""
    return dataset.image.image.file(dataset.image.indices[index])
