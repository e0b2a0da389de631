"""Features of Caltech101's images under photoclip, which ship with the package and replace missing images."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedpgp import assets
from fedpgp.data.decode import FilePictures
from fedpgp.data.settings import DataConfig
from fedpgp.data.sources.dataset import StoredFeatures
from fedpgp.data.sources.known import KNOWN, present
from fedpgp.data.sources.known_lists import coop_images
from fedpgp.data.sources.layouts import AUTO
from fedpgp.data.sources.listing import Listing
from fedpgp.errors import DataError

NAME = "caltech101"
FEATURES, ABOUT = "features.safetensors", "features.json"
SPLIT = KNOWN[NAME].list
IMAGES = KNOWN[NAME].images


def stands_in(data: DataConfig) -> bool:
    """Return whether a config selects the dataset and its images are not in data.root."""
    return data.source == NAME and data.layout == AUTO and present(NAME, Path(data.root)) is None


def read(data: DataConfig) -> Listing:
    """Return all images of CoOp's split, with their features and without their pixels.

    Raises
    ------
    DataError
        If a file of the package is damaged.
    """
    directory = assets.verified(NAME)
    images = coop_images(directory / SPLIT)
    listing = images.listing(NAME, Path(IMAGES), directory / SPLIT, data)
    features = _read_features(directory, len(images.paths))
    files = FilePictures.of(Path(IMAGES), images.paths)
    return replace(listing, pictures=AbsentPictures(files, features.checkpoint), features=features)


def add_split(place: Path) -> None:
    """Check that a directory has all images of CoOp's split, and write the split file there if it has none.

    Raises
    ------
    DataError
        If images are missing, or if the directory has another split.
    """
    shipped = assets.verified(NAME) / SPLIT
    images, file = coop_images(shipped), place / SPLIT
    try:
        if file.exists() and coop_images(file).paths != images.paths:
            raise DataError(
                "this is not CoOp's split file, which fedpgp contains",
                where=str(file),
                remedy="Remove the file, and run this command again",
            )
        pictures = FilePictures.of(place / IMAGES, images.paths)
        pictures.fingerprint(np.arange(len(pictures)))
        if not file.exists():
            file.write_bytes(shipped.read_bytes())
    except OSError as error:
        raise DataError(
            f"cannot be written: {error.strerror or error}", where=str(file), remedy="Make the directory writable"
        ) from error


@dataclass(frozen=True)
class AbsentPictures:
    """Pictures whose features are available, but whose files are not.

    Attributes
    ----------
    files
        The places of the files in the published dataset.
    checkpoint
        The name of the checkpoint of the features.
    """

    files: FilePictures
    checkpoint: str

    def __call__(self, index: int) -> NoReturn:
        raise DataError(
            f"the image is not available, only its features under {self.checkpoint}",
            where=f"{self.place(index)} of {NAME}",
            remedy=f"Run `fedpgp data get {NAME}` to see where to get the images",
        )

    def place(self, index: int) -> str:
        return self.files.place(index)

    def fingerprint(self, images: NDArray[np.int64]) -> str:
        """Return the SHA-256 of the features' file and the numbers of the images."""
        content = f"{assets.checksums(NAME)[f'{NAME}/{FEATURES}']} {images.tolist()}"
        return hashlib.sha256(content.encode()).hexdigest()


def _read_features(directory: Path, count: int) -> StoredFeatures:
    """Return the features of all images in the order of the split file; raise DataError if they are damaged."""
    file = directory / FEATURES
    remedy = "Install fedpgp again"
    try:
        tensors = load_file(file)
        about = json.loads((directory / ABOUT).read_text(encoding="utf-8"))
        stored = StoredFeatures(tensors["features"], str(about["checkpoint"]), str(about["encoder"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"this file or {ABOUT} cannot be read: {error!r}", where=str(file), remedy=remedy) from error
    values = stored.values
    if values.dtype != torch.float16 or values.dim() != 2 or len(values) != count:
        raise DataError(
            where=f"{file}: features",
            allowed=f"float16 [{count}, D]",
            got=f"{values.dtype} {list(values.shape)}",
            remedy=remedy,
        )
    lengths = values.float().norm(dim=1)
    if not ((lengths - 1).abs() < 1e-2).all():  # also false for values that are not finite
        row = int((~((lengths - 1).abs() < 1e-2)).nonzero()[0])
        raise DataError(
            where=f"{file}: the length of row {row}", allowed="1 and finite", got=float(lengths[row]), remedy=remedy
        )
    return stored
