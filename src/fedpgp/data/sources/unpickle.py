"""Read pickles of other programs with arrays of bytes, without running anything that they name."""

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
BYTES = ("u1", "|u1")


def load(content: bytes) -> Any:
    """Return the content of a pickle: plain containers, texts (bytes as Latin-1), numbers, and numpy arrays of bytes.

    Raises
    ------
    pickle.UnpicklingError
        If the pickle names anything else, or is damaged. Damaged pickles can also raise other exceptions of `pickle`.
    """
    return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that replaces numpy's functions by functions that can only make arrays of bytes."""

    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in MULTIARRAY:
            return _array
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray.__name__  # an argument of `_array`, which ignores it
        if (module, name) == ("numpy", "dtype"):
            return _dtype
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not part of an array of bytes")


def _array(*_: object) -> NDArray[np.uint8]:
    """Return an empty array, which the pickle then fills."""
    return np.empty(0, dtype=np.uint8)


def _dtype(code: object, *_: object) -> np.dtype[np.uint8]:
    if code not in BYTES:
        raise pickle.UnpicklingError(f"it has an array of {code!r}, not of bytes")
    return np.dtype("u1", copy=True)
