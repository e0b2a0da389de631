"""Pixels of datasets that are packed into a few files: written once to the user's cache, and mapped from there."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import platformdirs
from numpy.typing import NDArray
from PIL import Image

from fedpgp.errors import DataError
from fedpgp.runtime.files import apply_umask

FORMAT = "1"  # version of the cached files; files of another version are not used
AT_ONCE = 4096  # number of pictures that are hashed together


@dataclass(frozen=True)
class MappedPictures:
    """Pictures of one size, which are read on demand.

    Attributes
    ----------
    file
        A .npy file of [n, height, width] grey or [n, height, width, 3] RGB bytes.
    packed
        The file of a picture, for messages.
    """

    file: Path
    packed: str

    def __call__(self, index: int) -> Image.Image:
        return Image.fromarray(np.array(_mapped(self.file)[index])).convert("RGB")

    def place(self, index: int) -> str:
        return f"number {index} in {self.packed}"

    def fingerprint(self, images: NDArray[np.int64]) -> str:
        """Return the SHA-256 of the pixels."""
        pixels = _mapped(self.file)
        digest = hashlib.sha256(str((len(images), *pixels.shape[1:])).encode())
        for start in range(0, len(images), AT_ONCE):
            digest.update(np.ascontiguousarray(pixels[images[start : start + AT_ONCE]]).data)
        return digest.hexdigest()


@lru_cache(maxsize=8)
def _mapped(file: Path) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = np.load(file, mmap_mode="r", allow_pickle=False)
    return pixels


def unpack(files: Sequence[Path], shape: tuple[int, ...], pixels: Callable[[], NDArray[np.uint8]]) -> MappedPictures:
    """Return the pictures of some files, from the cache or unpacked.

    Parameters
    ----------
    files
        The packed files. A change of their paths, sizes or modification times makes a new entry in the cache.
    shape
        The shape of the pixels, [N, height, width] or [N, height, width, 3].
    pixels
        A function that returns the pixels. It is called only if the cache does not have them.

    Raises
    ------
    DataError
        If the cache cannot be written.
    """
    directory = platformdirs.user_cache_path("fedpgp") / "unpacked"
    key = hashlib.sha256(f"{FORMAT} {shape}".encode())
    for file in files:
        state = file.stat()
        key.update(f"{file.resolve()}\0{state.st_size} {state.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    unpacked = directory / f"{key.hexdigest()[:32]}.npy"
    if not _is_whole(unpacked, shape):
        content = pixels()
        try:
            _write(unpacked, content)
        except OSError as error:
            raise DataError(
                f"cannot be written: {error.strerror or error}, but {files[0]} must be unpacked there",
                where=str(directory),
                remedy="Free disk space, or set XDG_CACHE_HOME to another directory",
            ) from error
    packed = str(files[0]) if len(files) == 1 else f"{files[0]} and the {len(files) - 1} files after it"
    return MappedPictures(unpacked, packed)


def _is_whole(file: Path, shape: tuple[int, ...]) -> bool:
    try:
        pixels = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return bool(pixels.shape == shape and pixels.dtype == np.uint8)


def _write(file: Path, pixels: NDArray[np.uint8]) -> None:
    """Write the pixels to a temporary file next to their place, with a name that no other process uses, and move it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(suffix=".writing", dir=file.parent, delete=False) as opened:
        try:
            np.save(opened, pixels, allow_pickle=False)
            opened.flush()
            os.fsync(opened.fileno())
            apply_umask(Path(opened.name))
            os.replace(opened.name, file)
        finally:
            Path(opened.name).unlink(missing_ok=True)
    _mapped.cache_clear()
