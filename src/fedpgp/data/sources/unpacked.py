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

FORMAT = "1"  # of what is written, which a change of it must not take from the cache
AT_ONCE = 4096  # pictures that are hashed together


@dataclass(frozen=True)
class MappedPictures:
    """Pictures of one size, of which only those that are asked for are read.

    file: a .npy of [n, height, width] grey or [n, height, width, 3] RGB bytes; packed: what a message names as the
    file of a picture.
    """

    file: Path
    packed: str

    def __call__(self, index: int) -> Image.Image:
        return Image.fromarray(np.array(_mapped(self.file)[index])).convert("RGB")

    def place(self, index: int) -> str:
        return f"number {index} in {self.packed}"

    def fingerprint(self, images: NDArray[np.int64]) -> str:
        """SHA-256 of the pixels."""
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
    """The pictures of some files; `pixels` is called only if the cache does not have them.

    files: on whose paths, sizes and times of change it depends what is in the cache; shape: of the pixels, [N, height,
    width] or [N, height, width, 3]. Raises DataError if the cache cannot be written.
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
                f"{directory}: cannot be written: {error.strerror or error}; {files[0]} is unpacked there, so make"
                " room, or set XDG_CACHE_HOME to another directory"
            ) from error
    packed = str(files[0]) if len(files) == 1 else f"{files[0]} and the {len(files) - 1} after it"
    return MappedPictures(unpacked, packed)


def _is_whole(file: Path, shape: tuple[int, ...]) -> bool:
    try:
        pixels = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return bool(pixels.shape == shape and pixels.dtype == np.uint8)


def _write(file: Path, pixels: NDArray[np.uint8]) -> None:
    """Writes them beside their place first, under a name that no other process has."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(suffix=".writing", dir=file.parent, delete=False) as opened:
        try:
            np.save(opened, pixels, allow_pickle=False)
            opened.flush()
            os.fsync(opened.fileno())
            os.replace(opened.name, file)
        finally:
            Path(opened.name).unlink(missing_ok=True)
    _mapped.cache_clear()
