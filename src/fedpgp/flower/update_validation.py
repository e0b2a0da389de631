"""Validation of clients' replies: a reply is an update of the requested round, or it is refused with a reason.

No parser reads bytes from the network, and no declared size decides how much memory is allocated. An array must have,
byte for byte, the header that NumPy writes for the expected array, and the length that follows from the header. A
reason quotes values from the network only shortened and escaped.
"""

import io
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedpgp.aggregators import Tensors, Upload
from fedpgp.errors import FedPGPError
from fedpgp.federation.client import ClientUpdate
from fedpgp.federation.state import ClientState
from fedpgp.flower.client_app import ABOUT, CONTROL, FACTS, LOSS, LOSSES, SHARED

RECORDS = (SHARED, CONTROL, LOSSES, ABOUT)
FORM = "numpy.ndarray"  # Flower's name for the bytes of an .npy file
MOST_LOSSES = 64
LARGEST_LOSS = 1e12  # with larger losses, sums over clients and rounds may not be finite
LOSS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}", re.ASCII)
QUOTED = 60  # characters of a quoted value
LINE = 300  # characters of a quoted message
# The types of prompts, accuracies and outcomes.
TYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64, "uint8": torch.uint8}
TYPES |= {"int16": torch.int16, "int64": torch.int64}
MOST_NUMBERS = 1 << 40  # elements of an array; PyTorch cannot count the bytes of a larger one
MASKED = np.dtype(np.int64)  # type of the masked numbers of secure aggregation


class Refused(FedPGPError):  # noqa: N818 # the result for one reply, not an error of the run
    """A client's reply that is not used. The message is the reason, in one short line of ASCII."""


@dataclass(frozen=True)
class Asked:
    """The reply that the server expects from a client in a round.

    Attributes
    ----------
    client
        Number of the client.
    round
        Number of the round.
    run
        Id of the run.
    shared, control
        Tensors with the names, shapes and types that the client must send.
    received
        The shared part that the client received.
    most_examples
        The largest number of training examples that the client may report.
    largest_change
        Upper bound of ‖θ − received‖ over the whole shared part.
    figures
        Names of the figures, each 0 or 1, that the client sends in addition to its losses.
    """

    client: int
    round: int
    run: str
    shared: Tensors
    control: Tensors
    received: Tensors
    most_examples: int
    largest_change: float = math.inf
    figures: tuple[str, ...] = ()


def arrays(tensors: Tensors) -> ArrayRecord:
    """Return tensors in the form in which they are sent: in C order, as .npy files."""
    return ArrayRecord({name: Array(tensor.detach().cpu().contiguous().numpy()) for name, tensor in tensors.items()})


