"""Files of tensors that somebody else wrote -> the tensors, without executing anything in them."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedpgp.errors import CheckpointError

STORAGES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
DEEPEST = 64  # modules in modules


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, of a state dict that torch.save wrote, or of a TorchScript archive.

    OpenAI's .pt files are the latter: programs with their weights. Only the weights are read, by an unpickler that
    knows tensors and plain containers and nothing else. Raises CheckpointError for what is none of the three.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    return _script_weights(archive)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"checkpoint {file} cannot be read: {_reason(error)}; fetch it again") from error
    except (zipfile.BadZipFile, AttributeError, TypeError, IndexError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {file} is damaged: {_reason(error)}; fetch it again") from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"checkpoint {file} must hold a state dict of tensors, holds {type(found).__name__}")
    return found


def check_shapes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str, whose: str) -> None:
    """Raises CheckpointError for the first tensor that is missing, of another shape, or of no use.

    where, whose: what a message calls the checkpoint, and the model that it must fit.
    """
    for name in sorted(expected.keys() | found.keys()):
        wanted, given = (
            tuple(of[name].shape) if name in of else nothing
            for of, nothing in ((expected, "absent"), (found, "missing"))
        )
        if wanted != given:
            raise CheckpointError(
                f"checkpoint {where} does not fit the shape of {whose}: {name} must be {wanted}, is {given}: fetch it"
                " again, or name another"
            )


class _Module:
    """What stands in the place of a module of the archive: a bag of attributes."""

    __slots__ = ("attributes",)

    def __init__(self) -> None:
        self.attributes: dict[str, object] = {}

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise pickle.UnpicklingError("a module's state must be a dictionary of its attributes")
        self.attributes = state


class _Maker:
    """Something of ours that an archive may call. It has no attributes, so that an archive can set none."""

    __slots__ = ("_make",)
    _make: Callable[..., object]

    def __init__(self, make: Callable[..., object]) -> None:
        object.__setattr__(self, "_make", make)

    def __call__(self, *arguments: object) -> object:
        return self._make(*arguments)

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"it sets {name!r} on what is not its own")

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes what is not its own")


class _ArchiveUnpickler(pickle.Unpickler):
    """Knows tensors of the archive's own storages, plain containers, and modules as bags of attributes."""

    def __init__(self, content: bytes, storage: Callable[[str], bytes]) -> None:
        super().__init__(io.BytesIO(content))
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            # A class of its own each time: what an archive does to it ends with the archive.
            return type("Module", (_Module,), {"__slots__": ()})
        if (module, name) == ("collections", "OrderedDict"):
            return _Maker(OrderedDict)
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Maker(_tensor)
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return _Maker(list)
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return _Maker(_first)
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of weights needs")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, _ = pid
        if kind != "storage" or not str(key).isalnum() or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it refers to {kind!r}, which is no storage of tensors")
        return torch.frombuffer(bytearray(self._storage(str(key))), dtype=dtype)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    if offset < 0 or any(step < 0 for step in stride) or any(length < 0 for length in size):
        raise pickle.UnpicklingError("a tensor lies outside its storage")
    return torch.as_strided(storage, size, stride, offset).clone()  # PyTorch checks that it lies inside


def _first(value: object, *_: object) -> object:
    return value


def _script_weights(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    data = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(data) != 1:
        raise pickle.UnpicklingError(f"an archive must have one data.pkl, it has {len(data)}")
    directory = data[0].removesuffix("data.pkl")
    root = _ArchiveUnpickler(archive.read(data[0]), lambda key: archive.read(f"{directory}data/{key}")).load()
    found = dict(_tensors(root, (), DEEPEST)) if isinstance(root, _Module) else {}
    if not found:
        raise pickle.UnpicklingError("it holds no module with tensors")
    return found


def _tensors(module: _Module, path: tuple[str, ...], deeper: int) -> Iterator[tuple[str, Tensor]]:
    if deeper == 0:
        raise pickle.UnpicklingError(f"modules lie more than {DEEPEST} deep in each other")
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield ".".join((*path, name)), value
        elif isinstance(value, _Module):
            yield from _tensors(value, (*path, name), deeper - 1)


def _reason(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
