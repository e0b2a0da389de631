"""Read files of torch.save and TorchScript without PyTorch's unpickler, whose functions can take any memory."""

import io
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fedpgp.backbone import limits
from fedpgp.runtime.unpickle import Name, Unpickler

CHUNK = 1 << 20  # bytes that are read from an archive at a time
TYPES = {  # PyTorch's classes of storages
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
TENSORS = {Name("torch._utils", "_rebuild_tensor"), Name("torch._utils", "_rebuild_tensor_v2")}
PARAMETER, DICT, SIZE = (
    Name("torch._utils", "_rebuild_parameter"),
    Name("collections", "OrderedDict"),
    Name("torch", "Size"),
)
LEGACY = (0x1950A86A20F9469CFC6C, 1001)  # the first two pickles in a file of PyTorch before 1.6


def read(file: Path) -> Any:
    """Return the content of a file of PyTorch, with views in place of tensors.

    TorchScript archives are programs with their weights; their content is the tensors of the program by name.

    Raises
    ------
    pickle.UnpicklingError
        If the file contains more than tensors and plain containers.
    Exception
        Damaged files make the readers raise many kinds of errors.
    """
    with file.open("rb") as opened:
        if zipfile.is_zipfile(opened):
            return _archived(opened)
        opened.seek(0)
        return _legacy(opened)


class _Limited:
    """A file as `zipfile` reads it, whose directory cannot make it read many bytes at once."""

    def __init__(self, file: BinaryIO):
        self.file, self.tell, self.seek, self.seekable = file, file.tell, file.seek, file.seekable

    def read(self, length: int = -1) -> bytes:
        content = self.file.read(limits.DIRECTORY + 1 if length < 0 else min(length, limits.DIRECTORY + 1))
        if len(content) > limits.DIRECTORY:
            raise ValueError(f"its list of members has more than {limits.DIRECTORY:,} bytes")
        return content


def _archived(file: BinaryIO) -> Any:
    """Return the content of an archive of torch.save, or the tensors of a TorchScript archive."""
    left = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(_Limited(file)) as archive:
        names = archive.namelist()
        main = next((name for name in names if name.endswith("/data.pkl") and name.count("/") == 1), None)
        if main is None:
            raise ValueError("it has no data.pkl")
        root = main.removesuffix("data.pkl")

        def read(name: str, most: int) -> bytearray:
            nonlocal left
            entry = archive.getinfo(f"{root}{name}")
            left -= entry.file_size
            if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:  # PyTorch compresses only programs
                raise ValueError(f"its member {name[: limits.SHOWN]!r} is compressed or encrypted")
            if entry.file_size > most or left < 0:
                raise ValueError(
                    f"its member {name[: limits.SHOWN]!r} has more than {most:,} bytes, or overlaps another"
                )
            content = bytearray(entry.file_size)
            with archive.open(entry) as member:
                for start in range(0, len(content), CHUNK):
                    content[start : start + CHUNK] = member.read(min(CHUNK, len(content) - start))
            return content

        if f"{root}byteorder" in names and read("byteorder", limits.SHOWN) != b"little":
            raise ValueError("its numbers are not in little-endian byte order")
        script = f"{root}constants.pkl" in names
        unpickler = _TensorUnpickler(lambda key, length: read(f"data/{key}", length), script)
        found = unpickler.load(io.BytesIO(read("data.pkl", limits.PICKLE)))
    if not script:
        return found
    views = dict(_views(found, "", count())) if isinstance(found, _Module) else {}
    if not views:
        raise ValueError("it contains no module with tensors")
    return views


def _legacy(file: BinaryIO) -> Any:
    """Return the content of a file that PyTorch wrote before version 1.6: pickles, followed by the storages."""
    size = os.fstat(file.fileno()).st_size
    head = io.BytesIO(file.read(limits.PICKLE))
    plain = Unpickler()
    if tuple(plain.load(head) for _ in LEGACY) != LEGACY:
        raise ValueError("it is not a file of PyTorch")
    if not plain.load(head).get("little_endian"):
        raise ValueError("its numbers are not in little-endian byte order")
    found = _TensorUnpickler(None)
    content, keys = found.load(head), plain.load(head)
    file.seek(head.tell())
    for key in keys:
        storage = found.storages[key]
        count = int.from_bytes(file.read(8), "little")
        if count != storage.count or count * storage.type.itemsize > size:
            raise ValueError("a storage has another length than its name states")
        storage.content = bytearray(file.read(count * storage.type.itemsize))
    return content


@dataclass(eq=False)
class _Storage:
    """Numbers of a file, without shape."""

    type: torch.dtype
    count: int
    content: bytearray | None = None

    def tensor(self) -> Tensor:
        if self.content is None or len(self.content) != self.count * self.type.itemsize:
            raise ValueError("a storage is missing or incomplete")
        return torch.frombuffer(self.content, dtype=self.type) if self.count else torch.empty(0, dtype=self.type)


@dataclass(eq=False)
class View:
    """A tensor in a storage, checked before it is created."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        if (
            not isinstance(self.storage, _Storage)
            or not all(isinstance(numbers, tuple) for numbers in (self.size, self.stride))
            or not all(type(n) is int and 0 <= n < limits.NUMBERS for n in (self.offset, *self.size, *self.stride))
            or len(self.size) != len(self.stride)
            or len(self.size) > limits.DIMENSIONS
        ):
            raise pickle.UnpicklingError("a tensor has a storage, a shape or strides that tensors do not have")
        if (count := math.prod(self.size)) == 0:
            return
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        if count > self.storage.count or last >= self.storage.count:
            raise ValueError(f"a tensor of {count:,} numbers is larger than its storage of {self.storage.count:,}")

    def tensor(self) -> Tensor:
        return self.storage.tensor().as_strided(self.size, self.stride, self.offset)


class _Module:
    """Attributes of a module of a TorchScript archive, without its code."""

    attributes: Mapping[str, object] = {}


class _TensorUnpickler(Unpickler):
    """Interpreter of pickles of PyTorch.

    Parameters
    ----------
    stored
        Function that reads a storage with a key and a length in bytes; None if storages follow the pickle.
    script
        Whether modules of TorchScript are allowed.
    """

    def __init__(self, stored: Callable[[str, int], bytearray] | None, script: bool = False):
        self.stored, self.script = stored, script
        self.storages: dict[str, _Storage] = {}

    def named(self, name: Name) -> object:
        storage = name.module == "torch" and name.name in TYPES
        module = name.module == "__torch__" or name.module.startswith(("__torch__.", "torch.jit._pickle"))
        if storage or name in TENSORS or name in (PARAMETER, DICT, SIZE) or (self.script and module):
            return name
        raise pickle.UnpicklingError(f"it names {str(name)[: limits.SHOWN]}")

    def called(self, function: Any, arguments: tuple[Any, ...]) -> object:
        if not isinstance(function, Name):
            raise pickle.UnpicklingError("it calls a value")
        if function in TENSORS:
            storage, offset, size, stride = arguments[:4]
            return View(storage, offset, size, stride)
        if function == DICT and not arguments:
            return {}
        if function in (SIZE, PARAMETER) or function.module == "torch.jit._pickle":
            return arguments[0]
        if function.module.startswith("__torch__") and not arguments:
            return _Module()
        raise pickle.UnpicklingError(f"it calls {str(function)[: limits.SHOWN]}")

    def built(self, value: Any, state: Any) -> None:
        if isinstance(value, _Module) and isinstance(state, dict):
            value.attributes = state
        elif not (isinstance(value, dict) and isinstance(state, dict)):  # a state dict has _metadata
            raise pickle.UnpicklingError("it changes an object")

    def persistent(self, identifier: Any) -> object:
        kind, storage, key, _, count = identifier[:5]
        if kind != "storage" or type(key) is not str or type(count) is not int or not 0 <= count < limits.NUMBERS:
            raise pickle.UnpicklingError("it reads a value that is not a storage")
        if not isinstance(storage, Name) or storage.module != "torch":
            raise pickle.UnpicklingError("a storage has an unknown type")
        found = self.storages.setdefault(key, _Storage(TYPES[storage.name], count))
        if (found.type, found.count) != (TYPES[storage.name], count):
            raise pickle.UnpicklingError("a storage has two types or lengths")
        if self.stored is not None and found.content is None:
            found.content = self.stored(key, count * found.type.itemsize)
        return found


def _views(module: _Module, prefix: str, visits: Iterator[int]) -> Iterator[tuple[str, View]]:
    if next(visits) > limits.TENSORS:  # a module may contain itself, or others many times
        raise ValueError(f"it has more than {limits.TENSORS:,} modules")
    for name, value in module.attributes.items():
        if isinstance(value, View):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Module):
            yield from _views(value, f"{prefix}{name}.", visits)
