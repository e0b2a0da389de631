"""Decode image files of any kind into RGB pictures, in the same way for every reader."""

import hashlib
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fedpgp.data.read_image import PictureError, read_image
from fedpgp.errors import DataError, first_line, shown

SUFFIXES = frozenset(
    f".{end}"
    for end in "jpg jpeg jpe jfif png webp gif bmp dib tif tiff ppm pgm pbm pnm avif jp2 tga ico heic heif hif".split()  # noqa: SIM905
)
AT_ONCE = 1 << 16  # number of paths that are Python objects at the same time


@contextmanager
def unheard() -> Iterator[None]:
    """Silence Pillow's warnings.

    If several threads decode, wrap all of them in this context: the warning filters belong to the process, and one
    thread may restore filters under which the others print warnings.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def decode(image: "Path | str | bytes | Image.Image | np.ndarray[Any, Any]") -> Image.Image:
    """Decode a file, its bytes, a Pillow image or an array into a picture in RGB, as `read_image` does.

    Pillow's warnings are ignored, for example about a picture with more pixels than its limit, but less than twice
    as many.

    Raises
    ------
    DataError
        If `read_image` raises PictureError. Other exceptions of `read_image` are not changed.
    """
    with unheard():
        try:
            return read_image(image)
        except PictureError as error:
            raise DataError(error.problem, remedy=error.remedy) from error


def reason(error: Exception) -> str:
    """Return the reason why a picture could not be decoded, in one line."""
    if isinstance(error, UnidentifiedImageError):  # its message contains the address of an object
        return "it has no supported image format"
    if isinstance(error, DataError):
        return f"{error.problem} ({error.remedy[:1].lower()}{error.remedy[1:]})"
    return first_line(error)


@dataclass(frozen=True)
class FilePictures:
    """Image files below a directory.

    Attributes
    ----------
    root
        The directory.
    paths
        A pyarrow array of n relative paths as bytes, which takes little more memory than the bytes.
    listed
        The file that lists the paths, if there is one.
    in_rows
        Whether `listed` is a table with one row for each image.
    follow_links
        Whether links out of the directory are followed.
    """

    root: Path
    paths: Any
    listed: str = ""
    in_rows: bool = False
    follow_links: bool = False

    @staticmethod
    def of(root: Path, paths: list[str], listed: str = "", follow_links: bool = False) -> "FilePictures":
        """Return the files of paths as the operating system gives them, even if they are not valid text."""
        import pyarrow

        encoded = pyarrow.array([os.fsencode(path) for path in paths], pyarrow.large_binary())
        return FilePictures(root, encoded, listed, follow_links=follow_links)

    def __len__(self) -> int:
        return len(self.paths)

    def __call__(self, index: int) -> Image.Image:
        return decode(self.file(index))

    def file(self, index: int) -> Path:
        return self.root / os.fsdecode(self.paths[index].as_py())

    def name(self, index: int) -> str:
        """Return the file as text."""
        return shown(self.file(index))

    def place(self, index: int) -> str:
        """Return the file, and the row of the table that lists it."""
        file = self.name(index)
        return f"{file}, row {index + 1} of {self.listed}" if self.in_rows else file

    def fingerprint(self, images: NDArray[np.int64]) -> str:
        """Return the SHA-256 of relative path, size and modification time of these files; no file is read.

        Raises
        ------
        DataError
            If an image is missing or is not a file, or if a link that is not followed leads out of the directory.
        """
        found = hashlib.sha256()
        missing: list[int] = []
        root, real = os.fsencode(self.root), os.path.realpath(os.fsencode(self.root))
        folders: set[bytes] = set()  # folders that are known to be inside of the root
        for index, path in self._among(images):
            full = os.path.join(root, path)  # noqa: PTH118 - creating a Path takes longer than the system call
            try:
                state = os.lstat(full)
                folder = path.rpartition(b"/")[0]
                if stat.S_ISLNK(state.st_mode) or folder not in folders:
                    if not self.follow_links:
                        check_inside(self.place(index), os.path.realpath(full), real)
                    folders.add(folder)
                    state = os.stat(full)  # noqa: PTH116
            except (FileNotFoundError, NotADirectoryError):
                missing.append(index)
                continue
            except OSError as error:
                raise DataError(
                    f"cannot be read: {error.strerror}", where=self.place(index), remedy="Make the file readable"
                ) from error
            if not stat.S_ISREG(state.st_mode):
                raise DataError("this is not a file", where=self.place(index), remedy="List only image files")
            found.update(b"%s\0%d %d\n" % (path, state.st_size, state.st_mtime_ns))
        if missing:
            remedy = "Add these files" + (f", or remove their entries from {self.listed}" if self.listed else "")
            if b"\\" in self.paths[missing[0]].as_py():
                remedy = "Write / instead of \\ in the paths"
            text = f"{len(missing)} of {len(images)} image files are missing, starting with this one"
            raise DataError(text, where=self.place(missing[0]), remedy=remedy)
        return found.hexdigest()

    def _among(self, images: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        for start in range(0, len(images), AT_ONCE):
            some = images[start : start + AT_ONCE]
            yield from zip(some.tolist(), self.paths.take(some).to_pylist(), strict=True)


def check_inside(place: str, target: bytes, root: bytes) -> None:
    """Raise DataError if a link leads out of the root; `target` and `root` are resolved paths."""
    if os.path.commonpath([root, target]) != root:
        raise DataError(
            f"a link leads out of {shown(os.fsdecode(root))}, to {shown(os.fsdecode(target))}",
            where=place,
            remedy="Copy the target into that directory, or follow such links with --set data.follow_links=true",
        )
