"""The app that a SuperNode runs for a message: it asks the resident client, or loads the client itself.

A node starts a process for every message. A resident client, which stays loaded in another process, saves seconds per
message. Both processes belong to one user on one machine. They communicate through a socket in a directory that only
this user can enter, and send Flower's own protobuf messages, never a pickle.
"""

import logging
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flwr.app import ConfigRecord, Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto

from fedpgp.flower.client_app import client_app

RESIDENT = "resident"  # key in the node's config: address of the resident client
CALL = "call"  # record of a request: kind of the message, and settings of the client

Handler = Callable[[str, RecordDict, Mapping[str, Any]], RecordDict]


def make_client_app(experiment: Path) -> ClientApp:
    """Return the ClientApp of a federation.

    Parameters
    ----------
    experiment
        File of the experiment, which every node received from the server.
    """

    def answer(kind: str, content: RecordDict, context: Context) -> RecordDict:
        about: dict[str, Any] = {"experiment": str(experiment.absolute()), **context.node_config}
        about |= {"method": str(context.run_config["method"]), "seed": int(context.run_config["seed"])}
        address = about.pop(RESIDENT, "")
        with suppress(OSError, EOFError):  # the resident client has ended; its private part is on the disk
            if address:
                return ask(str(address), kind, content, about)
        from fedpgp.flower.deployment.client import answer_as  # imports PyTorch, which takes seconds

        return answer_as(kind, content, about)

    return client_app(answer, tomllib.loads(experiment.read_text(encoding="utf-8"))["privacy"])


def ask(address: str, kind: str, content: RecordDict, about: Mapping[str, Any]) -> RecordDict:
    """Return a resident client's answer to a message; raise OSError or EOFError if there is no such client."""
    request = RecordDict({**content, CALL: ConfigRecord({"kind": kind, **about})})
    with Client(address, "AF_UNIX") as connection:
        connection.send_bytes(recorddict_to_proto(request).SerializeToString())
        return _read(connection)


@contextmanager
def resident(answer: Handler) -> Iterator[str]:
    """Answer messages in a thread, one after the other, until the block ends; yield the address."""
    with TemporaryDirectory(prefix="fedpgp-") as directory:  # mode 0700: only the owner can enter it
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
        with connection, suppress(OSError, EOFError):  # the other process may have ended
            content = _read(connection)
            about = dict(content.config_records.pop(CALL))
            try:
                reply = answer(str(about.pop("kind")), content, about)
            except Exception:
                logging.getLogger(__name__).exception("a message could not be answered")
                continue  # the closed connection tells the other process
            connection.send_bytes(recorddict_to_proto(reply).SerializeToString())


def _read(connection: "Connection[Any, Any]") -> RecordDict:
    return recorddict_from_proto(RecordDictProto.FromString(connection.recv_bytes()))
