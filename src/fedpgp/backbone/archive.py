"""Read tensors from files of other programs without executing the code in these files."""

import pickle
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from fedpgp.backbone import limits, torch_files
from fedpgp.backbone.foreign_files import parse
from fedpgp.errors import CheckpointError, first_line

INSIDE = ("state_dict", "model_state_dict", "model")  # keys under which training scripts save a state dict
WRAPPERS = re.compile(r"^((module|_orig_mod)\.)+")


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a file as `read_tensors` does.

    The names are returned without the prefixes of DistributedDataParallel and torch.compile.
    """
    return {WRAPPERS.sub("", name): tensor for name, tensor in read_tensors(file).items()}


def read_tensors(*files: Path) -> dict[str, Tensor]:
    """Read the tensors of .safetensors files, state dicts saved with torch.save, or TorchScript archives.

    OpenAI's .pt files are TorchScript archives: programs with their weights. Only the weights are read, by an
    interpreter of pickles that knows only tensors and plain containers.

    Parameters
    ----------
    files
        The files to read.

    Returns
    -------
    dict
        Tensors by name.

    Raises
    ------
    CheckpointError
        If a file has none of the three formats or exceeds a limit.
    """
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            if not stat.S_ISREG(file.stat().st_mode):
                raise ValueError("it is not a regular file")
            if file.suffix == ".safetensors":
                _check_header(file)
                weights |= load_file(file)
                continue
            weights |= _state_dict(torch_files.read(file), file)
        except CheckpointError:
            raise
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"the file is damaged, or contains more than tensors and plain containers ({first_line(error)})",
                where=f"checkpoint {file}",
                remedy="Download it again, or choose another checkpoint",
            ) from error
        except Exception as error:  # damaged files make the readers raise many kinds of errors; the user needs one line
            raise CheckpointError(
                f"the file cannot be read ({first_line(error)})",
                where=f"checkpoint {file}",
                remedy="Download it again",
            ) from error
    _check_sizes(weights, sum(file.stat().st_size for file in files), files[0])
    return weights


def _state_dict(content: Any, file: Path) -> dict[str, Tensor]:
    for key in INSIDE:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(v, torch_files.View) for v in content.values())
    ):
        raise CheckpointError(
            f"the file must contain a state dict of tensors, but contains {_content(content)}",
            where=f"checkpoint {file}",
            remedy="Choose a file of CLIP weights",
        )
    return {str(name): view.tensor() for name, view in content.items()}


def _content(value: object) -> str:
    """Describe the content of a file for a message."""
    if not isinstance(value, dict):
        return f"an object of type {type(value).__name__}"
    keys = ", ".join(str(key)[: limits.SHOWN] for key in list(value)[:5])
    return f"a dictionary with the keys {keys}" if value else "an empty dictionary"


def _check_sizes(weights: Mapping[str, Tensor], size: int, file: Path) -> None:
    """Raise CheckpointError for more tensors, or more numbers in them, than a file of this size can contain."""
    together = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
    if len(weights) > limits.TENSORS or together > limits.ROOM * size:
        raise CheckpointError(
            f"its {len(weights):,} tensors need {together:,} bytes; a file of {size:,} bytes may contain at most"
            f" {limits.TENSORS:,} tensors with {limits.ROOM * size:,} bytes",
            where=f"checkpoint {file}",
            remedy="Download it again, or save its tensors with safetensors",
        )


def _check_header(file: Path) -> None:
    """Raise ValueError if the header of a .safetensors file is too large, repeats a name, or is not valid JSON."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > limits.HEADER:
            raise ValueError(f"its header has {length:,} bytes, more than {limits.HEADER:,}")
        header = parse(opened.read(length))
    if len(header) > limits.TENSORS:
        raise ValueError(f"it has {len(header):,} tensors, more than {limits.TENSORS:,}")
