"""Tensors of files that others may have written, read one at a time and checked."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedpgp.errors import OutputError, first_line
from fedpgp.runtime import limits
from fedpgp.runtime.untrusted import DAMAGED, check_file

KINDS = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}  # types that fedpgp writes
WHOLE = 1 << 60  # bytes; a file is not read as a whole


class Like(NamedTuple):
    """What a tensor must be.

    Attributes
    ----------
    kind
        Its type in the file, such as "F32".
    shape
        Its shape.
    values
        For whole numbers, the values must be less than this, and not negative; None does not limit them.
    """

    kind: str
    shape: tuple[int, ...]
    values: int | None = None


class TensorFile(Mapping[str, Tensor]):
    """Tensors of a safetensors file. Each tensor is read from the disk, and its values are checked, when it is used.

    Parameters
    ----------
    path
        The file.
    like
        The tensors that it must have; None allows all tensors of the types in `KINDS`.
    most
        The largest size of the file in bytes.

    Raises
    ------
    FileNotFoundError
        The file does not exist.
    OutputError
        The file is not a valid safetensors file, or has other tensors. Reading a tensor raises it for values that are
        not finite or not allowed.
    """

    def __init__(self, path: Path, like: Mapping[str, Like] | None = None, most: int = WHOLE):
        check_file(path, most)
        self._path, self._like = path, like
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > limits.HEADER:
            raise self._fault("the size of the header", f"at most {limits.HEADER:,} bytes", header)
        try:
            self._opened = safe_open(path, framework="pt")
            self._names = dict.fromkeys(self._opened.keys())
        except (SafetensorError, OSError, ValueError) as error:
            reason = f"it is not a valid .safetensors file ({first_line(error)})"
            raise OutputError(reason, where=f"{path}", remedy=DAMAGED) from error
        if like is not None and self._names.keys() != like.keys():
            raise self._fault("the names of the tensors", ", ".join(sorted(like)) or "left out", sorted(self._names))
        for name in self._names:
            kind, shape = self.kind(name), self.shape(name)
            if kind not in KINDS:
                raise self._fault(f"the type of {name}", f"one of {', '.join(sorted(KINDS))}", kind)
            if like is not None and (kind, shape) != like[name][:2]:
                expected = like[name]
                raise self._fault(name, f"of type {expected.kind} and shape {[*expected.shape]}", (kind, [*shape]))

    def kind(self, name: str) -> str:
        """Return the type of a tensor, such as "F32"."""
        return str(self._opened.get_slice(name).get_dtype())

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return tuple(self._opened.get_slice(name).get_shape())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._opened.get_tensor(name)
        most = None if self._like is None else self._like[name].values
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise self._fault(name, "finite in every number", "nan or inf")
        if most is not None and tensor.numel():
            low, high = int(tensor.min()), int(tensor.max())
            if low < 0 or high >= most:
                raise self._fault(name, f"from 0 to {most - 1} in every number", [low, high])
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _fault(self, what: str, allowed: str, got: object) -> OutputError:
        return OutputError(where=f"{self._path}: {what}", allowed=allowed, got=got, remedy=DAMAGED)


def check_tensors(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], where: str, remedy: str) -> None:
    """Raise OutputError if tensors have other names or shapes, or are not finite.

    Parameters
    ----------
    tensors
        The tensors.
    like
        Tensors with the right names, shapes and types.
    where
        The place of the tensors, for the error.
    remedy
        What to do, for the error.
    """
    if tensors.keys() != like.keys():
        names: Collection[Any] = sorted(tensors)
        raise OutputError(where=f"the tensors of {where}", allowed=f"{sorted(like)}", got=names, remedy=remedy)
    for name, tensor in tensors.items():
        expected, place = like[name], f"{where}: {name}"
        if tensor.shape != expected.shape or tensor.is_floating_point() != expected.is_floating_point():
            allowed = f"of shape {[*expected.shape]} and type {_kind(expected)}"
            raise OutputError(where=place, allowed=allowed, got=([*tensor.shape], _kind(tensor)), remedy=remedy)
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise OutputError(where=place, allowed="finite in every number", got="nan or inf", remedy=remedy)


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
