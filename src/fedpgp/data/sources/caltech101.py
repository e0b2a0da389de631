"""The features of Caltech101's images under photoclip, which ship with the package and stand in for the images."""

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
    """Whether a config names the dataset, and its images are not in data.root."""
    return data.source == NAME and data.layout == AUTO and present(NAME, Path(data.root)) is None


def read(data: DataConfig) -> Listing:
    """All images of CoOp's split, with their features and without their pixels.

    Raises DataError for files of the package that are damaged.
    """
    directory = assets.verified(NAME)
    images = coop_images(directory / SPLIT)
    listing = images.listing(NAME, Path(IMAGES), directory / SPLIT, data)
    features = _read_features(directory, len(images.paths))
    files = FilePictures.of(Path(IMAGES), images.paths)
    return replace(listing, pictures=AbsentPictures(files, features.checkpoint), features=features)


def add_split(place: Path) -> None:
    """Check that a directory has all images of CoOp's split, and write the split file there if it has none.

    Raises DataError if images are missing, or if the directory has another split.
    """
    shipped = assets.verified(NAME) / SPLIT
    images, file = coop_images(shipped), place / SPLIT
    try:
        if file.exists() and coop_images(file).paths != images.paths:
            raise DataError(
                f"{file} is not CoOp's split, which fedpgp has: remove the file, and give this command again"
            )
        pictures = FilePictures.of(place / IMAGES, images.paths)
        pictures.fingerprint(np.arange(len(pictures)))
        if not file.exists():
            file.write_bytes(shipped.read_bytes())
    except OSError as error:
        raise DataError(f"{file} cannot be written: {error.strerror or error}; make the directory writable") from error


@dataclass(frozen=True)
class AbsentPictures:
    """Pictures whose features are here, and whose files are not. files: where they lie in the published dataset."""

    files: FilePictures
    checkpoint: str

    def __call__(self, index: int) -> NoReturn:
        raise DataError(
            f"{self.place(index)} of {NAME} is not here, only its features under {self.checkpoint} are: get the images;"
            f" fedpgp data get {NAME} says where"
        )

    def place(self, index: int) -> str:
        return self.files.place(index)

    def fingerprint(self, images: NDArray[np.int64]) -> str:
        """SHA-256 of the features' file and the numbers of the images."""
        content = f"{assets.checksums(NAME)[f'{NAME}/{FEATURES}']} {images.tolist()}"
        return hashlib.sha256(content.encode()).hexdigest()


def _read_features(directory: Path, count: int) -> StoredFeatures:
    """The features of all images in the order of the split file; raises DataError for a file that is damaged."""
    file = directory / FEATURES
    remedy = "install fedpgp again"
    try:
        tensors = load_file(file)
        about = json.loads((directory / ABOUT).read_text(encoding="utf-8"))
        stored = StoredFeatures(tensors["features"], str(about["checkpoint"]), str(about["encoder"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(f"{file} and {ABOUT} cannot be read: {error!r}; {remedy}") from error
    values = stored.values
    if values.dtype != torch.float16 or values.dim() != 2 or len(values) != count:
        raise DataError(
            f"{file}: features must be float16 [{count}, D], got {values.dtype} {list(values.shape)}; {remedy}"
        )
    lengths = values.float().norm(dim=1)
    if not ((lengths - 1).abs() < 1e-2).all():  # also false for what is not finite
        row = int((~((lengths - 1).abs() < 1e-2)).nonzero()[0])
        raise DataError(f"{file}: features must be finite and have unit length, row {row} has {lengths[row]}; {remedy}")
    return stored
