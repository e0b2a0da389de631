"""Files that are written whole or not at all, and tensors that are read one at a time."""

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

OWNER_ALONE = 0o700  # mode of a directory into which nobody else looks


def exists(text: Path | str) -> bool:
    """Whether a text is the path of a file or directory; a text that is too long for one is not, and no error."""
    try:
        return Path(text).exists()
    except OSError as error:  # pathlib passes on what has nothing to do with whether it is there
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def write(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Writes a file beside its place, then gives it its name, in which something may have been before.

    What a kill leaves of the first is written over by the next try. mode: who may read and write it, from its first
    byte on, less what the process' umask takes.
    """
    with new_file(path, mode) as file:
        file.write(content)


@contextmanager
def new_file(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file to fill bit by bit, which takes its name only when all of it is written; mode: as in `write`."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        if mode != 0o666:
            partial.unlink(missing_ok=True)  # what lies there may be open to others
        with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def make_directory(directory: Path, mode: int) -> None:
    """Makes a directory and those above it that are missing, all of one mode; pathlib gives it to the last alone."""
    for place in reversed([directory, *directory.parents]):
        if not place.exists():
            place.mkdir(mode=mode, exist_ok=True)


def flush_directory(directory: Path) -> None:
    """Makes the names of the files in a directory safe from a power failure, where the system can."""
    if os.name == "posix":
        opened = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """The same for something in JSON's types."""
    write(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file. The mapping may read its tensors from a disk; several may be one tensor."""
    # A copy of each, since the library refuses tensors that share memory or are not contiguous.
    form = torch.contiguous_format
    return save({name: tensor.detach().cpu().clone(memory_format=form) for name, tensor in tensors.items()})


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read when it is asked for; raises SafetensorError for another file."""

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
    """A directory to fill, which takes its name only when all of it is written; what was there before is replaced."""
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
