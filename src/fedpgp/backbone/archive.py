"""Read tensors from files of other programs without executing the code in these files."""

import io
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fedpgp.errors import CheckpointError, first_line

INSIDE = ("state_dict", "model_state_dict", "model")  # keys under which training scripts save a state dict
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file, a state dict saved with torch.save, or a TorchScript archive.

    OpenAI's .pt files are TorchScript archives: programs with their weights. Only the weights are read, by PyTorch's
    unpickler for tensors and plain containers.

    Parameters
    ----------
    file
        The file to read.

    Returns
    -------
    dict
        Tensors by name, without the prefixes of DistributedDataParallel and torch.compile.

    Raises
    ------
    CheckpointError
        If the file has none of the three formats.
    """
    try:
        if file.suffix == ".safetensors":
            return _without_wrappers(load_file(file))
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    return _script_weights(archive)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # PyTorch's own message explains how to run the code in the file
        raise CheckpointError(
            "the file is damaged, or contains more than tensors and plain containers",
            where=f"checkpoint {file}",
            remedy="Download it again, or choose another checkpoint",
        ) from error
    except Exception as error:  # damaged files make the readers raise many kinds of errors; the user needs one line
        raise CheckpointError(
            f"the file cannot be read ({first_line(error)})",
            where=f"checkpoint {file}",
            remedy="Download it again",
        ) from error
    for key in INSIDE:
        if isinstance(weights, dict) and isinstance(weights.get(key), dict):
            weights = weights[key]
    if not isinstance(weights, dict) or not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(
            f"the file must contain a state dict of tensors, but contains {_content(weights)}",
            where=f"checkpoint {file}",
            remedy="Choose a file of CLIP weights",
        )
    return _without_wrappers(weights)


def _without_wrappers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of DistributedDataParallel and torch.compile from the names."""
    return {WRAPPERS.sub("", name): tensor for name, tensor in weights.items()}


def _content(value: object) -> str:
    """Describe the content of a file for a message."""
    if not isinstance(value, dict):
        return f"an object of type {type(value).__name__}"
    return f"a dictionary with the keys {', '.join(map(str, list(value)[:5]))}" if value else "an empty dictionary"


class _Module:
    """Attributes of a module of a TorchScript archive, without its code."""

    def __setstate__(self, attributes: dict[str, object]) -> None:
        self.attributes = dict(attributes)


def _value(value: object, *_: object) -> object:
    """Replace the functions that record the type of a TorchScript container."""
    return value


def _script_weights(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """Return the tensors of a TorchScript archive; without its program, it has the format of torch.save."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as data:
        for entry in archive.infolist():
            if not entry.filename.endswith("/constants.pkl") and "/code/" not in entry.filename:
                data.writestr(entry, archive.read(entry))
    content.seek(0)
    stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (_Module if name.startswith("__torch__.") else _value, name)
        for name in torch.serialization.get_unsafe_globals_in_checkpoint(content)
        if name.startswith(("__torch__.", "torch.jit._pickle."))
    ]
    content.seek(0)
    with torch.serialization.safe_globals(stand_ins):
        root = torch.load(content, map_location="cpu", weights_only=True)
    weights = dict(_tensors(root, "")) if isinstance(root, _Module) else {}
    if not weights:
        raise ValueError("it contains no module with tensors")
    return weights


def _tensors(module: _Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
