"""Anybody's images: folders, tables, Hugging Face data sets, tars."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fedpgp.data.sources import folder, hugging_face, table
from fedpgp.data.sources.listing import Layout, Listing

if TYPE_CHECKING:
    from fedpgp.data.settings import DataConfig

ABOUT = {
    "class-folders": "CLASS/…: a folder of images for each class",
    "split-class-folders": "SPLIT/CLASS/…: the same in train, validation (val) and test",
    "domain-class-folders": "DOMAIN/CLASS/…: the same classes in a folder for each domain",
    "split-domain-class-folders": "SPLIT/DOMAIN/CLASS/…: domains in train, validation and test",
    "domain-split-class-folders": "DOMAIN/SPLIT/CLASS/…: train, validation and test in each domain",
}


def _recognises(path: Path, layout: str) -> bool:
    return folder.recognised(path) == layout


def _read(path: Path, data: "DataConfig", layout: str) -> Listing:
    return folder.read(path, data, layout)


LAYOUTS: Mapping[str, Layout] = {
    "table": Layout(
        "a CSV, TSV or Parquet file with the columns path (or image) and label, perhaps domain, client and split",
        lambda path: path.is_file() and path.suffix.lower() in table.SUFFIXES,
        table.read,
    ),
    "hugging-face": Layout(
        "a directory that datasets.save_to_disk wrote, or of Parquet files as on the hub",
        hugging_face.is_saved,
        hugging_face.read_saved,
    ),
    "webdataset": Layout(
        "tars with an image and a cls, txt or json file of the same name for each example",
        hugging_face.is_tars,
        hugging_face.read_tars,
    ),
    **{
        name: Layout(about, partial(_recognises, layout=name), partial(_read, layout=name))
        for name, about in ABOUT.items()
    },
}
