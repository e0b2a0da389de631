"""Read pickles with arrays of bytes, without running anything that they name; NumPy never sees a state in a file."""

import math
import pickle
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpgp.runtime.unpickle import Name, Unpickler

ARRAY = {Name(module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")}
NDARRAY, DTYPE = Name("numpy", "ndarray"), Name("numpy", "dtype")
BYTES = ("u1", "|u1")
DIMENSIONS = 4  # most dimensions of an array; images have up to 4
STATE_OF_BYTES = (3, "|", None, None, None, -1, -1, 0)  # state of NumPy's data type for bytes


def load(content: bytes) -> Any:
    """Return the content of a pickle: plain containers, texts (bytes as Latin-1), numbers, and arrays of bytes.

    Only the values of a dictionary that is the whole content are returned as arrays.

    Raises
    ------
    pickle.UnpicklingError
        If the pickle contains anything else, or is damaged. Damaged pickles can also raise other exceptions.
    """
    loaded = _ArrayUnpickler().load(BytesIO(content))
    if not isinstance(loaded, dict):
        return loaded
    return {key: value.array if isinstance(value, _Array) else value for key, value in loaded.items()}


class _DataType:
    """Stand-in for NumPy's data type of bytes."""


class _Array:
    """Stand-in for an array, which the pickle fills once."""

    array: NDArray[np.uint8] | None = None


class _ArrayUnpickler(Unpickler):
    def named(self, name: Name) -> object:
        if name in ARRAY or name in (NDARRAY, DTYPE):
            return name
        raise pickle.UnpicklingError(f"it names {name}, which is not part of an array of bytes")

    def called(self, function: Any, arguments: tuple[Any, ...]) -> object:
        if function in ARRAY:
            return _Array()
        if function != DTYPE or not arguments or arguments[0] not in BYTES:
            raise pickle.UnpicklingError("it has an array of other values than bytes")
        return _DataType()

    def built(self, value: Any, state: Any) -> None:
        if isinstance(value, _DataType) and state == STATE_OF_BYTES:
            return
        if not isinstance(value, _Array) or not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("it has a state that arrays of bytes do not have")
        _, shape, kind, by_columns, data = state
        content = data.encode("latin1") if isinstance(data, str) else data
        if (
            not isinstance(shape, tuple)
            or not isinstance(kind, _DataType)
            or not isinstance(content, bytes)
            or not all(type(length) is int and 0 <= length <= len(content) for length in shape)
            or len(shape) > DIMENSIONS
            or math.prod(shape) != len(content)
        ):
            raise pickle.UnpicklingError("it has an array whose shape, type and bytes do not fit")
        value.array = np.frombuffer(content, dtype=np.uint8).reshape(shape, order="F" if by_columns else "C")
