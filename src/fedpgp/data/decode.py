"""Image files of any kind -> RGB pictures, the same way for every reader."""

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
AT_ONCE = 1 << 16  # paths that are Python objects at a time


@contextmanager
def unheard() -> Iterator[None]:
    """Without Pillow's warnings.

    Threads that decode need it around all of them, too: the filters are the process's, and one thread may put back
    those under which others are heard.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def decode(image: "Path | str | bytes | Image.Image | np.ndarray[Any, Any]") -> Image.Image:
    """A file, its bytes, a Pillow image or an array -> the picture in RGB, as `read_image` reads it.

    Pillow's warnings, among them that on a picture between once and twice its limit of pixels, are no faults and are
    not heard. Raises DataError where `read_image` raises PictureError, and otherwise what that raises.
    """
    with unheard():
        try:
            return read_image(image)
        except PictureError as error:
            raise DataError(str(error)) from error


def reason(error: Exception) -> str:
    """Why a picture could not be decoded, in a line."""
    if isinstance(error, UnidentifiedImageError):  # its message has the address of an object
        return "no image format that is read"
    return first_line(error)


@dataclass(frozen=True)
class FilePictures:
    """Files below a directory. paths: pyarrow array of n relative paths as bytes, which takes little more than these.

    listed: the file that names them, if one does; in_rows: it is a table with a row for each; follow_links: also out of
    the directory.
    """

    root: Path
    paths: Any
    listed: str = ""
    in_rows: bool = False
    follow_links: bool = False

    @staticmethod
    def of(root: Path, paths: list[str], listed: str = "", follow_links: bool = False) -> "FilePictures":
        """Of paths as the operating system gives them, also where they are no valid text."""
        import pyarrow

        encoded = pyarrow.array([os.fsencode(path) for path in paths], pyarrow.large_binary())
        return FilePictures(root, encoded, listed, follow_links=follow_links)

    def __len__(self) -> int:
        return len(self.paths)

    def __call__(self, index: int) -> Image.Image:
        return decode(self.file(index))

    def file(self, index: int) -> Path:
        return self.root / os.fsdecode(self.paths[index].as_py())

    def place(self, index: int) -> str:
        """The file, and the row of the table that names it."""
        file = shown(self.file(index))
        return f"{file}, row {index + 1} of {self.listed}" if self.in_rows else file

    def fingerprint(self, images: NDArray[np.int64]) -> str:
        """SHA-256 of relative path, size and time of change of these files, of which none is read.

        Raises DataError for those that are missing, are no files, or lie behind a link out of the directory that is not
        followed.
        """
        found = hashlib.sha256()
        missing: list[int] = []
        root, real = os.fsencode(self.root), os.path.realpath(os.fsencode(self.root))
        folders: set[bytes] = set()  # that are known to lie inside
        for index, path in self._among(images):
            full = os.path.join(root, path)  # noqa: PTH118 - a Path takes longer than the file system
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
                raise DataError(f"{self.place(index)} cannot be read: {error.strerror}; make it readable") from error
            if not stat.S_ISREG(state.st_mode):
                raise DataError(f"{self.place(index)} is no file: name image files alone")
            found.update(b"%s\0%d %d\n" % (path, state.st_size, state.st_mtime_ns))
        if missing:
            remedy = "put them there, or take them out" + (f" of {self.listed}" if self.listed else "")
            if b"\\" in self.paths[missing[0]].as_py():
                remedy = "write / in the place of \\ in the paths"
            first = self.place(missing[0])
            raise DataError(f"{len(missing)} of {len(images)} image files are missing, the first is {first}: {remedy}")
        return found.hexdigest()

    def _among(self, images: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        for start in range(0, len(images), AT_ONCE):
            some = images[start : start + AT_ONCE]
            yield from zip(some.tolist(), self.paths.take(some).to_pylist(), strict=True)


def check_inside(place: str, target: bytes, root: bytes) -> None:
    """Raises DataError for a link at a place whose target leads out of the root; both without any link."""
    if os.path.commonpath([root, target]) != root:
        away, to = shown(os.fsdecode(root)), shown(os.fsdecode(target))
        raise DataError(
            f"{place} leads out of {away}, to {to}: copy it there, or follow such links with --set"
            " data.follow_links=true"
        )
