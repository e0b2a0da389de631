"""How a node runs an app: in a process for each message, which is started again if it ends without an answer.

Flower's own SuperNode starts the app's process through a further process, with a token in its command line. Everyone
who can read the token can take the task, and if the process is killed, its task ends a minute later or never. Here, the
SuperNode starts the process itself and keeps the message. Both exchange Flower's protobuf messages through a pipe that
no other process can open. The end of the process closes the pipe, so the SuperNode notices it at once.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from logging import ERROR, WARNING
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

from flwr.app import Context, Error, Message
from flwr.cli.install import install_from_fab
from flwr.clientapp.client_app import LoadClientAppError
from flwr.clientapp.utils import get_load_client_app_fn
from flwr.common.constant import ErrorCode
from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    fab_from_proto,
    fab_to_proto,
    message_from_proto,
    message_to_proto,
    run_from_proto,
    run_to_proto,
)
from flwr.proto.fab_pb2 import Fab as FabProto
from flwr.proto.message_pb2 import Context as ContextProto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.run_pb2 import Run as RunProto
from flwr.supercore import log
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState
from flwr.supernode.start_client_internal import _insert_message

TRIES = 3  # starts of the app for one message
PROCESSES = multiprocessing.get_context("forkserver")  # forks from a process that has only imported these modules
IMPORTED = [f"fedpgp.flower.deployment.{name}" for name in ("app", "app_policy", "app_process", "credentials")]


def prepare() -> None:
    """Start the process from which the apps' processes are forked, so that the first message does not wait for it."""
    PROCESSES.set_forkserver_preload(IMPORTED)
    forkserver.ensure_running()


class AnsweringState(InMemoryNodeState):
    """The state of a SuperNode. It runs the app for a message when Flower's main loop asks for the reply."""

    def get_messages_legacy(
        self, *, run_ids: Sequence[int] | None = None, is_reply: bool | None = None, limit: int | None = None
    ) -> Sequence[Message]:
        """Return messages that were not returned before; answer the received messages if replies are wanted."""
        if is_reply:
            for message in super().get_messages_legacy(is_reply=False):
                self._answer(message)
        return super().get_messages_legacy(run_ids=run_ids, is_reply=is_reply, limit=limit)

    def _answer(self, stub: Message) -> None:
        """Run the app for a message, of which the state has the metadata, and store the reply."""
        identifier, run = stub.metadata.message_id, self.get_run(stub.metadata.run_id)
        assert run is not None, "Flower stores the run before its message"
        context, fab = self.get_run_series_context(run.series_id), self.get_fab(run.fab_hash)
        assert context is not None and fab is not None, "Flower stores the context and the app before the message"
        tree = self.object_store.get_object_tree(identifier)
        contents = {one.object_id: self.object_store.get(one.object_id) or b"" for one in iterate_object_tree(tree)}
        message = inflate_object_from_contents(identifier, contents)
        assert isinstance(message, Message)
        message.metadata.__dict__["_message_id"] = identifier  # as Flower does
        self.object_store.delete(identifier)
        self.record_message_processing_start(identifier)
        answered = _in_a_process(
            (
                message_to_proto(message).SerializeToString(),
                context_to_proto(context).SerializeToString(),
                run_to_proto(run).SerializeToString(),
                fab_to_proto(fab).SerializeToString(),
            ),
            message.metadata.ttl,
        )
        self.record_message_processing_end(identifier)
        if answered is None:
            reply = Message(Error(ErrorCode.CLIENT_APP_CRASHED, "the app's process did not answer"), reply_to=message)
        else:
            reply, context = answered
            self.set_run_series_context(run.series_id, context)
        _insert_message(reply, self, self.object_store)


def _in_a_process(parts: Sequence[bytes], seconds: float) -> tuple[Message, Context] | None:
    """Run an app in a process, and again if the process ends without an answer.

    Parameters
    ----------
    parts
        What `_work` reads.
    seconds
        Time for the answer, after which the server does not wait for it.

    Returns
    -------
    tuple[Message, Context] | None
        The reply and the changed context. None if the time is over, or after `TRIES` starts.
    """
    end = time.monotonic() + seconds
    for number in range(1, TRIES + 1):
        pipe, inner = PROCESSES.Pipe()
        process = PROCESSES.Process(target=_work, args=(inner,), daemon=True)
        try:
            process.start()
            inner.close()
            for part in parts:
                pipe.send_bytes(part)
            if not pipe.poll(max(0.0, end - time.monotonic())):
                log(ERROR, "the app's process did not answer within %g seconds, and is ended", seconds)
                return None
            reply, context = MessageProto.FromString(pipe.recv_bytes()), ContextProto.FromString(pipe.recv_bytes())
        except (OSError, EOFError):
            if process.pid is not None:
                process.join()
            again = f"it is started again ({number + 1} of {TRIES})" if number < TRIES else "the message fails"
            log(WARNING, "the app's process ended with code %s before it answered; %s", process.exitcode, again)
        else:
            return message_from_proto(reply), context_from_proto(context)
        finally:
            if process.pid is not None:  # the start may fail, or the end of the SuperNode may interrupt it
                process.kill()
                process.join()
            pipe.close()
    return None


def _work(pipe: "Connection[Any, Any]") -> None:
    """Run an app for a message, in a process of its own, which ends with the SuperNode."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the SuperNode first
    threading.Thread(target=_end_with_parent, daemon=True).start()
    message = message_from_proto(MessageProto.FromString(pipe.recv_bytes()))
    context = context_from_proto(ContextProto.FromString(pipe.recv_bytes()))
    run = run_from_proto(RunProto.FromString(pipe.recv_bytes()))
    fab = fab_from_proto(FabProto.FromString(pipe.recv_bytes()))
    try:
        install_from_fab(fab.content, skip_prompt=True)
        app = get_load_client_app_fn("", None, multi_app=True)(run.fab_id, run.fab_version, fab.hash_str)
        reply = app(message=message, context=context)
    except Exception as error:
        log(ERROR, "the app raised an exception", exc_info=error)
        loading = isinstance(error, LoadClientAppError)
        code = ErrorCode.LOAD_CLIENT_APP_EXCEPTION if loading else ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        reply = Message(Error(code, f"{type(error).__name__}: {error}"), reply_to=message)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    with suppress(BrokenPipeError):  # the SuperNode has ended
        pipe.send_bytes(message_to_proto(reply).SerializeToString())
        pipe.send_bytes(context_to_proto(context).SerializeToString())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is a child process"
    parent.join()
    os._exit(1)
