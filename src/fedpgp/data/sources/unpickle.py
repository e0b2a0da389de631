"""Pickles of foreign files that hold arrays of bytes: read without running anything that they name."""

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
BYTES = ("u1", "|u1")


def load(content: bytes) -> Any:
    """What a pickle holds: plain containers, texts (bytes as Latin-1), numbers, and numpy arrays of bytes.

    Raises pickle.UnpicklingError for one that names anything else, and what `pickle` raises for damaged ones.
    """
    return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()


class _ArrayUnpickler(pickle.Unpickler):
    """Where a pickle names a function of numpy it is given one that can do no more than is needed here."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in MULTIARRAY:
            return _array
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray.__name__  # it is handed to `_array`, which knows what it makes
        if (module, name) == ("numpy", "dtype"):
            return _dtype
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no array of bytes")


def _array(*_: object) -> NDArray[np.uint8]:
    """An empty one, which the pickle then fills."""
    return np.empty(0, dtype=np.uint8)


def _dtype(code: object, *_: object) -> np.dtype[np.uint8]:
    if code not in BYTES:
        raise pickle.UnpicklingError(f"it holds an array of {code!r}, and not of bytes")
    return np.dtype("u1", copy=True)
