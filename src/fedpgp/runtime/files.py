"""Atomic writes of files and directories, and tensors that are read one at a time."""

import errno
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

OWNER_ALONE = 0o700  # mode of a directory that only its owner can read


def exists(text: Path | str) -> bool:
    """Return whether a text is the path of a file or directory. A text that is too long for a path is not an error.

    If the user may not know whether it exists, the function returns True, and a reader reports the missing access.
    """
    try:
        return Path(text).exists()
    except PermissionError:
        return True
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def write(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file under a temporary name in the same directory, then rename it, so that it replaces an older file.

    The next write also replaces a temporary file that an earlier, killed process left.

    Parameters
    ----------
    path
        The file.
    content
        Its bytes.
    mode
        Permissions of the file from its first byte on, reduced by the umask of the process.
    """
    with new_file(path, mode) as file:
        file.write(content)


@contextmanager
def new_file(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Yield an open file that gets its name when everything is written; `mode` is explained in `write`."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        if mode != 0o666:
            partial.unlink(missing_ok=True)  # an older file may have wider permissions
        with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def apply_umask(file: Path) -> None:
    """Give a file the mode of a new file. Some libraries write files that only their owner can read."""
    fresh = file.with_name(f".{file.name}.mode")
    try:
        fresh.touch()
        file.chmod(fresh.stat().st_mode & 0o777)
    finally:
        fresh.unlink(missing_ok=True)


def make_directory(directory: Path, mode: int) -> None:
    """Make a directory and its missing parents, all with the same mode; pathlib applies the mode to the last only."""
    for place in reversed([directory, *directory.parents]):
        if not place.exists():
            place.mkdir(mode=mode, exist_ok=True)


def flush_directory(directory: Path) -> None:
    """Flush the file names of a directory to the disk, if the system can, so that they survive a power failure."""
    if os.name == "posix":
        opened = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON as `write` does."""
    write(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors as the bytes of a safetensors file. Names may share one tensor."""
    # Copies are needed, because the library refuses tensors that share memory or are not contiguous.
    form = torch.contiguous_format
    return save({name: tensor.detach().cpu().clone(memory_format=form) for name, tensor in tensors.items()})


class TensorFile(Mapping[str, Tensor]):
    """Tensors of a safetensors file. Each tensor is read from the disk when it is used.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    SafetensorError
        The file is not a valid safetensors file.
    """

    def __init__(self, path: Path):
        self._opened = safe_open(path, framework="pt")
        self._names = list(self._opened.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._opened.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """Yield a directory that gets its name, and replaces an older directory, when everything is written."""
    temporary = tempfile.TemporaryDirectory(
        prefix=f".{directory.name}-", dir=directory.parent, ignore_cleanup_errors=True
    )
    with temporary as scratch:
        filled, old = Path(scratch, "new"), Path(scratch, "old")
        filled.mkdir()
        yield filled
        if directory.exists():
            os.replace(directory, old)
        try:
            os.replace(filled, directory)
        except BaseException:
            if old.exists():
                os.replace(old, directory)
            raise
