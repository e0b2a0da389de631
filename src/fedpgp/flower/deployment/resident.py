"""A client that stays loaded beside its SuperNode, for Flower starts a process for every message.

Both sides are processes of one user on one machine: they talk through a socket in a directory that nobody else enters,
and what they send is Flower's own protobuf, never a pickle.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto

CALL = "call"  # the record of a request that says what is asked of whom

Handler = Callable[[str, RecordDict, Mapping[str, Any]], RecordDict]


def ask(address: str, kind: str, content: RecordDict, about: Mapping[str, Any]) -> RecordDict:
    """What a resident client answers to a message; raises OSError or EOFError where it is not there."""
    request = RecordDict({**content, CALL: ConfigRecord({"kind": kind, **about})})
    with Client(address, "AF_UNIX") as connection:
        connection.send_bytes(recorddict_to_proto(request).SerializeToString())
        return _read(connection)


@contextmanager
def resident(answer: Handler) -> Iterator[str]:
    """Answers in a thread, one message after the other, until the block ends; gives the address."""
    with TemporaryDirectory(prefix="fedpgp-") as directory:  # 0700: only its owner reaches what is in it
        address = str(Path(directory) / "client")
        with Listener(address, "AF_UNIX") as listener:
            threading.Thread(target=_serve, args=(listener, answer), daemon=True).start()
            yield address


def _serve(listener: Listener, answer: Handler) -> None:
    while True:
        try:
            connection = listener.accept()
        except OSError:
            return  # the listener is closed
        with connection, suppress(OSError, EOFError):  # whoever asked may be gone
            content = _read(connection)
            about = dict(content.config_records.pop(CALL))
            try:
                reply = answer(str(about.pop("kind")), content, about)
            except Exception:
                logging.getLogger(__name__).exception("a message could not be answered")
                continue  # the connection is closed, and who asked sees that
            connection.send_bytes(recorddict_to_proto(reply).SerializeToString())


def _read(connection: "Connection[Any, Any]") -> RecordDict:
    return recorddict_from_proto(RecordDictProto.FromString(connection.recv_bytes()))
