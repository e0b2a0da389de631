"""The embedded dataset of pictograms."""

import csv
import hashlib
from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image

from fedpgp import assets
from fedpgp.data.decode import decode
from fedpgp.data.sources.dataset import SPLITS, ImageDataset, Source

NAME = "pictograms"
STYLES = ("noto", "twemoji", "openmoji", "fluent-emoji", "fluent-emoji-flat", "fxemoji")


def read(splits: Sequence[str] = SPLITS) -> Source:
    """Return the pictograms.

    Raises
    ------
    DataError
        If a file is damaged.
    """
    directory = assets.verified(NAME, [f"{split}.parquet" for split in SPLITS if split not in splits])
    with (directory / "classes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = tuple(row["name"] for row in rows)
    return Source(
        NAME,
        train=_read_split("train", names),
        validation=_read_split("validation", names),
        test=_read_split("test", names) if "test" in splits else None,
        probe=tuple(i for i, row in enumerate(rows) if row["split"] == "unseen"),
        templates=("an icon of a {}.",),
    )


def _read_split(split: str, class_names: tuple[str, ...]) -> ImageDataset:
    import pyarrow.parquet as parquet

    files = [assets.DIRECTORY / NAME / style / f"{split}.parquet" for style in STYLES]
    tables = [parquet.read_table(file, columns=["image", "label"]) for file in files]
    shipped = assets.checksums(NAME)
    content = "".join(digest for path, digest in shipped.items() if path.endswith(f"/{split}.parquet"))
    return ImageDataset(
        name=NAME,
        split=split,
        class_names=class_names,
        domain_names=STYLES,
        labels=np.concatenate([table["label"].to_numpy() for table in tables]).astype(np.int64),
        domains=np.repeat(np.arange(len(STYLES)), list(map(len, tables))),
        image=partial(_decoded, [image["bytes"] for table in tables for image in table["image"].to_pylist()]),
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
    )


def _decoded(files: Sequence[bytes], index: int) -> Image.Image:
    return decode(files[index])
