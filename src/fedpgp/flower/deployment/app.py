"""What a SuperNode runs for a message: it asks the client that stays loaded beside it, or else loads the client.

Flower starts a process for every message: a client that stays loaded saves each of them seconds. Both sides are
processes of one user on one machine: they talk through a socket in a directory that nobody else enters, and what they
send is Flower's own protobuf, never a pickle.
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

RESIDENT = "resident"  # in the node's config: where the client that stays loaded is
CALL = "call"  # the record of a request that says what is asked of whom

Handler = Callable[[str, RecordDict, Mapping[str, Any]], RecordDict]


def make_client_app(experiment: Path) -> ClientApp:
    """The ClientApp of a federation. experiment: its file, as every node has it from the server."""

    def answer(kind: str, content: RecordDict, context: Context) -> RecordDict:
        about: dict[str, Any] = {"experiment": str(experiment.absolute()), **context.node_config}
        about |= {"method": str(context.run_config["method"]), "seed": int(context.run_config["seed"])}
        address = about.pop(RESIDENT, "")
        with suppress(OSError, EOFError):  # it was ended: what it kept is on the disk
            if address:
                return ask(str(address), kind, content, about)
        from fedpgp.flower.deployment.client import answer_as  # with PyTorch, which takes seconds

        return answer_as(kind, content, about)

    return client_app(answer, tomllib.loads(experiment.read_text(encoding="utf-8"))["privacy"])


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