def read(record: ArrayRecord, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a record, in the order and on the device of the expected tensors.

    Raises
    ------
    Refused
        If a name, type, shape or length differs from the expected one, or a number is not finite.
    """
    _same_names("tensors", record, expected)
    return {name: _read(name, record[name], like) for name, like in expected.items()}


def check(reply: RecordDict, asked: Asked) -> ClientUpdate:
    """Return the update in a client's reply. It does not include the private part, which the client keeps.

    Parameters
    ----------
    reply
        An ArrayRecord "shared", an ArrayRecord "control" if the aggregator needs one, a MetricRecord "losses", and a
        ConfigRecord "about" with the keys examples, round, run and after. `after` is the number of the round from whose
        private part the client continued.
    asked
        The expected reply.

    Raises
    ------
    Refused
        If the reply differs from the expected one.
    """
    unknown = reply.keys() - {*RECORDS}
    if unknown:
        raise Refused(f"the reply has an unknown record {excerpt(min(unknown))} (known: {', '.join(RECORDS)})")
    examples = _examples(_record(reply, ABOUT, ConfigRecord), asked.run, asked.round, asked.most_examples)
    record = _record(reply, LOSSES, MetricRecord)
    beside = {name: _bit(name, record.get(name)) for name in asked.figures}
    losses = _losses({name: value for name, value in record.items() if name not in beside})
    shared = read(_record(reply, SHARED, ArrayRecord), asked.shared)
    control = read(_record(reply, CONTROL, ArrayRecord) if CONTROL in reply else ArrayRecord(), asked.control)
    change = math.hypot(*(_distance(value, asked.received[name]) for name, value in shared.items()))
    if not change <= asked.largest_change:
        raise Refused(f"the shared part moved by {change:.3g}, more than the allowed {asked.largest_change:.3g}")
    return ClientUpdate(Upload(asked.client, examples, shared, control, beside), ClientState(), losses)


def figures(content: RecordDict, name: str, names: Collection[str] | None = None) -> dict[str, float]:
    """Return the numbers of a MetricRecord.

    Raises
    ------
    Refused
        If a value is not a number, there are too many values, or their names differ from `names`.
    """
    record = _record(content, name, MetricRecord)
    if names is not None:
        _same_names("figures", record, names)
    return _losses(record)


def facts(content: RecordDict, **kinds: type) -> list[Any]:
    """Return the values of these names in a message's record "about"; raise Refused for a wrong type or no value."""
    record: Mapping[str, Any] = content.config_records.get(ABOUT, {})
    for name, kind in kinds.items():
        if type(record.get(name)) is not kind:  # a bool is an int, too
            raise Refused(
                f"the message has {excerpt(record.get(name))} instead of a value of type {kind.__name__}",
                where=name,
                remedy="Install the same version of fedpgp on the server and on its nodes",
            )
    return [record[name] for name in kinds]


def check_round(record: Mapping[str, Any], run: str, number: int) -> None:
    """Raise Refused if a client's reply is for another round or another run."""
    for name, expected in (("run", run), ("round", number)):
        value = record.get(name)
        if type(value) is not type(expected) or value != expected:
            raise Refused(f"the reply is for {excerpt(value)} instead of {excerpt(expected)}", where=name)


def read_any(record: ArrayRecord) -> dict[str, Tensor]:
    """Return the tensors of a record with any names and shapes, from a server or from a client of the same party.

    Raises
    ------
    Refused
        If the type is not one of `TYPES`, or the bytes do not fit the declared type and shape.
    """
    expected = {}
    for name, array in record.items():
        sizes = [size for size in array.shape if type(size) is int and size >= 0]
        largest = math.prod(max(size, 1) for size in sizes)
        if array.dtype not in TYPES or len(sizes) < len(array.shape) or largest > MOST_NUMBERS:
            raise Refused(
                f"no tensor has type {excerpt(array.dtype)} and shape {excerpt(array.shape)}", where=excerpt(name)
            )
        expected[name] = torch.empty(array.shape, dtype=TYPES[array.dtype], device="meta")
    return read(record, expected)


def unlike_others(figures: Mapping[int, Collection[str]]) -> dict[int, str]:
    """Return the clients whose figures have other names than most clients' figures, each with the reason."""
    names_of = {client: tuple(sorted(names)) for client, names in figures.items()}
    usual = Counter(names_of.values()).most_common(1)
    return {
        client: f"the reply has the figures {excerpt(list(names))}, but most clients sent {excerpt(list(usual[0][0]))}"
        for client, names in names_of.items()
        if names != usual[0][0]
    }


def _record(content: RecordDict, name: str, kind: type) -> Any:
    if not isinstance(content.get(name), kind):
        sent = type(content[name]).__name__ if name in content else "nothing"
        raise Refused(f"the reply has {sent} instead of {kind.__name__}", where=f"record {name}")
    return content[name]


def _examples(record: Mapping[str, Any], run: str, number: int, most: int) -> int:
    """Return the number of training examples that a client reports for this round and run."""
    _same_names("facts", record, FACTS)
    check_round(record, run, number)
    examples, after = record["examples"], record["after"]
    if type(examples) is not int or not 1 <= examples <= most:  # a bool is an int, too
        raise Refused(f"the reply has {excerpt(examples)} instead of 1 to {most}", where="examples")
    if type(after) is not int or not 0 <= after < number:
        raise Refused(f"the reply has {excerpt(after)} instead of a round before round {number}", where="after")
    return examples


def _bit(name: str, value: object) -> float:
    if type(value) is not int or value not in (0, 1):
        raise Refused(f"the reply has {excerpt(value)} instead of 0 or 1", where=name)
    return float(value)


def _losses(record: Mapping[str, Any]) -> dict[str, float]:
    if len(record) > MOST_LOSSES:
        raise Refused(f"the reply has {len(record)} losses, more than the allowed {MOST_LOSSES}")
    for name, value in record.items():
        if not LOSS_NAME.fullmatch(name):
            raise Refused("the reply has a loss whose name is too long or has other characters", where=excerpt(name))
        if type(value) is not float or not abs(value) <= LARGEST_LOSS:  # the comparison is also false for NaN
            raise Refused(
                f"the reply has {excerpt(value)} instead of a number of at most {LARGEST_LOSS:g}",
                where=f"loss {excerpt(name)}",
            )
    return dict(record)


def _same_names(what: str, sent: Mapping[str, Any], expected: Collection[str]) -> None:
    if sent.keys() != {*expected}:
        raise Refused(f"the reply has {len(sent)} {what} {excerpt(list(sent))} instead of {excerpt(list(expected))}")


def _read(name: str, array: Array, like: Tensor) -> Tensor:
    dtype = torch.empty(0, dtype=like.dtype).numpy().dtype
    header = _header(dtype, tuple(like.shape))
    for what, sent, wanted in (
        ("form", array.stype, FORM),
        ("type", array.dtype, str(dtype)),
        ("shape", array.shape, tuple(like.shape)),
        ("length", len(array.data), len(header) + like.nbytes),
    ):
        if sent != wanted:
            raise Refused(f"the {what} is {excerpt(sent)} instead of {excerpt(wanted)}", where=name)
    if not array.data.startswith(header):
        found = excerpt(array.data[10 : len(header)])
        raise Refused(f"the header is {found} instead of {excerpt(header[10:])}", where=name)
    values = np.frombuffer(array.data, dtype, offset=len(header)).reshape(like.shape)
    if not np.isfinite(values).all():
        raise Refused("the values are not all finite", where=name)
    tensor = torch.from_numpy(values.copy())
    return tensor if like.is_meta else tensor.to(like.device)


def is_array(data: object, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    """Return whether `data` is exactly the bytes of an .npy file of this type and shape."""
    header = _header(dtype, shape)
    length = len(header) + dtype.itemsize * math.prod(shape)
    return isinstance(data, bytes) and len(data) == length and data.startswith(header)


def check_facts(said: Mapping[str, Any], client: int, run: str, number: int, most: int) -> ClientUpdate:
    """Return a client's update without tensors, from the values that it sends in the clear in secure aggregation.

    Parameters
    ----------
    said
        The values from the client.
    client, run, number
        The expected client, run and round.
    most
        The largest number of training examples that the client may report.

    Raises
    ------
    Refused
        If a value is not allowed.
    """
    losses = {name.removeprefix(LOSS): figure for name, figure in said.items() if name.startswith(LOSS)}
    about = {name: value for name, value in said.items() if not name.startswith(LOSS)}
    return ClientUpdate(Upload(client, _examples(about, run, number, most), {}), ClientState(), _losses(losses))


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return the header that NumPy writes before the numbers of an array in C order."""
    written = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(written, described)
    return written.getvalue()


def _distance(change: Tensor, other: Tensor) -> float:
    return float(torch.linalg.vector_norm(change.double() - other.double()))


def excerpt(value: object) -> str:
    """Return a received value as text: shortened, and in ASCII."""
    shown = ascii(_cut(value))
    return shown if len(shown) <= QUOTED else f"{shown[:QUOTED]}..."


def line(text: object) -> str:
    """Return a text from another machine as one line of ASCII."""
    shown = ascii(text[:LINE])[1:-1] if isinstance(text, str) else excerpt(text)
    return shown.replace("\\'", "'")


def _cut(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_cut(item) for item in value[:QUOTED])
    return value[:QUOTED] if isinstance(value, str | bytes) else value
