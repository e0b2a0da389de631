"""What comes from the network is looked at here before anything is made of it.

Tensors cross as NumPy's .npy bytes, as Flower's own strategies and privacy expect them. No parser is run on them: the
header must be, byte for byte, the one that NumPy writes for the type and shape that are expected, and the length what
these take. So nothing is allocated by a size that somebody else declares, and nothing is unpickled.
"""

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor

from fedpgp.aggregators import Tensors, Upload
from fedpgp.errors import FedPGPError
from fedpgp.federation.client import ClientUpdate
from fedpgp.federation.state import ClientState

SHARED, CONTROL = "shared", "control"  # records of tensors
ABOUT, LOSSES = "about", "losses"
NPY = "numpy.ndarray"  # Flower's name of the form
LONGEST = 200  # characters of what somebody else wrote in a message of ours
MOST_FIGURES = 64  # in a record of losses or of diagnostics
MOST_EXAMPLES = 10**8  # that a client may say that it has


class Refused(FedPGPError):  # noqa: N818 what happened to a message, not a fault of ours
    """A message that is not what it must be; the text says why."""


@dataclass(frozen=True)
class Asked:
    """What an update must be. shared, control: tensors of its names, types and shapes; received: what was sent.

    largest_change: of the shared part, L2.
    """

    run: str
    round: int
    client: int
    shared: Tensors
    control: Tensors
    received: Tensors
    largest_change: float = math.inf


def arrays(found: Tensors) -> ArrayRecord:
    return ArrayRecord({name: Array(tensor.detach().cpu().contiguous().numpy()) for name, tensor in found.items()})


def check(reply: RecordDict, asked: Asked) -> ClientUpdate:
    """The update that a reply is, without what its client keeps; raises Refused where it is none that may be used."""
    fewest = {SHARED, LOSSES, ABOUT}
    known = fewest | ({CONTROL} if asked.control else set())
    if not fewest <= reply.keys() <= known:
        raise Refused(f"its reply holds {excerpt(sorted(reply))} where {sorted(known)} are asked for")
    for name, records in ((ABOUT, reply.config_records), (LOSSES, reply.metric_records), (SHARED, reply.array_records)):
        if name not in records:
            raise Refused(f"{name} is a record of another kind")
    about = reply.config_records[ABOUT]
    if about.get("run") != asked.run or about.get("round") != asked.round:
        raise Refused(
            f"it answers round {excerpt(about.get('round'))} of run {excerpt(about.get('run'))}, not round"
            f" {asked.round} of {asked.run}"
        )
    examples = about.get("examples")
    if type(examples) is not int or not 1 <= examples <= MOST_EXAMPLES:
        raise Refused(f"it says that it has {excerpt(examples)} examples")
    shared = read(reply.array_records[SHARED], asked.shared)
    control = read(reply.array_records[CONTROL], asked.control) if CONTROL in reply.array_records else {}
    if asked.control and not control:
        raise Refused(f"its {CONTROL} is missing")
    change = math.sqrt(sum(float((value - asked.received[name]).square().sum()) for name, value in shared.items()))
    if not change <= asked.largest_change:
        raise Refused(f"it changed the shared part by {change:.3g}, more than {asked.largest_change:.3g}")
    return ClientUpdate(Upload(asked.client, examples, shared, control), ClientState(), numbers(reply, LOSSES))


def read(record: ArrayRecord, expected: Tensors) -> dict[str, Tensor]:
    """The tensors of a record, on the device of those expected; raises Refused unless they are such and finite."""
    if record.keys() != expected.keys():
        raise Refused(f"it sent {excerpt(sorted(record))} where {sorted(expected)} are shared")
    found = {}
    for name, tensor in expected.items():
        like = np.dtype(str(tensor.dtype).removeprefix("torch."))
        found[name] = torch.from_numpy(_array(name, record[name], like, tuple(tensor.shape))).to(tensor.device)
        if tensor.is_floating_point() and not found[name].isfinite().all():
            raise Refused(f"{name} is not finite")
    return found


def read_any(record: ArrayRecord) -> dict[str, Tensor]:
    """The tensors of a record from a server, or from clients of the same party, of any names and shapes.

    Raises Refused where the bytes are not those of what they declare, in a type that prompts or outcomes have.
    """
    types = {name: np.dtype(name) for name in ("float32", "float64", "int64", "uint8")}
    found = {}
    for name, array in record.items():
        if array.dtype not in types or not all(type(size) is int and size >= 0 for size in array.shape):
            raise Refused(f"{excerpt(name)} is {excerpt(array.dtype)} {excerpt(array.shape)}")
        found[name] = torch.from_numpy(_array(excerpt(name), array, types[array.dtype], tuple(array.shape)))
    return found


def _array(name: str, array: Array, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if array.stype != NPY or array.dtype != str(dtype) or tuple(array.shape) != shape:
        raise Refused(
            f"{name} is {excerpt(array.dtype)} {excerpt(tuple(array.shape))} as {excerpt(array.stype)},"
            f" not {dtype} {shape} as {NPY}"
        )
    header = _header(dtype, shape)
    if len(array.data) != len(header) + dtype.itemsize * math.prod(shape) or not array.data.startswith(header):
        raise Refused(f"the {len(array.data)} bytes of {name} are not those of {dtype} {shape}")
    return np.frombuffer(array.data, dtype, offset=len(header)).reshape(shape).copy()


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """What NumPy writes before an array of this type and shape."""
    written = io.BytesIO()
    content = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(written, content)
    return written.getvalue()


def numbers(content: RecordDict, record: str, names: Iterable[str] | None = None) -> dict[str, float]:
    """The figures of a record; raises Refused where they are not finite, not those that are named, or too many."""
    found = content.metric_records.get(record)
    if found is None:
        raise Refused(f"its {record} are missing")
    if names is not None and found.keys() != set(names):
        raise Refused(f"its {record} are {excerpt(sorted(found))}, not {sorted(names)}")
    if len(found) > MOST_FIGURES or not all(name.isidentifier() and len(name) < LONGEST for name in found):
        raise Refused(f"its {record} have the names {excerpt(sorted(found))}")
    figures: dict[str, float] = {}
    for name, figure in found.items():
        if not isinstance(figure, int | float) or not math.isfinite(figure):
            raise Refused(f"{name} of its {record} is {excerpt(figure)}")
        figures[name] = float(figure)
    return figures


def excerpt(found: object) -> str:
    """What somebody else wrote, in printable characters, and cut where it is long."""
    text = found if isinstance(found, str) and found.isprintable() else ascii(found)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
